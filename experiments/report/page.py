"""The page of all runs: an overview that sorts and filters, then a section for each run."""

import base64
import html
import json
import os
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from experiments import harness

from . import frame, mathematics, tables
from .runs import RECORD, Refused, Run

MANY_LINES = 24  # of what was printed; longer is folded
LARGEST_JSON = 60_000  # letters that are shown; larger files are linked alone
UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def render(
    runs: Sequence[Run],
    refused: Sequence[Refused],
    experiments: Mapping[str, harness.Experiment],
    base: Path,
    reference: Path,
    without_reference: bool = False,
) -> str:
    """The page as it stands in the folder `base`: its links are relative to it."""
    count = len({run.record["experiment"] for run in runs} & set(experiments))
    share = f"all {count}" if count == len(experiments) else f"{count} of the {len(experiments)}"
    lead = (
        '<p class="lead">Gradients through time, measured: what each experiment asks, what it found, and all its '
        f"numbers.</p>\n<p>{_plural(len(runs), 'run')} of {share} experiments, made with "
        f"jaxbptt {_span(run.record['versions'].get('jaxbptt', '?') for run in runs)}.</p>\n"
    )
    if not without_reference:
        lead += _reference(reference, base)
    body = _overview(runs, experiments) + _left_out(refused)
    body += "".join(_section(run, experiments.get(run.record["experiment"]), base) for run in runs)
    return frame.document("jaxbptt: experiments", lead, body)


def _reference(reference, base):
    if reference.is_file():
        return f'<p><a href="{_link(reference, base)}">Reference of the library</a>, from its docstrings.</p>\n'
    return "<p>The reference of the library is written beside this page once pdoc is installed: pip install pdoc.</p>\n"


def _left_out(refused):
    if not refused:
        return ""
    items = "".join(f"<li><code>{html.escape(name)}</code>: {html.escape(reason)}</li>" for name, reason in refused)
    title = f'<h2 id="left-out">{_plural(len(refused), "folder")} left out</h2>'
    return f'<section class="first" aria-labelledby="left-out">{title}\n<ul>{items}</ul></section>\n'


def _overview(runs, experiments):
    head = "".join(f'<th scope="col">{name}</th>' for name in ("run", "asks", "found", "date"))
    rows = "".join(_row(run, experiments.get(run.record["experiment"])) for run in runs)
    table = (
        f'<table class="sortable overview"><thead><tr>{head}<th scope="col" class="number">seconds</th></tr></thead>\n'
        f"<tbody>\n{rows}</tbody></table>"
    )
    form = frame.filter_form(".overview tbody tr", "runs", "Search the runs")
    title = '<h2 id="overview">Overview</h2>\n'
    return (
        f'<section class="first" aria-labelledby="overview">{title}{form}'
        f"{frame.scroller(table, 'Overview of the runs')}</section>\n"
    )


def _row(run, experiment):
    failed = f'<span class="verdict fails">{_failure(run.record).lower()}</span> ' if run.record["exit_code"] else ""
    seconds = run.record["seconds"]
    return (
        f'<tr data-section="{_id(run)}"><th scope="row"><a href="#{_id(run)}">{html.escape(run.name)}</a></th>'
        f"<td>{mathematics.prose(experiment.purpose if experiment else '')}</td>"
        f"<td>{failed}{html.escape(run.verdict)}</td>"
        f'<td class="date" data-value="{run.started.timestamp()}">{run.started:%Y-%m-%d}</td>'
        f'<td class="number seconds" data-value="{seconds}">{seconds:.3g}</td></tr>\n'
    )


def _section(run, experiment, base):
    record, name = run.record, html.escape(run.name)
    same = run.name == record["experiment"]
    of = "" if same else f' <span class="soft">a run of {html.escape(record["experiment"])}</span>'
    purpose = f"<p class=lead>{mathematics.prose(_sentence(experiment.purpose))}</p>\n" if experiment else ""
    failed = f' <span class="verdict fails">{_failure(record)}.</span>' if record["exit_code"] else ""
    facts = [f"{run.started:%d %B %Y, %H:%M}".lstrip("0"), duration(record["seconds"])]
    if record["peak_memory_bytes"]:
        facts.append(f"{size(record['peak_memory_bytes'])} of memory at most")
    pages = [file for file in record["files"] if file.endswith(".html")]
    return (
        f'<section id="{_id(run)}" aria-labelledby="{_id(run)}-title">\n<h2 id="{_id(run)}-title">{name}{of}</h2>\n'
        f'{purpose}<p class="facts">{" · ".join(facts)}{failed}</p>\n'
        + "".join(f'<p><a href="{_link(run.folder / file, base)}">Open {html.escape(file)}</a></p>\n' for file in pages)
        + _figures(run, experiment, base)
        + _printed(run)
        + _description(experiment)
        + _numbers(run, base)
        + f"<details><summary>Options</summary>\n{frame.definitions(_flat(record['config']))}</details>\n"
        + f"<details><summary>Made with</summary>\n{frame.definitions(_circumstances(record))}</details>\n"
        + _files(run, base)
        + '<p class="top"><a href="#overview">Back to the overview</a></p>\n</section>\n'
    )


def _figures(run, experiment, base):
    parts = []
    for file in run.record["files"]:
        if file.endswith(".png"):
            known = experiment.alt.get(file) if experiment else None
            data = (run.folder / file).read_bytes()
            width, height = _dimensions(data)
            parts.append(
                f'<figure><img src="data:image/png;base64,{base64.b64encode(data).decode()}" width="{width}" '
                f'height="{height}" alt="{html.escape(known or f"{file} of the run {run.name}")}">\n'
                f'<figcaption><a href="{_link(run.folder / file, base)}">{html.escape(file)}</a> in full size, '
                f"{width} × {height} pixels</figcaption></figure>\n"
            )
    return "".join(parts)


def _failure(record):
    return "Figures are missing" if record.get("failure") else "A check failed"


def _dimensions(png):
    """Width and height, so that nothing moves while the page is read in."""
    return struct.unpack(">II", png[16:24])


def _printed(run):
    """All lines; of many, the claims or the verdict, and all folded."""
    if not run.lines:
        return ""
    title = "<h3>What it found</h3>\n"
    if len(run.lines) <= MANY_LINES:
        return title + _listing(run, run.lines)
    summary = f"All that was printed, {len(run.lines)} lines"
    first = _listing(run, run.claims or [run.verdict])
    return f"{title}{first}<details><summary>{summary}</summary>\n{_listing(run, run.lines)}</details>\n"


def _listing(run, lines):
    marked = [re.sub(r"^(HOLDS|FAILS|CANNOT TELL[^:]*)(?=:)", _marked, html.escape(line)) for line in lines]
    if any(re.search(r"\S {2,}\S", line) for line in lines):  # columns, which a break would tear
        text = "\n".join(marked)
        return frame.scroller(f"<pre>{text}</pre>", f"What {run.name} printed")
    return f'<pre class="wrapped">{"".join(f"<span>{line}</span>" for line in marked)}</pre>\n'


def _marked(match):
    kind = {"H": "holds", "F": "fails", "C": "undecided"}[match[0][0]]
    return f'<strong class="{kind}">{match[0]}</strong>'


def _description(experiment):
    if experiment is None or not experiment.description:
        return ""
    parts = re.split(r"\n\n|\n(?=\d+\. |  \S)", experiment.description.strip())  # paragraphs, items of lists
    paragraphs = "".join(f"<p>{html.escape(part)}</p>\n" for part in parts)
    return f"<details><summary>What is asked and how</summary>\n{paragraphs}</details>\n"


def _numbers(run, base):
    parts = []
    for file, numbers in run.numbers.items():
        shown, complete = tables.tables(numbers, Path(file).stem if isinstance(numbers, list) else "")
        text = json.dumps(numbers, indent=1, ensure_ascii=False)
        rest = ""
        if not complete and len(text) <= LARGEST_JSON:
            rest = (
                f'<details class="source"><summary>{html.escape(file)} as it was written</summary>\n'
                f"{frame.scroller(f'<pre>{html.escape(text)}</pre>', file)}</details>\n"
            )
        elif not complete:
            link = f'<a href="{_link(run.folder / file, base)}">{html.escape(file)}</a>'
            rest = f'<p class="soft">More numbers are in {link}.</p>\n'
        parts.append(shown + rest)
    return f"<h3>Numbers</h3>\n{''.join(parts)}" if parts else ""


def _circumstances(record):
    device, git = record["device"], record.get("git")
    known = {"run": record["id"], "device": _listed(device), **{k: str(v) for k, v in record["versions"].items()}}
    known |= {name: str(value) for name, value in record["flags"].items() if value}
    if git:
        known["commit"] = f"{git.get('commit')}{'' if git.get('clean') else ', with changes'}"
    return known | {"exit code": str(record["exit_code"])}


def _files(run, base):
    items = "".join(
        f'<li><a href="{_link(run.folder / file, base)}">{html.escape(file)}</a> '
        f'<span class="soft">{size((run.folder / file).stat().st_size)}</span></li>'
        for file in [*run.record["files"], RECORD]
    )
    return f'<h3>Files</h3>\n<ul class="files">{items}</ul>\n'


def duration(seconds: float) -> str:
    """In the unit one would say it in."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(number: int) -> str:
    """Of a file or of memory."""
    for unit, name in UNITS:
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number} B"


def _flat(config: Mapping[str, Any]) -> dict[str, str]:
    return {name: _listed(value) for name, value in config.items()}


def _listed(value):
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_listed(item)}" for name, item in value.items() if item not in (None, ""))
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "default" if value is None else str(value)


def _span(versions):
    return ", ".join(sorted({str(version) for version in versions}))


def _plural(count, noun):
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _sentence(text):
    return text[:1].upper() + text[1:] + ("" if text.endswith(("?", ".")) else ".")


def _id(run):
    return "run-" + re.sub(r"[^\w.-]", "-", run.name)


def _link(path, base):
    return html.escape(quote(Path(os.path.relpath(path, base)).as_posix()))

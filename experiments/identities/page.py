"""The judged rows as one HTML page that needs no network."""

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report import frame, mathematics

HEADINGS = {"fails": "fails", "conditional": "holds under a condition", "holds": "holds", "undecided": "undecided"}


def render(records: Sequence[Mapping[str, Any]], sources: Mapping[str, str]) -> str:
    """The page: sources in order, in each the false rows first, then the conditional ones."""
    present = {id: title for id, title in sources.items() if any(record["source"] == id for record in records)}
    links = "".join(f'<li><a href="#{id}">{id}</a> {_counts(records, id)}</li>' for id in present)
    lead = (
        f'<p class="lead">{len(records)} equations as the notes write them, each judged by running it in float64.</p>'
        "<p>The residual is ‖written − true‖ / max(‖written‖, ‖true‖), the worst of three random instances.</p>\n"
        f'<nav aria-label="Sources"><ul>{links}</ul></nav>\n'
    )
    places = {id(record): place for place, record in enumerate(records)}
    sections = "".join(
        f'<section data-group aria-labelledby="{source}"><h2 id="{source}">{source}: {html.escape(title)}</h2>\n'
        + "".join(_article(record, places[id(record)]) for record in _in_order(records, source))
        + "</section>\n"
        for source, title in present.items()
    )
    form = frame.filter_form("article", "equations", "Search the equations", _choices(records, present))
    return frame.document("Identities of backpropagation through time", lead, form + sections)


def _choices(records, present):
    verdicts = [verdict for verdict in HEADINGS if any(record["verdict"] == verdict for record in records)]
    source = _select(
        "Source", "data-key", {"source": {"": "all", **{id: f"{id}: {title}" for id, title in present.items()}}}
    )
    verdict = _select("Verdict", "data-key", {"verdict": {"": "all"} | {name: HEADINGS[name] for name in verdicts}})
    orders = {"": "what fails first", "place": "as in the notes", "residual": "largest residual first"}
    return source + verdict + _select("Order", "data-sort", {"": orders})


def _select(label, attribute, options):
    ((key, choices),) = options.items()
    listed = "".join(f'<option value="{value}">{text}</option>' for value, text in choices.items())
    return f'<label class="choice">{label} <select {attribute}="{key}">{listed}</select></label>'


def _in_order(records, source):
    rank = list(HEADINGS)
    return sorted((row for row in records if row["source"] == source), key=lambda row: rank.index(row["verdict"]))


def _counts(records, source):
    counts = Counter(record["verdict"] for record in records if record["source"] == source)
    return "(" + ", ".join(f"{counts[verdict]} {verdict}" for verdict in HEADINGS if counts[verdict]) + ")"


def _article(record, place):
    verdict = record["verdict"]
    right = mathematics.equation(record["correct_latex"]) if record["correct_latex"] else ""
    notes = [
        ("right" if verdict == "fails" else "condition", right + mathematics.prose(record["correct"])),
        (
            "check values" if verdict == "holds" else "smallest counterexample",
            mathematics.prose(record["counterexample"]),
        ),
    ]
    listed = "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in notes if text)
    agreed = "" if verdict == record["expected"] else f" (expected: {record['expected']})"
    return (
        f'<article id="{record["id"]}" data-item data-source="{record["source"]}" data-verdict="{verdict}" '
        f'data-place="{place}" data-residual="{-record["residual"]}" style="--c: var(--{verdict})"><header>'
        f'<h3>{record["id"]}</h3><span class="verdict {verdict}">{HEADINGS[verdict]}{agreed}</span>'
        f'<span class="numbers soft">{_numbers(record)}</span></header>{mathematics.equation(record["latex"])}'
        f"<p>{mathematics.prose(record['statement'])}</p>{f'<dl>{listed}</dl>' if listed else ''}</article>\n"
    )


def _numbers(record):
    names = {"residual": "residual", "residual_outside": "off the condition", "residual_corrected": "corrected"}
    return ", ".join(f"{name} {record[key]:.0e}" for key, name in names.items() if record[key] is not None)

"""The judged rows as one HTML page that needs no network: every equation is drawn as a path."""

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath

HEADINGS = {"fails": "fails", "conditional": "holds under a condition", "holds": "holds"}
SIZE = 24.0

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5b6168; --line: #d9dce0; --paper: #fff; --card: #f7f8f9;
  --fails: #b3261e; --conditional: #9a6700; --holds: #1a7f37; --undecided: #6e40c9 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --soft: #9aa1a9; --line: #33383e; --paper: #15181b;
  --card: #1c2024; --fails: #ff8a80; --conditional: #e3b341; --holds: #56d364; --undecided: #bc8cff } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 62rem; padding: 1.5rem }
h1 { font-size: 1.6rem; margin: 0 0 .3rem } h2 { margin: 2.4rem 0 .2rem; font-size: 1.25rem }
p { margin: .3rem 0 } .soft { color: var(--soft) } nav a { margin-right: 1.2rem; color: inherit }
article { border: 1px solid var(--line); border-left: 5px solid var(--c); border-radius: 6px; background: var(--card);
  padding: .7rem 1rem; margin: .7rem 0 }
article header { display: flex; gap: .8rem; align-items: baseline; flex-wrap: wrap }
article header b { font-size: 1.05rem } .verdict { color: var(--c); font-weight: 600 }
.numbers { margin-left: auto; font: 13px ui-monospace, monospace; color: var(--soft) }
svg { max-width: 100%; height: auto; display: block; margin: .5rem 0; fill: var(--ink) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; margin: .4rem 0 0 }
dt { color: var(--soft) } dd { margin: 0 }
"""


def render(records: Sequence[Mapping[str, Any]], sources: Mapping[str, str]) -> str:
    """The page: sources in order, in each the false rows first, then the conditional ones."""
    present = {id: title for id, title in sources.items() if any(record["source"] == id for record in records)}
    links = "".join(f'<a href="#{id}">{id} {_counts(records, id)}</a>' for id in present)
    sections = "".join(
        f'<h2 id="{id}">{id}: {html.escape(title)}</h2><p class="soft">{_counts(records, id)}</p>'
        + "".join(_article(record) for record in _in_order(records, id))
        for id, title in present.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Identities of backpropagation through time</title><style>{STYLE}</style>"
        f"<h1>Identities of backpropagation through time</h1><p>{len(records)} equations as the notes write them, "
        "each judged by running it in float64: the residual is ‖written − true‖ / max(‖written‖, ‖true‖), the worst of "
        f'three random instances.</p><nav class="soft">{links}</nav>{sections}</html>\n'
    )


def _in_order(records, source):
    rank = list(HEADINGS)
    mine = [record for record in records if record["source"] == source]
    return sorted(mine, key=lambda record: rank.index(record["verdict"]) if record["verdict"] in rank else -1)


def _counts(records, source):
    counts = Counter(record["verdict"] for record in records if record["source"] == source)
    return "(" + ", ".join(f"{counts[verdict]} {verdict}" for verdict in HEADINGS if counts[verdict]) + ")"


def _article(record):
    verdict = record["verdict"]
    notes = [("right" if verdict == "fails" else "condition", record["correct"])]
    notes.append(("check values" if verdict == "holds" else "smallest counterexample", record["counterexample"]))
    listed = "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in notes if text)
    agreed = "" if verdict == record["expected"] else f" (expected: {record['expected']})"
    return (
        f'<article id="{record["id"]}" style="--c: var(--{verdict})"><header><b>{record["id"]}</b>'
        f'<span class="verdict">{HEADINGS.get(verdict, verdict)}{agreed}</span>'
        f'<span class="numbers">{_numbers(record)}</span></header>{equation(record["latex"])}'
        f"<p>{html.escape(record['statement'])}</p>{f'<dl>{listed}</dl>' if listed else ''}</article>"
    )


def _numbers(record):
    names = {"residual": "residual", "residual_outside": "off the condition", "residual_corrected": "corrected"}
    return ", ".join(f"{name} {record[key]:.0e}" for key, name in names.items() if record[key] is not None)


def equation(latex: str) -> str:
    """Mathtext as one SVG path, with the source as its accessible name."""
    outline = TextPath((0, 0), f"${latex}$", size=SIZE, prop=FontProperties(math_fontfamily="cm"))
    points = outline.vertices[outline.codes != Path.CLOSEPOLY]  # their box holds the outline
    (left, bottom), (width, height) = points.min(axis=0) - 2, np.ptp(points, axis=0) + 4
    title = html.escape(latex, quote=True)
    return (
        f'<svg role="img" aria-label="{title}" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="{left:.1f} {-(bottom + height):.1f} {width:.1f} {height:.1f}"><path d="{_commands(outline)}"/></svg>'
    )


def _commands(outline):
    letters = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}
    parts = []
    for points, code in outline.iter_segments(simplify=False, curves=True):
        flipped = np.reshape(points, (-1, 2)) * (1, -1)
        numbers = "" if code == Path.CLOSEPOLY else " ".join(f"{value:.2f}" for value in flipped.ravel())
        parts.append(letters[code] + numbers)
    return "".join(parts)

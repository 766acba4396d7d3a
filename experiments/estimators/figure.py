"""One figure: the cosine of every method beside its price."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import captions, files

COLOURS = {"exact": "#1f5f99", "unbiased": "#3a9d5d", "biased": "#d1801f"}
WORDS = {"font.size": 14}


def plot(results: dict[str, Any], path: Path) -> None:
    """Left: cosine of one estimate. Right: flops and memory over those of bptt. PNG at `path`."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter

    rows = list(results.values())
    y, reference = np.arange(len(rows))[::-1], results["bptt"]
    with matplotlib.rc_context(WORDS):
        figure = Figure(figsize=(16, 2 + 0.36 * len(rows)), layout="constrained")
        figure.suptitle(
            "How good is one estimate of the gradient, and what does it cost?", fontsize=20, fontweight="bold"
        )
        quality, price = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))
        colours = [COLOURS[str(row.claim)] for row in rows]
        quality.barh(y, [float(row.cosine) for row in rows], color=colours, height=0.7)
        for at, row in zip(y, rows, strict=True):
            quality.text(max(float(row.cosine), 0) + 0.015, at, f"{float(row.cosine):.2f}", va="center", fontsize=12)
        quality.set_yticks(y, list(results))
        quality.set(xlim=(min(0, *(float(row.cosine) for row in rows)), 1.12), xlabel="cosine to the exact gradient")
        for marker, label, values in (
            ("o", "flops", [row.flops / reference.flops for row in rows]),
            ("s", "memory", [row.bytes / reference.bytes for row in rows]),
        ):
            filled = colours if marker == "o" else "none"
            price.scatter(values, y, marker=marker, s=70, facecolors=filled, edgecolors=colours, linewidths=1.8)
            price.scatter([], [], marker=marker, s=70, facecolors="0.3" if marker == "o" else "none",
                          edgecolors="0.3", label=label)  # fmt: skip
        price.set(xscale="log", xlabel="of one estimate, over those of bptt")
        price.axvline(1, color="0.5", linewidth=1)
        price.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
        claims = [Patch(color=colour, label=claim) for claim, colour in COLOURS.items()]
        quality.legend(handles=claims, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
        quality.set_ylim(-0.6, len(rows) - 0.4)
        price.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        for ax in (quality, price):
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(axis="x", color="0.9")
            ax.set_axisbelow(True)
        captions.add_caption(figure, _caption(rows), 13)
        files.write_figure(path, figure, dpi=90)


def _caption(rows):
    draws = max(int(row.keys) for row in rows)
    return (
        "A tanh net that is asked for its inputs of three steps before, float64. Random methods: mean cosine of one"
        f" draw, of {draws}. Flops a step are counted in the traced program; memory is what the compiled one holds"
        " beside arguments and result. Unbiased methods have a cosine below 1 because one draw scatters; their mean is"
        " the gradient."
    )

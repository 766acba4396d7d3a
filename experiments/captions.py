"""A caption below a figure, as wide as it is."""

import textwrap
from typing import Any

POINTS = 72  # an inch
WIDTH = 0.53  # of a letter, over its height: mean of DejaVu Sans


def add_caption(figure: Any, text: str, size: float = 12.5) -> None:
    """`text` in lines of the figure's width, below all axes (of a figure in constrained layout)."""
    letters = int(0.97 * figure.get_figwidth() * POINTS / (WIDTH * size))
    figure.supxlabel("\n".join(textwrap.wrap(text, letters)), fontsize=size, x=0.01, ha="left")

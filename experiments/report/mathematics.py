"""Equations of LaTeX source in a page: MathML by latex2mathml; where that is not installed, outlines by matplotlib."""

import html
import re
from xml.etree import ElementTree

import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath

try:
    from latex2mathml.converter import convert
except ImportError:  # an extra; what was judged is shown without it
    convert = None

SIZE = 24.0  # of an outline, in pixels
REWRITTEN = {r"\Vert": r"\|"}  # what latex2mathml does not know, or takes for a letter
SPACES = {r"\ ", r"\quad"}
RELATIONS = {"=", "+", r"\in", r"\sim", r"\approx", r"\leq", r"\neq", r"\hookrightarrow", r"\rightarrow", r"\to"}
RELATIONS |= {r"\Rightarrow", r"\Leftrightarrow"}
SHORT = 8  # letters of source
OPEN, CLOSE = ("{", "(", "[", r"\{", r"\left"), ("}", ")", "]", r"\}", r"\right")
LIMITS = {"lim", "max", "∑", "∏"}  # operators whose indices stand below and above
PLACES = {"msub": "munder", "msubsup": "munderover"}


def equation(latex: str) -> str:
    """A paragraph whose lines break between the pieces of a long equation; the source of each is its text."""
    if convert is None:
        return f'<p class="equation">{_outline(latex)}</p>'
    return f'<p class="equation">{"<wbr>".join(map(_mathml, split(latex)))}</p>'


def prose(text: str) -> str:
    """Text with h_t, h_{t−1} and w^2 in it as HTML."""
    marked = re.sub(
        r"(?<=\S)_(\{[^{}]*\}|[A-Za-z0-9]+)", lambda index: f"<sub>{index[1].strip('{}')}</sub>", html.escape(text)
    )
    return re.sub(r"(?<=\S)\^(\{[^{}]*\}|[A-Za-z0-9]+)", lambda index: f"<sup>{index[1].strip('{}')}</sup>", marked)


def split(latex: str) -> list[str]:
    """The source in pieces: but for the first, each begins with a relation, a + or a space outside all brackets.

    A relation stays beside what is short before it.
    """
    words = lambda text: r"\ ".join(rf"\mathrm{{{word}}}" for word in text[1].split(r"\ "))
    latex = re.sub(r"\\mathrm\{([^{}]*)\}", words, latex)
    pieces, depth = [""], 0
    for token in re.findall(r"\\[A-Za-z]+|\\.|.", latex):
        length = len(re.sub(r"\\ |\\quad", "", pieces[-1]))
        if depth == 0 and ((token in SPACES and length) or (token in RELATIONS and length > SHORT)):
            pieces.append("")
        depth += (token in OPEN) - (token in CLOSE)
        pieces[-1] += token
    return pieces


def _mathml(latex):
    source = "".join(REWRITTEN.get(token, token) for token in re.findall(r"\\[A-Za-z]+|\\.|.", latex))
    root = ElementTree.fromstring(re.sub(r' (xmlns|display)="[^"]*"', "", convert(source, display="block")))
    root.attrib.update(displaystyle="true", alttext=latex)
    for element in root.iter():
        _join_letters(element)
        if element.tag in PLACES and element[0].text in LIMITS:
            element.tag = PLACES[element.tag]
    first = next(root.iter("mo"), None)
    if first is not None and first.text in ("+", "="):
        first.set("form", "infix")  # spaced as between two terms, though it begins a piece
    return ElementTree.tostring(root, encoding="unicode")


def _join_letters(element):
    """The upright letters of a word as one name."""
    last = None
    for child in list(element):
        upright = child.tag == "mi" and child.get("mathvariant") == "normal"
        if upright and last is not None:
            last.text += child.text
            element.remove(child)
        else:
            last = child if upright else None


def _outline(latex):
    """Mathtext as one SVG path, with the source as its accessible name; the source itself where mathtext gives up."""
    try:
        outline = TextPath((0, 0), f"${latex}$", size=SIZE, prop=FontProperties(math_fontfamily="cm"))
    except ValueError:
        return f"<code>{html.escape(latex)}</code>"
    points = outline.vertices[outline.codes != Path.CLOSEPOLY]  # their box holds the outline
    (left, bottom), (width, height) = points.min(axis=0) - 2, np.ptp(points, axis=0) + 4
    return (
        f'<svg role="img" aria-label="{html.escape(latex)}" width="{width:.0f}" height="{height:.0f}" '
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

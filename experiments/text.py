"""Real text as symbols: the documentation that CPython carries, or any file."""

import re
import string
from pathlib import Path

import numpy as np

ALPHABET = " " + string.ascii_lowercase

FALLBACK = """
A recurrent network reads one symbol at a time and keeps what it has read in a state. To learn, it must know how each
earlier use of its weights changed each later error, and that knowledge travels back through the same chain of steps
that carried the state forward. Every step multiplies it by a matrix. If the matrices shrink most directions, the far
past stops counting, and the network learns only what the last few symbols can teach it. If they stretch, the sum is
ruled by its most remote terms and a small step in the weights becomes a leap. Between the two lies a narrow band in
which a gradient can be both large enough to use and small enough to trust. The point of measuring is to know on which
side one stands before spending a week on training. One looks at the matrices themselves, at the product of any
stretch of them, and at the size of every term in the sum, and then one can say how far back the network really sees.
"""


def load_text(path: str | None = None) -> str:
    """Letters and single spaces, lower case: of the file, or of CPython's own documentation text.

    Raises:
      ValueError: a file that cannot be read as text, is empty, or holds fewer than two different symbols.
    """
    if path is None:
        return clean(_documentation())
    try:
        text = clean(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ValueError(f"text: cannot read {path}: {reason}") from None
    if len(set(text)) < 2:
        raise ValueError(f"text: {path} has {len(set(text))} different letters or spaces, expected at least 2")
    return text


def clean(text: str) -> str:
    """Every run of other characters becomes one space; lower case; 27 symbols at most."""
    return re.sub("[^A-Za-z]+", " ", text).lower()


def encode(text: str) -> np.ndarray:
    """Indices into ALPHABET, [len(text)] int32."""
    index = {symbol: i for i, symbol in enumerate(ALPHABET)}
    return np.array([index[symbol] for symbol in text], np.int32)


def _documentation():
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out
        return FALLBACK
    return "\n".join(topics[name] for name in sorted(topics))

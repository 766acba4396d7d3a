"""Real text as symbols, in any script: the documentation that CPython carries, or any file."""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CLASSES = {"L": "letters", "N": "digits", "P": "punctuation", "S": "symbols"}  # by Unicode's category
KEEP = ("letters", "digits", "punctuation", "symbols", "case")  # what may stay; letters always do
MOST = 1000  # symbols of an alphabet: the weights of a net that reads it grow in proportion; the rest is RARE
RARE = "\ufffd"
SHOWN = 40  # symbols of an alphabet in a printed line

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


class Alphabet(NamedTuple):
    """What the symbols of a text mean, as the results keep it."""

    characters: np.ndarray  # [M] of one character each, by code point: space comes first
    said: np.ndarray  # [] the same in a line, and what of the text was dropped


class Text(NamedTuple):
    """A text of S symbols."""

    symbols: np.ndarray  # [S] int32, indices into the alphabet
    alphabet: Alphabet


def load_text(path: str | None = None, keep: Collection[str] = ()) -> Text:
    """Letters of any script and single spaces, case folded: of the file, or of CPython's own documentation text.

    The alphabet is that of the whole text, also where an experiment reads a part of it.

    Args:
      path: a UTF-8 file, with or without a byte order mark.
      keep: what stays besides letters, of KEEP.

    Raises:
      ValueError: a file that cannot be read as text, or leaves fewer than two symbols.
    """
    kept = frozenset({"letters", *keep})
    cleaned, counts = clean(_documentation() if path is None else _read(path), kept)
    dropped = Counter({name: count for name, count in counts.items() if name not in (*kept, "white space")})
    said = _say_dropped(dropped, counts.total())
    if len(set(cleaned)) < 2:
        raise ValueError(f"text: {path} leaves {len(set(cleaned))} different symbols, expected at least 2 ({said})")
    cleaned, replaced = _replace_rare(cleaned)
    characters, symbols = encode(cleaned)
    line = f"text: {len(characters):,} symbols: {_show(characters)}; {replaced}{said}"
    return Text(symbols, Alphabet(characters, np.array(line)))


def clean(text: str, kept: frozenset[str] = frozenset({"letters"})) -> tuple[str, Counter]:
    """(The text in which every run of other characters is one space, how many characters of each class it had).

    Canonically equivalent texts give the same: NFC of the folded NFD. A combining mark goes with the character it
    stands on. Format characters (joiners, soft hyphens, directions) are dropped without a space in their place.
    The classes are those of CLASSES, "white space" and "other"; they are counted in the normalised text and add up
    to it and the format characters. Kept characters, and one space for each run of the rest, are what is returned.
    """
    visible = text.translate({ord(character): None for character in set(text) if _is_format(character)})
    decomposed = unicodedata.normalize("NFD", visible)
    folded = unicodedata.normalize("NFC", decomposed if "case" in kept else decomposed.casefold())
    codes = folded.translate({ord(character): _code(character) for character in set(folded)})
    codes = re.sub("([LNPS])M+", lambda found: found[1] * len(found[0]), codes).replace("M", "O")
    names = CLASSES | {" ": "white space", "O": "other"}
    counts = Counter({names[code]: count for code, count in Counter(codes).items()})
    counts["other"] += len(text) - len(visible)
    wanted = "".join(code for code, name in CLASSES.items() if name in kept)
    runs = re.finditer(f"([{wanted}]+)|[^{wanted}]+", codes)
    return "".join(folded[run.start() : run.end()] if run[1] else " " for run in runs), counts


def encode(text: str) -> tuple[np.ndarray, np.ndarray]:
    """(The alphabet of the text [M], one character each by code point; indices into it [len(text)] int32)."""
    points = np.frombuffer(text.encode("utf-32-le"), "<u4")
    alphabet, symbols = np.unique(points, return_inverse=True)
    return np.array([chr(point) for point in alphabet]), symbols.astype(np.int32)


def decode(symbols: np.ndarray, characters: np.ndarray) -> str:
    """The text of indices [S] into an alphabet [M]."""
    return "".join(characters[symbols])


def take_alphabet(results: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """(The line on the text, if one was read; the results besides the "alphabet")."""
    rest = dict(results)
    alphabet = rest.pop("alphabet", None)
    return [] if alphabet is None else [str(alphabet.said)], rest


def _read(path):
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ValueError(f"text: cannot read {path}: {reason}") from None
    if "\0" in text:
        raise ValueError(f"text: cannot read {path}: not UTF-8 text, it holds NUL bytes")
    return text


def _documentation():
    """In ASCII letters alone: published numbers are of its 27 symbols, without the ß of one example."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out
        return FALLBACK
    text = "\n".join(topics[name] for name in sorted(topics))
    return re.sub(r"(?![a-zA-Z])[^\W\d_]", "\x1a", text)  # SUB, for what was no letter to them


def _is_format(character):
    return unicodedata.category(character) == "Cf" and character != "\u200b"  # which is a space, of no width


def _code(character):
    """L, M, N, P or S, its category; " " for white space; O for anything else."""
    category = unicodedata.category(character)[0]
    if character.isspace() or character == "\u200b":
        return " "
    return category if category in "LMNPS" else "O"


def _replace_rare(text):
    """(The text with its rarest characters as RARE, so that MOST are left; this in words)."""
    counts = Counter(text)
    if len(counts) <= MOST:
        return text, ""
    rare = {character for character, _ in counts.most_common()[MOST - 1 :]}
    times = sum(counts[character] for character in rare)
    said = f"the {len(rare):,} rarest of {len(counts):,} are read as one, {RARE}, {times:,} times; "
    return text.translate({ord(character): RARE for character in rare}), said


def _show(characters):
    seen = ["◌" + each if unicodedata.category(each)[0] == "M" else each for each in characters if each != " "]
    shown = "".join(seen if len(seen) <= SHOWN else [*seen[: SHOWN // 2], "…", seen[-1]])
    return f"space, {shown}" if " " in characters else shown


def _say_dropped(dropped, total):
    parts = ", ".join(f"{name} {count:,}" for name, count in dropped.most_common() if count)
    if not parts:
        return f"nothing dropped of {total:,} characters"
    return f"dropped {dropped.total():,} of {total:,} characters ({parts})"

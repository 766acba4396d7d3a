import re
import sys
import unicodedata

import numpy as np
import pytest

from experiments import text
from experiments.text import Text

ENGLISH = " abcdefghijklmnopqrstuvwxyz"


def load(tmp_path, content, keep=()) -> Text:
    (tmp_path / "t").write_bytes(content if isinstance(content, bytes) else content.encode())
    return text.load_text(str(tmp_path / "t"), keep)


SCRIPTS = {  # what is written: what stays
    "German": ("Größe, Straße 9", "grösse strasse "),
    "decomposed": ("Gro\u0308ße", "grösse"),
    "Turkish": ("İstanbul'da ılık", "i̇stanbul da ılık"),
    "Greek": ("ΟΔΥΣΣΕΥΣ, Ὀδυσσεύς", "οδυσσευσ ὀδυσσεύσ"),
    "Cyrillic": ("Съешь ещё!", "съешь ещё "),
    "Hebrew with points": ("בְּרֵאשִׁית־בָּרָא", "בְּרֵאשִׁית בָּרָא"),
    "Arabic with marks": ("السَّلامُ، عليكم", "السَّلامُ عليكم"),
    "Persian with a joiner": ("می\u200cخواهم", "میخواهم"),
    "Hindi": ("हिन्दी में क्‍या? १२", "हिन्दी में क्या "),
    "Thai with a space of no width": ("ภาษา\u200bไทย", "ภาษา ไทย"),
    "Japanese": ("「日本語」のカード。", " 日本語 のカード "),
    "Korean, decomposed": ("\u1112\u1161\u11ab글", "한글"),
    "soft hyphen": ("Donau\u00addampf", "donaudampf"),
    "emoji": ("a\u2764\ufe0fb👩\u200d👧c", "a b c"),
    "a mark that stands on nothing": ("a \u0301b", "a b"),
    "white space": ("a\r\n\r\n\tb\u2003\u3000c\u2028d", "a b c d"),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_letters_of_any_script_stay(script):
    written, expected = SCRIPTS[script]
    cleaned, _ = text.clean(written)
    assert cleaned == unicodedata.normalize("NFC", expected)
    for form in ("NFC", "NFD"):
        assert text.clean(unicodedata.normalize(form, written))[0] == cleaned


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_character_is_counted(script):
    written, _ = SCRIPTS[script]
    for keep in ((), ("digits",), ("punctuation", "symbols"), text.KEEP):
        kept = frozenset({"letters", *keep})
        cleaned, counts = text.clean(written, kept)
        formats = sum(unicodedata.category(each) == "Cf" and each != "\u200b" for each in written)
        shown = "".join(each for each in written if unicodedata.category(each) != "Cf" or each == "\u200b")
        decomposed = unicodedata.normalize("NFD", shown)
        folded = unicodedata.normalize("NFC", decomposed if "case" in kept else decomposed.casefold())
        assert counts.total() == len(folded) + formats
        stays = sum(count for name, count in counts.items() if name in kept)
        assert len(cleaned) == stays + cleaned.count(" ")
        assert "  " not in cleaned


@pytest.mark.parametrize("script", SCRIPTS)
def test_symbols_are_those_of_the_text(script):
    cleaned, _ = text.clean(SCRIPTS[script][0])
    characters, symbols = text.encode(cleaned)
    assert symbols.dtype == np.int32
    assert list(characters) == sorted(set(cleaned))
    assert text.decode(symbols, characters) == cleaned


@pytest.mark.parametrize(
    ("keep", "expected", "dropped"),
    [
        ((), "a b c d ", "dropped 8 of 13 characters (symbols 3, digits 2, punctuation 2, other 1)"),
        (("digits",), "a 1b½ c d ", "dropped 6 of 13 characters (symbols 3, punctuation 2, other 1)"),
        (("digits", "punctuation"), "a 1b½,c d! ", "dropped 4 of 13 characters (symbols 3, other 1)"),
        (("symbols",), "a + b c d ❤\ufe0f", "dropped 5 of 13 characters (digits 2, punctuation 2, other 1)"),
        (("case", "letters"), "A b c D ", "dropped 8 of 13 characters (symbols 3, digits 2, punctuation 2, other 1)"),
        (text.KEEP, "A +1b½,c D!❤\ufe0f", "dropped 1 of 13 characters (other 1)"),
    ],
)
def test_what_stays_besides_letters(tmp_path, keep, expected, dropped):
    found = load(tmp_path, "A +1b½,c\x01D!❤\ufe0f", keep)
    assert text.decode(found.symbols, found.alphabet.characters) == expected
    assert str(found.alphabet.said).endswith("; " + dropped)


def test_the_line_of_a_text(tmp_path):
    found = load(tmp_path, b"\xef\xbb\xbfOne--two\r\n3 four")
    assert text.decode(found.symbols, found.alphabet.characters) == "one two four"
    assert found.alphabet.said == (
        "text: 9 symbols: space, efnortuw; dropped 3 of 16 characters (punctuation 2, digits 1)"
    )
    assert load(tmp_path, "ab").alphabet.said == "text: 2 symbols: ab; nothing dropped of 2 characters"
    assert str(load(tmp_path, "ก\u200bข").alphabet.said).endswith("; nothing dropped of 3 characters")
    assert load(tmp_path, "कि ").alphabet.said == "text: 3 symbols: space, क◌ि; nothing dropped of 3 characters"


def test_the_rarest_of_many_symbols_are_one(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "MOST", 50)
    written = "".join(chr(0x4E00 + i) * (2 if i < 49 else 1) for i in range(60))
    found = load(tmp_path, written)
    assert len(found.alphabet.characters) == 50
    assert text.decode(found.symbols, found.alphabet.characters) == written[:98] + 11 * text.RARE
    assert found.alphabet.said == (
        "text: 50 symbols: " + "".join(map(chr, range(0x4E00, 0x4E14))) + "…�;"
        " the 11 rarest of 60 are read as one, �, 11 times; nothing dropped of 109 characters"
    )
    assert text.RARE not in load(tmp_path, written[:99]).alphabet.characters  # fifty are not too many


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "leaves 0 different symbols, expected at least 2 (nothing dropped of 0 characters)"),
        (b"\xef\xbb\xbf", "leaves 0 different symbols"),
        (b"aaaa", "leaves 1 different symbols"),
        (b"12345", "leaves 1 different symbols, expected at least 2 (dropped 5 of 5 characters (digits 5))"),
        (b"caf\xe9", "not UTF-8 text"),
        ("text".encode("utf-16"), "not UTF-8 text"),
        ("text".encode("utf-16-le"), "not UTF-8 text, it holds NUL bytes"),
        (None, "Is a directory"),
    ],
)
def test_what_is_no_text_gets_one_line(tmp_path, content, line):
    if content is None:
        (tmp_path / "t").mkdir()
    else:
        (tmp_path / "t").write_bytes(content)
    with pytest.raises(ValueError, match=f"^text: .*{re.escape(line)}"):
        text.load_text(str(tmp_path / "t"))


def test_the_documentation_is_what_published_numbers_were_made_with():
    topics = pytest.importorskip("pydoc_data.topics").topics
    found = text.load_text()
    assert "".join(found.alphabet.characters) == ENGLISH
    assert len(found.symbols) > 300_000
    written = "\n".join(topics[name] for name in sorted(topics))
    assert text.decode(found.symbols, found.alphabet.characters) == re.sub("[^A-Za-z]+", " ", written).lower()


def test_the_built_in_text_stands_in(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    found = text.load_text()
    assert text.decode(found.symbols, found.alphabet.characters) == text.clean(text.FALLBACK)[0]
    assert len(found.symbols) > 800
    assert set(found.alphabet.characters) <= set(ENGLISH)

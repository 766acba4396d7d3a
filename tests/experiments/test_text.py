import sys

import numpy as np

from experiments import text


def test_text_is_letters_and_spaces(tmp_path):
    assert set(text.load_text()) <= set(text.ALPHABET)
    assert len(text.load_text()) > 300_000
    assert set(text.clean(text.FALLBACK)) == set(text.clean(text.FALLBACK)) & set(text.ALPHABET)
    assert len(text.clean(text.FALLBACK)) > 800
    np.testing.assert_array_equal(text.encode(" az"), [0, 1, 26])
    (tmp_path / "t").write_text("\ufeffOne--two\n3 four")
    assert text.load_text(str(tmp_path / "t")) == "one two four"


def test_the_built_in_text_stands_in(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert text.load_text() == text.clean(text.FALLBACK)

import sys

import numpy as np
import pytest

from experiments.harness import QUIET, progress

from .toy import Point


def make_todo(computed, count=3):
    def make(i):
        computed.append(i)
        return Point(np.full(3, i), {"i": np.array(2.5 * i)})

    return {f"point {i} / λ": lambda i=i: make(i) for i in range(count)}


LIKE = Point(0, {"i": 0})


def check(found):
    for i, point in enumerate(found.values()):
        assert isinstance(point, Point)
        np.testing.assert_array_equal(point.numbers, np.full(3, i))
        assert point.more["i"].dtype == np.float64
        assert point.more["i"] == 2.5 * i


def test_a_point_is_computed_once(tmp_path, capsys):
    computed = []
    for _ in range(2):
        said = progress.Progress(tmp_path)
        assert said.seconds_before == 0
        found = said.sweep(make_todo(computed), LIKE)
        assert list(found) == list(make_todo([]))
        check(found)
    assert computed == [0, 1, 2]
    assert said.seconds_before > 0
    lines = capsys.readouterr().err.splitlines()
    assert "point 0 / λ (0 of 3 done)" in lines[0]
    assert "point 2 / λ (2 of 3 done, about 0 s left)" in lines[2]
    assert "3 of 3 points are there already" in lines[3]
    assert len(lines) == 4


def test_without_a_folder_nothing_is_kept_or_said(capsys):
    computed = []
    for _ in range(2):
        check(QUIET.sweep(make_todo(computed), LIKE))
    QUIET("nothing")
    assert computed == [0, 1, 2] * 2
    assert capsys.readouterr() == ("", "")


def shorten(path):
    path.write_bytes(path.read_bytes()[:-40])


def rename_inside(path):
    with np.load(path) as kept:
        np.savez(path, **{**kept, "point": "another"})


def flip_bits(path):
    """In the header of a member: zlib, zipfile and NumPy each have errors of their own for what it then says."""
    content = bytearray(path.read_bytes())
    content[30:120] = bytes(each ^ 0x41 for each in content[30:120])
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [flip_bits, shorten, rename_inside, lambda path: path.write_bytes(b"")])
def test_a_point_that_is_not_whole_or_of_another_name_is_computed_again(spoil, tmp_path):
    progress.Progress(tmp_path).sweep(make_todo([]), LIKE)
    spoil(sorted(tmp_path.iterdir())[1])
    computed = []
    check(progress.Progress(tmp_path).sweep(make_todo(computed), LIKE))
    assert computed == [1]


def test_points_of_another_structure_are_computed_again(tmp_path):
    progress.Progress(tmp_path).sweep(make_todo([]), LIKE)
    computed = []
    progress.Progress(tmp_path).sweep(
        {name: lambda: computed.append(1) or {"a": 1} for name in make_todo([])}, {"a": 0}
    )
    assert computed == [1, 1, 1]


def test_names_that_look_alike_in_a_file_name_are_two_points(tmp_path):
    todo = {name: lambda name=name: (np.array(name),) for name in ("gain 1.5", "gain 1-5", "x" * 90, "x" * 91)}
    for _ in range(2):
        found = progress.Progress(tmp_path).sweep(todo, (0,))
        assert {name: str(point[0]) for name, point in found.items()} == {name: name for name in todo}


def test_on_a_terminal_there_is_a_bar(tmp_path, capsys, monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    computed, said = [], progress.Progress(tmp_path)
    todo = {**make_todo(computed), "last": lambda: said("between") or LIKE}
    found = said.sweep(todo, LIKE)
    assert computed == [0, 1, 2]
    assert len(found) == 4
    error = capsys.readouterr().err
    assert "3/4" in error
    assert "point/s" in error
    assert "s] between\n" in error


def test_an_exception_leaves_the_points_before_it(tmp_path):
    computed = []
    todo = make_todo(computed)
    with pytest.raises(ZeroDivisionError):
        progress.Progress(tmp_path).sweep({**dict(list(todo.items())[:2]), "bad": lambda: 1 // 0}, LIKE)
    progress.Progress(tmp_path).sweep(todo, LIKE)
    assert computed == [0, 1, 2]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (90, "90 s"), (91, "2 min"), (5400, "90 min"), (7300, "2 h")]
)
def test_time_left_in_words(seconds, words):
    assert progress.in_words(seconds) == words

import sys

import numpy as np
import pytest

from experiments import precision

from .runs import WITH_SUMMARY, run_tiny


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return run_tiny("precision", "--hidden 6 --length 24 --records 12 --gain 1.5", tmp_path_factory.mktemp("precision"))


@pytest.mark.slow
def test_a_small_run_says_what_it_found(small):
    assert small.code == 0
    assert small.files == WITH_SUMMARY
    for words in ("graded, float64 ", "rule of thumb", "graded float64 against 250 digits"):
        assert words in small.said


def test_who_keeps_the_digits(small):
    arrays, summary = small.arrays, small.summary
    assert arrays["graded, float64.kept"].shape == (12, 6)
    assert arrays["graded, float64.kept"].min() > 9
    assert arrays["graded, float32.kept"].min() > 2
    assert arrays["assembled, float32.kept"][-1, -1] < 1
    assert arrays["assembled, float32.kept"][0].min() > 2
    assert summary["error_against_mpmath"] < 1e-10
    for name in precision.COLOURS:
        rates = arrays["graded, float64.log_values"][-1] / 24
        eps = np.finfo(name.split(", ")[1]).eps
        assert summary[name]["rule_of_thumb"] == pytest.approx(-np.log(eps) / (rates[0] - rates[-1]), rel=1e-3)


def test_digits_kept():
    truth = np.array([0.0, -900.0, -np.inf, -np.inf, 1.0, 2.0])
    got = np.array([np.log1p(1e-5), -900.0, -np.inf, -30.0, np.nan, 50.0])
    np.testing.assert_allclose(precision.digits_kept(got, truth), [5, 16, 16, 0, 0, 0], atol=1e-9)


def fake_digits(last):
    """Of two values at four records; `last` has those kept of the smaller one."""
    kept = np.stack([np.full(4, 15.0), np.array(last, float)], axis=1)
    return precision.Digits(np.array([10, 20, 30, 40]), kept, np.zeros_like(kept), np.array([np.inf, 12.0]))


@pytest.mark.parametrize(
    ("last", "lost_at"),
    [([9, 9, 9, 9], None), ([9, 9, 0, 0], 30), ([9, 0, 9, 0], 40), ([0, 0, 0, 0], 10), ([0, 9, 9, 9], None)],
)
def test_when_the_smallest_value_is_lost_for_good(last, lost_at):
    summary = precision.judge(fake_digits(last))
    assert summary["smallest_lost_at"] == lost_at
    assert summary["right_at_end"] == 1 + (last[-1] > 0)


def test_plot_takes_arrays(tmp_path):
    precision.plot(dict.fromkeys(precision.COLOURS, fake_digits([9, 9, 0, 0])), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_without_mpmath_the_check_is_skipped(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpmath", None)
    check = precision.Check(np.array(precision.check_by_arbitrary_precision(1.5, 0)))
    results = dict.fromkeys(precision.COLOURS, fake_digits([9, 9, 9, 9])) | {precision.CHECK: check}
    summary = precision.summarise(results, precision.Config())
    assert summary.lines[-1] == "graded float64 not checked in arbitrary precision: mpmath is not installed"
    assert np.isnan(summary.numbers["error_against_mpmath"])

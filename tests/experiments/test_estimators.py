"""The table of estimators, on a few methods in small: claims are decided by numbers, not by names."""

import numpy as np
import pytest

from experiments import estimators
from experiments.estimators import methods
from tests.experiments.runs import WITH_SUMMARY, run_tiny

SHOWN = "bptt", "double sum", "UORO", "window, K = 8", "synthetic, K = 8"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    make = methods.make_methods
    with pytest.MonkeyPatch.context() as patch:
        few = lambda *data: {name: method for name, method in make(*data).items() if name in SHOWN}
        patch.setattr(estimators, "make_methods", few)
        out = tmp_path_factory.mktemp("estimators") / "run"
        return run_tiny("estimators", "--size 2 --length 16 --keys 40", out, promotion="standard")


def test_a_run_leaves_the_table(tiny):
    assert (tiny.code, tiny.files) == (0, WITH_SUMMARY)
    assert tiny.said.splitlines()[-1] == "every claim holds"
    assert list(tiny.summary) == list(SHOWN)
    assert tiny.summary["bptt"]["flops_over_bptt"] == tiny.summary["bptt"]["memory_over_bptt"] == 1
    assert tiny.summary["double sum"]["bias"] < 1e-14
    assert tiny.summary["double sum"]["flops_over_bptt"] > 3
    assert tiny.summary["UORO"]["draws"] == 40
    assert 1e-3 < tiny.summary["window, K = 8"]["bias"] < 1
    assert tiny.summary["synthetic, K = 8"]["bias"] < tiny.summary["window, K = 8"]["bias"]


def row(claim, *, bias=0.1, z_score=np.nan, keys=0):
    numbers = {name: np.array(1.0) for name in estimators.Row._fields}
    return estimators.Row(
        **numbers | {"claim": np.array(claim), "bias": np.array(bias), "z_score": np.array(z_score), "keys": keys}
    )


@pytest.mark.parametrize(
    ("found", "holds"),
    [
        (row("exact", bias=1e-14), True),
        (row("exact", bias=1e-8), False),
        (row("exact", bias=np.nan), False),
        (row("unbiased", z_score=3.9, keys=9), True),
        (row("unbiased", z_score=-4.1, keys=9), False),
        (row("unbiased", keys=9), False),
        (row("biased"), True),
        (row("biased", bias=1e-14), False),
    ],
)
def test_a_claim_is_held_against_the_numbers(found, holds):
    assert estimators.judge(found, row("exact"))["holds"] is holds
    summary = estimators.summarise({"bptt": row("exact", bias=0.0), "one": found}, estimators.Config())
    assert summary.exit_code == (0 if holds else 1)
    assert ("NOT as claimed: one" in summary.lines[-1]) is not holds


def test_a_length_that_windows_do_not_fill_is_one_line():
    with pytest.raises(ValueError, match="length: got 17, expected a multiple of 8"):
        estimators.run(estimators.Config(length=17))

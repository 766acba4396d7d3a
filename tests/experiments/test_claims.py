import numpy as np
import pytest
import scipy.stats

from experiments import claims
from experiments.claims import Claim, Interval


def interval(low, high, keys=5):
    return Interval((low + high) / 2, low, high, keys)


@pytest.mark.parametrize(
    ("found", "low", "high", "verdict"),
    [
        (interval(0.1, 0.3), 0, np.inf, "holds"),
        (interval(-0.1, 0.3), 0, np.inf, "cannot tell with 5 keys"),
        (interval(-0.3, -0.1), 0, np.inf, "fails"),
        (interval(0.1, 0.3), -np.inf, 0.2, "cannot tell with 5 keys"),
        (interval(0.1, 0.3), -np.inf, 0, "fails"),
        (interval(0.1, 0.3), 0, 0.4, "holds"),
        (interval(0, 0), 0, np.inf, "cannot tell with 5 keys"),
        (interval(0, 0), -np.inf, 0, "cannot tell with 5 keys"),
        (interval(np.nan, np.nan), 0, np.inf, "cannot tell: a key has no number"),
        (Interval(2.0, np.nan, np.nan, 1), 0, np.inf, "cannot tell with 1 keys"),
        (interval(1, np.inf), 0, np.inf, "holds"),
    ],
)
def test_verdicts(found, low, high, verdict):
    claim = Claim("it is so", "how much, nats", found, low, high)
    assert claims.decide(claim) == verdict
    first, second = claims.in_words([claim])
    assert first == f"{verdict.upper()}: it is so"
    assert f"{found.keys} keys" in second
    assert ("above" in second, "below" in second) == (low > -np.inf, high < np.inf)
    (numbers,) = claims.as_numbers([claim])
    assert numbers["verdict"] == verdict
    assert numbers["found"]["keys"] == found.keys


@pytest.mark.parametrize("keys", [3, 10])
def test_intervals_of_means_cover(keys):
    """Of 400 experiments, 95 % within four standard errors."""
    found = [claims.mean_interval(row) for row in np.random.default_rng(1).normal(0.5, 2.0, (400, keys))]
    share = np.mean([each.low <= 0.5 <= each.high for each in found])
    assert abs(share - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 400)
    assert all(each.keys == keys and each.low < each.value < each.high for each in found)


def test_the_interval_of_few_or_failed_keys_is_unknown():
    for values in ([1.0], [1.0, np.inf], [1.0, np.nan, 2.0]):
        found = claims.mean_interval(values)
        assert np.isnan([found.low, found.high]).all()
        assert found.keys == len(values)


@pytest.mark.parametrize("keys", [5, 20])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_intervals_of_shares_cover_exactly(share, keys):
    chance = scipy.stats.binom(keys, share)
    covered = 0.0
    for count in range(keys + 1):
        found = claims.share_interval(count, keys)
        covered += chance.pmf(count) * (found.low <= share <= found.high)
    assert covered >= 0.95


def test_more_often_is_fishers_exact_test():
    """Of 3 + 3 keys, all against none: 1 of the 20 ways to choose three."""
    assert claims.more_often(3, 3, 0, 3) == pytest.approx(1 / 20)
    assert claims.more_often(1, 3, 1, 3) > 0.5
    assert claims.more_often(0, 3, 3, 3) == pytest.approx(1)


def test_students_interval_by_its_table():
    found = claims.mean_interval([1.0, 2.0, 3.0])
    half = 4.302653 / np.sqrt(3)  # t of two degrees of freedom at .975, a standard deviation of 1
    np.testing.assert_allclose(found[:3], [2, 2 - half, 2 + half], rtol=1e-6)

"""Hypotheses as people state them: the number that decides one, its interval over keys, and the verdict it allows."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

LEVEL = 0.95  # of every interval


class Interval(NamedTuple):
    """A number and where it may lie, from independent keys."""

    value: float
    low: float
    high: float
    keys: int


class Claim(NamedTuple):
    """A hypothesis, stated before the run: the number lies between low and high."""

    hypothesis: str  # in words
    number: str  # what decides it, with its unit
    found: Interval
    low: float = -np.inf
    high: float = np.inf


def mean_interval(values: Any) -> Interval:
    """The mean of values [K] with Student's t interval; NaN bounds where one is not finite or K < 2."""
    values = np.asarray(values, float)
    keys = len(values)
    if keys < 2 or not np.isfinite(values).all():
        return Interval(float(np.mean(values)), np.nan, np.nan, keys)
    mean = float(np.mean(values))
    half = float(scipy.stats.t.ppf((1 + LEVEL) / 2, keys - 1) * np.std(values, ddof=1) / np.sqrt(keys))
    return Interval(mean, mean - half, mean + half, keys)


def share_interval(count: int, keys: int) -> Interval:
    """The share count/K with the exact interval of a binomial (Clopper & Pearson 1934)."""
    low, high = scipy.stats.binomtest(count, keys).proportion_ci(LEVEL, method="exact")
    return Interval(count / keys, float(low), float(high), keys)


def more_often(count: int, keys: int, other: int, other_keys: int) -> float:
    """p of Fisher's exact test: how likely by chance count/keys would exceed other/other_keys by as much."""
    table = [[count, keys - count], [other, other_keys - other]]
    return float(scipy.stats.fisher_exact(table, alternative="greater").pvalue)


def decide(claim: Claim) -> str:
    """ "holds" where the whole interval is inside (low, high), "fails" where none of it is, else "cannot tell"."""
    found, (low, high) = claim.found, (claim.low, claim.high)
    if (found.low > low or low == -np.inf) and (found.high < high or high == np.inf):
        return "holds"  # a tie at a bound does not
    if found.high < low or found.low > high:
        return "fails"
    return f"cannot tell with {found.keys} keys" if np.isfinite(found.value) else "cannot tell: a key has no number"


def in_words(claims: Sequence[Claim]) -> list[str]:
    """Of each claim a line with the hypothesis and its verdict, and one with the number that decides."""
    lines = []
    for claim in claims:
        found = claim.found
        bounds = [f"above {claim.low:.3g}"] * (claim.low > -np.inf) + [f"below {claim.high:.3g}"] * (
            claim.high < np.inf
        )
        known = found.low < found.high  # of a p there is no interval
        interval = f"{LEVEL:.0%} interval {found.low:.3g} to {found.high:.3g}, " * known
        lines.append(f"{decide(claim).upper()}: {claim.hypothesis}")
        lines.append(
            f"    {claim.number}: {found.value:.3g} ({interval}{found.keys} keys); expected {' and '.join(bounds)}"
        )
    return lines


def as_numbers(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """The claims for a summary's file."""
    return [{**claim._asdict(), "found": claim.found._asdict(), "verdict": decide(claim)} for claim in claims]

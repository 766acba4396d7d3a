"""A slope from central differences at several sizes, with an error of its own: it trusts no rule of differentiation."""

import numpy as np

RATIO = 4.0  # of one difference's size to the next
SETTLED = 1e-2  # relative: smaller differences agree to this, beside their rounding
SIZES = {8: (1e-2, 10), 4: (0.25, 7)}  # bytes of a float: the largest size, and how many


def sizes_of(dtype: np.dtype) -> np.ndarray:
    """The sizes e of the differences (C(θ + e v) − C(θ − e v)) / 2e, v of the size of θ."""
    largest, count = SIZES.get(dtype.itemsize, SIZES[4])
    return largest / RATIO ** np.arange(count)


def extrapolate(ahead: np.ndarray, behind: np.ndarray, sizes: np.ndarray, noise: float) -> tuple[float, float]:
    """Ridders' table of central differences: (the entry of least error, that error).

    Where smaller differences say something else than that entry, the function bends at every size tried, as along a
    chaotic trajectory: the error is then infinite.

    Reference: Ridders (1982), Advances in Engineering Software 4.
    """
    with np.errstate(all="ignore"):
        plain = column = (ahead - behind) / (2 * sizes)
        best, least, last = np.nan, np.inf, 0
        rounding = noise / sizes
        for order in range(1, len(sizes)):
            weight = RATIO ** (2 * order)
            new = (weight * column[1:] - column[:-1]) / (weight - 1)
            error = np.maximum(np.abs(new - column[1:]), np.abs(new - column[:-1])) + rounding[order:]
            error = np.where(np.isfinite(error), error, np.inf)
            if np.min(error) < least:
                place = int(np.argmin(error))
                best, least, last = new[place], error[place], place + order  # made of sizes up to `last`
            column = new
        off = np.abs(plain - best)[last + 1 :]
        settled = np.all(off <= 10 * (least + rounding[last + 1 :]) + SETTLED * np.abs(best))
    return float(best), float(least) if settled else np.inf

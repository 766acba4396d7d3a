"""Derivatives of anybody's forward function along a direction, by differences that know their own error."""

from typing import NamedTuple

import numpy as np

from jaxbptt.derivations._arrays import WIDE, epsilon_of
from jaxbptt.derivations._pairs import Output, Pair

MOST_NUMBERS = 20_000  # arguments in extended precision: NumPy multiplies such matrices slowly
NOISE_POINTS = 9
LOWER, RAISE = WIDE(2) ** -4, WIDE(2) ** 3  # of the step, wherever the error asks for it
KINK_MARGIN = 1.25  # a slope of one side is exactly half a jump from the central one
MOST_STEPS = 6  # tried for one slope


class Slope(NamedTuple):
    """d/de forward(arguments + e v) at e = 0, for a direction v in one leaf."""

    leaf: int
    direction: np.ndarray  # v
    value: np.ndarray  # [m]
    error: np.ndarray  # [m], what the differences and the rounding of forward leave open
    is_settled: bool  # whether smaller steps give the same: not where forward jumps


class Differences(NamedTuple):
    """What slopes are taken of, in the finest precision in which forward runs."""

    pair: Pair
    dtype: np.dtype | None  # of the arguments' copies; None: their own
    epsilon: float  # of the outputs in that precision
    center: np.ndarray  # [m], forward at the arguments
    noise: np.ndarray  # [m], what rounding does to one evaluation
    own_noise: np.ndarray  # [m], the same of forward in its own precision
    target: float  # relative error of a slope below which nothing is gained

    def slope(self, leaf: int, direction: np.ndarray) -> Slope:
        """The fourth-order central difference, its step moved to where its own error is least."""
        step = WIDE(2.0) ** round(np.log2(self.epsilon) / 5)
        best, least, lowered, raised = None, np.inf, False, False
        for _ in range(MOST_STEPS):
            value, moved, kink, floor = found = self._at(leaf, direction, step)
            spread, rounding = np.sum(moved + kink), np.sum(floor)
            size = spread + rounding if np.isfinite(spread) else np.inf
            if best is None or size < least:
                best, least = found, size
            is_rounded = bool(spread <= 3 * rounding)
            if size <= self.target * np.sum(np.abs(value)) or (is_rounded and (lowered or raised)):
                break
            lowered, raised = lowered or not is_rounded, raised or is_rounded
            step = step * (RAISE if is_rounded else LOWER)
        assert best is not None
        value, moved, kink, floor = best
        is_settled = bool(np.sum(moved) <= 0.05 * np.sum(np.abs(value)) + 30 * np.sum(floor))
        return Slope(leaf, direction, value, 2 * (moved + floor) + KINK_MARGIN * kink, is_settled)

    def _at(self, leaf, direction, step):
        """(slope, its change as the step central, half of its jump at e = 0, rounding), each [m].

        With δ(h) = (y(h) − y(−h)) / 2h the slope is (4 δ(h/2) − δ(h)) / 3, beside the same of δ(h) and δ(2h). A jump of
        the slope at e = 0 itself, as of relu at 0, escapes both; with s(h) = (y(h) − 2 y(0) + y(−h)) / h it is
        (16 s(h/2) − 10 s(h) + s(2h)) / 7 up to h⁵. Every slope between its two sides is then right.
        """
        start = self.pair.floats[leaf]
        central, sums = {}, {}
        for times in (WIDE(0.5), WIDE(1), WIDE(2)):
            h = times * step
            with np.errstate(all="ignore"):  # a step may leave the domain; the next is smaller
                up, down = (
                    self.pair.evaluate({leaf: start + signed * direction}, self.dtype).vector for signed in (h, -h)
                )
                central[float(times)], sums[float(times)] = (up - down) / (2 * h), (up - 2 * self.center + down) / h
        with np.errstate(all="ignore"):
            coarse, fine = (4 * central[1.0] - central[2.0]) / 3, (4 * central[0.5] - central[1.0]) / 3
            kink = np.abs(16 * sums[0.5] - 10 * sums[1.0] + sums[2.0]) / 14
            return fine, np.abs(fine - coarse), kink, 6 * self.noise / step


def prepare(
    pair: Pair, output: Output, agreement: np.ndarray, target: float, random: np.random.Generator
) -> Differences:
    """Differences of forward in extended precision where NumPy runs it so, else in float64, else in its own.

    Args:
      output: forward at the arguments in their own precision.
      agreement: [m], how far a finer evaluation may be from `output`.
      target: the relative error that slopes need.
      random: for the directions in which rounding is measured.

    Returns:
      Differences.
    """
    floats = pair.floats
    in_numpy = all(isinstance(pair.leaves[i].given, np.ndarray | np.generic) for i in floats)
    is_small = sum(numbers.size for numbers in floats.values()) <= MOST_NUMBERS
    coarsest = max(epsilon_of(numbers.dtype) for numbers in floats.values())
    dtype: np.dtype | None = None
    center = output
    for candidate in (np.longdouble, np.float64, np.float32)[0 if in_numpy and is_small else 1 :]:
        if epsilon_of(candidate) >= coarsest:
            continue
        try:
            with np.errstate(all="ignore"):
                refined = pair.evaluate(dtype=candidate)
        except Exception:  # whatever a function raises at a dtype that it does not take
            continue
        is_finer = refined.epsilon <= epsilon_of(candidate) and refined.vector.shape == output.vector.shape
        if is_finer and np.all(np.abs(refined.vector - output.vector) <= agreement):
            dtype, center = np.dtype(candidate), refined
            break
    epsilon = center.epsilon if dtype is None else epsilon_of(dtype)
    zero = np.zeros_like(center.vector)
    plain = Differences(pair, dtype, epsilon, center.vector, zero, zero, max(target, 100 * epsilon**0.8))
    noise = _noise(plain, random) + epsilon * np.abs(center.vector)
    off = np.abs(output.vector - center.vector)
    own_noise = noise if dtype is None else output.epsilon * np.abs(output.vector) + off + np.sqrt(np.mean(off**2))
    return plain._replace(noise=noise, own_noise=own_noise)


def entry_sizes(numbers: np.ndarray, is_relative: bool = False) -> np.ndarray:
    """A large change of an entry: its own size, or that of the leaf if it is smaller (`is_relative`: if it is zero)."""
    sizes = np.abs(numbers.astype(WIDE))
    usual = min(np.median(sizes[sizes > 0]), WIDE(1)) if np.any(sizes > 0) else WIDE(1)
    return np.asarray(np.where(sizes > 0, sizes, usual) if is_relative else np.maximum(sizes, usual))


def draw_direction(numbers: np.ndarray, random: np.random.Generator, is_relative: bool = False) -> np.ndarray:
    """±(½ … 3/2) times the size of each entry: none is left out."""
    signs = random.choice([-1, 1], numbers.shape)
    return np.asarray(signs * (0.5 + random.random(numbers.shape)) * entry_sizes(numbers, is_relative))


def _noise(differences, random):
    """[m], the standard deviation of one evaluation's rounding, from fourth differences at nearly equal arguments.

    Reference: Moré & Wild (2011), Estimating computational noise, SIAM J. Sci. Comput. 33.
    """
    pair, step = differences.pair, WIDE(differences.epsilon) ** 0.5
    floats = pair.floats
    directions = {i: draw_direction(numbers, random) for i, numbers in floats.items()}
    with np.errstate(all="ignore"):
        rows = [
            pair.evaluate({i: floats[i] + k * step * v for i, v in directions.items()}, differences.dtype).vector
            for k in range(1, NOISE_POINTS + 1)
        ]
        variance = np.mean(np.diff(rows, 4, axis=0) ** 2, axis=0) / 70  # 70 = 8! / 4!²
    return np.nan_to_num(np.sqrt(variance), nan=0, posinf=0)

"""What is known of the singular values of dh_t/dh_0: laws of products of random matrices, the mean field of tanh."""

from typing import NamedTuple

import numpy as np

from experiments import systems

POINTS = 20_000  # of the quadratures over an angle


class MeanField(NamedTuple):
    """A random tanh net, N → ∞: x = W h + drive, h = tanh x, W of gain g, the drive of variance s."""

    variance: float  # q = E x²
    chi: float  # χ = g² E φ'(x)², by which the mean of σ² grows a step
    kurtosis: float  # μ_2/μ_1² = E φ'⁴ / (E φ'²)²


def mean_field(gain: float, drive: float) -> MeanField:
    """q = g² E tanh²(√q z) + s by bisection, z ~ N(0, 1), and what follows of φ' = sech²."""
    z = np.arange(-9.0, 9.0, 0.01)
    weights = np.exp(-z * z / 2) * (0.01 / np.sqrt(2 * np.pi))
    low, high = 0.0, gain * gain + drive
    for _ in range(200):
        q = (low + high) / 2
        low, high = (q, high) if gain**2 * (weights @ np.tanh(np.sqrt(q) * z) ** 2) + drive > q else (low, q)
    slopes = np.cosh(np.sqrt(low) * z) ** -2.0
    mean = weights @ slopes**2
    return MeanField(low, float(gain**2 * mean), float(weights @ slopes**4 / mean**2))


def critical_gain(drive: float) -> float:
    """The g at which χ = 1 under the drive: 1 without any, above it with."""
    low, high = 0.5, 5.0
    for _ in range(60):
        gain = (low + high) / 2
        low, high = (gain, high) if systems.mean_field_exponent(gain, drive) < 0 else (low, gain)
    return (low + high) / 2


def relative_variance(steps: int, kurtosis: float, *, orthogonal: bool) -> float:
    """Var σ² / (E σ²)² of D_t W … D_1 W, D of φ': t (μ_2/μ_1² − 1 − s_1), s_1 = 0 for orthogonal W, −1 for Gaussian.

    Reference: Pennington, Schoenholz & Ganguli (2017), arXiv:1711.04735, for independent D and W.
    """
    return steps * (kurtosis - 1 if orthogonal else kurtosis)


def fuss_catalan_law(order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(u, density, cumulative) of u = ln σ, σ² by the Fuss–Catalan law of the order t, u ascending.

    σ² = sin^{t+1}((t+1)φ) / (sin φ sin^t(tφ)) has the density sin²φ sin^{t−1}(tφ) / (π sin^t((t+1)φ)), 0 < φ < π/(t+1):
    the limit, N → ∞, of products of t independent Gaussian matrices, and of W^t of one (Alexeev, Götze & Tikhomirov
    2010, arXiv:1002.4442).
    """
    width = np.pi / (order + 1) / POINTS
    angle = (np.arange(POINTS, 0, -1) - 0.5) * width  # from the largest: σ falls with φ
    log_sin = lambda multiple: np.log(np.sin(multiple * angle))
    log_square = (order + 1) * log_sin(order + 1) - log_sin(1) - order * log_sin(order)
    log_density = 2 * log_sin(1) + (order - 1) * log_sin(order) - np.log(np.pi) - order * log_sin(order + 1)
    of_log = 2 * np.exp(log_density + log_square)  # of u: σ² = e^{2u}
    slope = (order + 1) ** 2 / np.tan((order + 1) * angle) - 1 / np.tan(angle) - order**2 / np.tan(order * angle)
    cumulative = np.cumsum(of_log * np.abs(slope) / 2) * width
    return log_square / 2, of_log, cumulative


def second_moments(size: int, steps: int) -> np.ndarray:
    """[t] E tr((PᵀP)²)/N of P = W_t … W_1, real Gaussian W of N(0, 1/N) entries, exact at every N: t + 1 as N → ∞.

    By Wick's theorem for A = PᵀP and the next W: E (tr)² → E (tr A)² + 2 E tr A²/N, E tr A² → E (tr A)²/N + (1 + 1/N)
    E tr A². The first moment is 1 at every N.
    """
    squared_trace, trace_of_square, found = float(size**2), float(size), []
    for _ in range(steps):
        squared_trace, trace_of_square = (
            squared_trace + 2 * trace_of_square / size,
            squared_trace / size + (1 + 1 / size) * trace_of_square,
        )
        found.append(trace_of_square / size)
    return np.array(found)


def log_determinant(size: int) -> tuple[float, float]:
    """(mean, variance) of Σ_i ln σ_i(W) of one Gaussian W, exact at every N; both add up over independent steps."""
    return float(np.sum(systems.gaussian_exponents(size))), float(np.sum(systems.gaussian_variances(size)))


def gated_law(keep: float, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(u, density, cumulative) of u = ln σ of (z I + (1 − z) Q)^t, eigenvalues of Q uniform on the circle, u ascending.

    σ = |z + (1 − z) e^{iθ}|^t, since the matrix is normal; E u = t ln z for z ≥ ½ (Jensen's formula).
    """
    angle = (np.arange(POINTS, 0, -1) - 0.5) * np.pi / POINTS
    step = 1 - 2 * keep * (1 - keep) * (1 - np.cos(angle))
    slope = steps * keep * (1 - keep) * np.sin(angle) / step
    return steps * np.log(step) / 2, 1 / (np.pi * slope), (np.arange(POINTS) + 0.5) / POINTS


def kolmogorov_distance(values: np.ndarray, law: tuple[np.ndarray, np.ndarray, np.ndarray]) -> float:
    """The largest difference between the cumulative distribution of values [n] and a law's."""
    points, _, cumulative = law
    expected = np.interp(np.sort(values), points, cumulative, left=0.0, right=1.0)
    ranks = np.arange(len(values) + 1) / len(values)
    return float(max(np.max(ranks[1:] - expected), np.max(expected - ranks[:-1])))

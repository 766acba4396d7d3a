"""Reference systems: maps, cells and chains whose exponents or singular values are known, to hold the spectra against.

Every map is a `Cell` without inputs (M = 0): its `init` sets (or draws) the params of the reference, its
`initial_state` is a start in general position. Exponents are in nats per step. Reference values are exact unless a
source is named.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, polygamma

from jaxbptt import cells
from jaxbptt.cells import Cell

from . import options

LORENZ_EXPONENTS = (0.9056, 0.0, -14.5723)  # per unit time; Sprott (2003), Chaos and Time-Series Analysis
LORENZ_SUM = -41 / 3  # per unit time: −(σ + 1 + β), exact for the flow
HENON_EXPONENTS = (0.41922, -1.62319)  # published; their sum is ln 0.3 exactly
HENON_DIMENSION = 1.25827  # Kaplan-Yorke
CAT_EXPONENT = float(np.log((3 + 5**0.5) / 2))  # and its negative
CLARK_EXPONENT, CLARK_DIMENSION = 0.309583, 0.287168  # tanh, g = 3, N = 4096: λ_1 and Kaplan-Yorke dimension / N


def logistic(r: float = 4.0) -> Cell:
    """x' = r x (1 − x).  r = 4: λ = ln 2, and exactly ln|dx_t/dx_0| = t ln 2 + ½ ln[x_t (1−x_t) / (x_0 (1−x_0))].

    Reference: Ulam & von Neumann (1947); the second by the conjugation x = sin²(πθ/2) with the tent map.
    """
    return _map(lambda r, x: r * x * (1 - x), r, [0.3])


def tent(slope: float = 1.9) -> Cell:
    """x' = μ min(x, 1 − x).  ln|dx_t/dx_0| = t ln μ exactly.

    μ = 2 shifts one bit out of x at every step, so that a binary float is at 0 after some 50 of them: take μ < 2.
    """
    return _map(lambda slope, x: slope * jnp.minimum(x, 1 - x), slope, [0.3])


def cat_map() -> Cell:
    """x' = A x mod 1, A = [[2, 1], [1, 1]].  A is symmetric: ln σ(t) = ± t ln((3 + √5)/2) exactly.

    Reference: Arnold & Avez (1968).
    """
    return _map(lambda a, x: jnp.mod(a @ x, 1), [[2.0, 1.0], [1.0, 1.0]], [0.3, 0.1])


def henon(a: float = 1.4, b: float = 0.3) -> Cell:
    """(x, y)' = (1 − a x² + y, b x).  1.4, 0.3: λ = 0.41922, −1.62319, dimension 1.25827; their sum is ln b exactly.

    Reference: Hénon (1976); Sprott (2003) for the values.
    """

    def step(params, state):
        x, y = state
        return jnp.stack((1 - params[0] * x * x + y, params[1] * x))

    return _map(step, [a, b], [0.1, 0.1])


def lorenz(dt: float = 0.01, *, sigma: float = 10.0, rho: float = 28.0, beta: float = 8 / 3) -> Cell:
    """One Runge-Kutta step (fourth order) of (x, y, z)˙ = (σ(y − x), x(ρ − z) − y, x y − β z).

    10, 28, 8/3: exponents per unit time, that is per step / dt: 0.9056, 0, −14.5723; their sum −(σ + 1 + β) = −41/3,
    up to the O(dt⁴) of the integrator.

    Reference: Lorenz (1963); Sprott (2003) for the values.
    """

    def velocity(params, state):
        x, y, z = state
        return jnp.stack((params[0] * (y - x), x * (params[1] - z) - y, x * y - params[2] * z))

    def step(params, state):
        h = params[3]
        k_1 = velocity(params, state)
        k_2 = velocity(params, state + h / 2 * k_1)
        k_3 = velocity(params, state + h / 2 * k_2)
        k_4 = velocity(params, state + h * k_3)
        return state + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)

    return _map(step, [sigma, rho, beta, dt], [1.0, 2.0, 20.0])


def _map(step, params, initial):
    """x' = step(params, x) as a cell."""
    params, initial = np.array(params, float), np.array(initial)
    return cells.from_step(
        lambda params, state, x: step(params, state),
        lambda params: jnp.asarray(initial, params.dtype),
        init=lambda key: jnp.asarray(params, jnp.result_type(float)),
        num_inputs=0,
    )


def linear_orthogonal(size: int, gain: float = 1.0) -> Cell:
    """h' = g Q h, Q uniform over the orthogonal group.  σ_i(t) = g^t exactly, i = 1 … N."""
    return _started(cells.linear(0, size, recurrent=cells.orthogonal(gain)))


def linear_normal(eigenvalues: Any) -> Cell:
    """h' = W h, W = Q diag(μ) Qᵀ.  σ_i(t) = |μ_i|^t exactly (as real pairs: [[a, −b], [b, a]] has |μ| = √(a² + b²)).

    Args:
      eigenvalues: μ [N], real.
    """
    eigenvalues = np.asarray(eigenvalues, float)

    def draw(key, shape, dtype):
        q = cells.orthogonal()(key, shape, dtype)
        return (q * jnp.asarray(eigenvalues, dtype)[None, :]) @ q.T

    return _started(cells.linear(0, len(eigenvalues), recurrent=draw))


def symmetric(size: int, radius: float) -> Cell:
    """h' = W h, W symmetric with Gaussian entries, rescaled to ρ(W) = radius.  ‖J_t … J_1‖ = radius^t exactly."""

    def draw(key, shape, dtype):
        gaussian = jax.random.normal(key, shape, dtype)
        w = gaussian + gaussian.T
        return w * (jnp.asarray(radius, dtype) / jnp.max(jnp.abs(jnp.linalg.eigvalsh(w))))

    return _started(cells.linear(0, size, recurrent=draw))


def zero_lstm(size: int, forget_bias: float) -> Cell:
    """An LSTM whose weights are all zero.  With f = sigmoid(forget_bias), output gate ½, and C_t = f^t C_0:
    ln σ(t) = t ln f + ½ ln(1 + ¼ sech⁴ C_t), one for each unit, and −inf H times; exponents ln f and −inf."""
    cell = _without_weights(cells.lstm(0, size, forget_bias=forget_bias))
    initial = _generic(2 * size)
    return cell._replace(
        initial_state=lambda params: cells.LSTMState(
            *(jnp.asarray(part, params.b_h.dtype) for part in (initial[:size], initial[size:]))
        )
    )


def zero_gru(size: int, update_bias: float) -> Cell:
    """A GRU whose weights are all zero.  With z = sigmoid(update_bias), h' = z h: ln σ(t) = t ln z exactly, H times."""
    cell = _without_weights(cells.gru(0, size))

    def init(key):
        params = cell.init(key)
        return params._replace(b_x=params.b_x.at[size : 2 * size].set(jnp.asarray(update_bias, params.b_x.dtype)))

    return _started(cell._replace(init=init))


def relu_tent(slope: float = 1.9) -> Cell:
    """The tent map in two ReLU units: W = [[m, −m], [2m, −2m]], b = (0, −m); h_1 − h_2 runs through a tent of slope m.

    1 < m < 2, 0 < h_1 − h_2 < 1:  exponents ln m and −inf;  ln σ_1(t) = t ln m + ½ ln 2 + ln‖D_t (1, 2)‖, D_t the mask
    of active units.
    """
    cell = cells.elman(0, 2, activation=jax.nn.relu)

    def init(key):
        m = jnp.asarray(slope, jnp.result_type(float))
        row = jnp.stack((m, -m))
        return cell.init(key)._replace(w_hh=jnp.stack((row, row + row)), b_h=jnp.stack((jnp.zeros_like(m), -m)))

    return cell._replace(init=init, initial_state=lambda params: jnp.array([0.4, 0.0], params.b_h.dtype))


def random_tanh(size: int, gain: float) -> Cell:
    """h' = tanh(W h), W_ij ~ N(0, g²/N): the exponents of x' = W tanh(x), x = W h.  λ_1 → `mean_field_exponent(g)`.

    Published for g = 3, N = 4096: λ_1 = 0.309583, Kaplan-Yorke dimension 0.287168 N.

    Reference: Sompolinsky, Crisanti & Sommers (1988), PRL 61; Engelken, Wolf & Abbott (2023), PRR 5, 043044. The values
    at N = 4096: the data of D. G. Clark, github.com/davidclark1/rnn-lyapunov (one net, 6,000 steps).
    """
    return _started(cells.elman(0, size, recurrent=cells.gaussian(gain)))


def mean_field_exponent(gain: float, drive: float = 0.0) -> float:
    """λ_1 of the random tanh net at N → ∞:  ln(g √E[sech⁴(√q z)]),  q = g² E[tanh²(√q z)] + s,  z ~ N(0, 1).

    Undriven, 1.5: 0.065217, 2: 0.154724, 3: 0.310249, 5: 0.532428; ln g for g ≤ 1, where q = 0.

    Args:
      gain: g > 0.
      drive: s, the variance over units of what the inputs add to the pre-activation at each step.

    Returns:
      Nats per step.

    Reference: Sompolinsky, Crisanti & Sommers (1988), PRL 61; driven: Molgedey, Schuchhardt & Schuster (1992), PRL 69.
    """
    # The trapezoidal rule is geometric here; Gauss-Hermite, with tanh's poles at ±iπ/(2√q), gives 1e-5 at g = 5.
    z = np.arange(-9.0, 9.0, 0.01)
    weights = np.exp(-z * z / 2) * (0.01 / np.sqrt(2 * np.pi))
    low, high = 0.0, gain * gain + drive
    for _ in range(200):  # bisection: the plain iteration stalls at g = 1
        q = (low + high) / 2
        grows = gain**2 * (weights @ np.tanh(np.sqrt(q) * z) ** 2) + drive > q
        low, high = (q, high) if grows else (low, q)
    return float(np.log(gain) + 0.5 * np.log(weights @ np.cosh(np.sqrt(low) * z) ** -4.0))


def gaussian_chain(key: jax.Array, length: int, size: int) -> jax.Array:
    """[T, n, n] independent matrices of N(0, 1/n) entries: `gaussian_exponents`, `gaussian_variances`."""
    for name, value in (("length", length), ("size", size)):
        options.require_size(name, value)
    dtype = jnp.result_type(float)
    return jax.random.normal(key, (length, size, size), dtype) / jnp.asarray(size**0.5, dtype)


def gaussian_exponents(size: int) -> jax.Array:
    """λ_i = ½[ln 2 + ψ((n−i+1)/2)] − ½ ln n, i = 1 … n, also the mean of (1/T) Σ_t ln r_ii at every T.

    Reference: Newman (1986), Comm. Math. Phys. 103 (r_ii √n is χ with n−i+1 degrees of freedom).
    """
    return (np.log(2.0) + digamma(_half_freedoms(size)) - np.log(size)) / 2


def gaussian_variances(size: int) -> jax.Array:
    """ψ'((n−i+1)/2)/4, the variance that each step adds to Σ_t ln r_ii; independent over i and t."""
    return polygamma(1, _half_freedoms(size)) / 4


def _half_freedoms(size):
    return jnp.arange(size, 0, -1, dtype=jnp.result_type(float)) / 2


def _without_weights(cell):
    """The cell with every weight zero and its biases as they are drawn."""

    def init(key):
        params = cell.init(key)
        return params._replace(w_hx=jnp.zeros_like(params.w_hx), w_hh=jnp.zeros_like(params.w_hh))

    return cell._replace(init=init)


def _started(cell):
    """The cell started in general position: from 0 an undriven net never leaves it."""
    return cell._replace(initial_state=lambda params: jnp.asarray(_generic(params.w_hh.shape[1]), params.b_h.dtype))


def _generic(size):
    return np.random.default_rng(0).standard_normal(size)

"""The linear recurrent unit (LRU): a complex diagonal recurrence, held as real and imaginary parts."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import _validation
from jaxbptt.cells._diagonal import diagonal_blocks
from jaxbptt.cells.cell import Cell
from jaxbptt.cells.derivation import Derivation
from jaxbptt.cells.factored import FactoredPullback, outer
from jaxbptt.cells.structure import BlockParts


class LRUParams(NamedTuple):
    """θ of `lru`: real floats of one dtype, named as in the equations.

    Attributes:
      nu_log: ν [N]: |λ| = exp(−e^ν).
      theta_log: θ [N]: arg λ = e^θ.
      gamma_log: [N]: γ = e^gamma_log, which scales what is written.
      b_re, b_im: [N, M], the real and the imaginary part of B.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> params = cells.lru(num_inputs=1, num_hidden=3, r_min=0.9, r_max=0.999).init(jax.random.key(0))
      >>> radius = jnp.exp(-jnp.exp(params.nu_log))  # |λ|
      >>> bool(((radius > 0.9) & (radius < 0.999)).all())
      True
    """

    nu_log: jax.Array
    theta_log: jax.Array
    gamma_log: jax.Array
    b_re: jax.Array
    b_im: jax.Array


class LRUState(NamedTuple):
    """(Re h_t, Im h_t) of `lru`.

    Attributes:
      re: [N], first when flattened.
      im: [N].

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> cells.LRUState(re=jnp.array([1.0, 2.0]), im=jnp.array([3.0, 4.0])).hidden.tolist()  # what a readout sees
      [1.0, 2.0, 3.0, 4.0]
    """

    re: jax.Array
    im: jax.Array

    @property
    def hidden(self) -> jax.Array:
        """Both parts [2N], what a readout or the layer above sees: Re(C h) is linear in them."""
        return jnp.concatenate(self, axis=-1)


def lru(
    num_inputs: int, num_hidden: int, *, r_min: float = 0.0, r_max: float = 1.0, max_phase: float = 2 * math.pi
) -> Cell:
    """h_t = λ ⊙ h_{t−1} + γ ⊙ (B x_t), complex, with λ = exp(−e^ν + i e^θ), γ = e^gamma_log, B = b_re + i b_im.

    The published output Re(C h_t) + D x_t is, but for D, a linear readout of `LRUState.hidden`.
    The hand derivation, with λ̂ = p + i q for the cotangents (p, q) of (re, im) and * for the complex conjugate: J_t is
    the product with λ, the same at every step. The cotangents are (Re, Im) λ* λ̂ (previous state), γ p x_tᵀ (b_re),
    γ q x_tᵀ (b_im), γ Re((B x_t)* λ̂) (gamma_log), −e^ν Re((λ h_{t−1})* λ̂) (nu_log), e^θ Im((λ h_{t−1})* λ̂) (theta_log)
    and b_reᵀ (γ p) + b_imᵀ (γ q) (input).
    Exact at every T: ln σ of dh_T/dh_0 is T ln|λ_i|, each twice; dh_t/dx_k = λ^{t−k} γ B.

    Args:
      num_inputs: M ≥ 0.
      num_hidden: complex entries of h, ≥ 1; the flattened state has twice as many real ones.
      r_min: least |λ| at initialisation; |λ|² is uniform in [r_min², r_max²].
      r_max: largest |λ|, 0 ≤ r_min < r_max ≤ 1.
      max_phase: arg λ is uniform in [0, max_phase], > 0.

    Returns:
      Cell on `LRUState(re [N], im [N])` with `LRUParams`; N here is num_hidden. At initialisation γ = √(1−|λ|²), so
      that white inputs give states of variance 1, and B's parts are N(0, 1/(2M)).

    Raises:
      TypeError, ValueError: a size that is not an int or is too small; a radius or phase not as stated.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, jacobians, spectra
      >>> cell = cells.lru(num_inputs=1, num_hidden=2)
      >>> params = cell.init(jax.random.key(0))
      >>> log_sigma = spectra.log_singular_values(jacobians.structured_jacobians(cell, params, 1000))[0]
      >>> log_radius = jnp.sort(-jnp.exp(params.nu_log), descending=True)  # ln|λ|
      >>> bool(jnp.allclose(log_sigma, 1000 * jnp.repeat(log_radius, 2)))  # exact at every T
      True

    Reference: Orvieto et al. (2023), arXiv:2303.06349.
    """
    _validation.require_size("num_inputs", num_inputs, least=0)
    _validation.require_size("num_hidden", num_hidden)
    for name, value in (("r_min", r_min), ("r_max", r_max)):
        _validation.require_above(name, value, -math.inf)
    if not 0 <= r_min < r_max <= 1:
        raise ValueError(f"r_min, r_max: got {r_min}, {r_max}, expected 0 ≤ r_min < r_max ≤ 1")
    _validation.require_above("max_phase", max_phase, 0)

    def init(key):
        _validation.require_key(key)
        radius_key, phase_key, re_key, im_key = jax.random.split(key, 4)
        dtype = jnp.result_type(float)
        least = float(jnp.finfo(dtype).eps)  # neither |λ|, nor 1 − |λ|, nor the phase is zero: their logs are finite
        uniform = lambda key: jax.random.uniform(key, (num_hidden,), dtype, minval=least)
        gap = uniform(radius_key) * (r_max**2 - r_min**2) + (1 - r_max**2)  # 1 − |λ|²
        nu_log = jnp.log(-jnp.log1p(-gap) / 2)
        theta_log = jnp.log(uniform(phase_key) * max_phase)
        gamma_log = jnp.log(gap) / 2
        scale = jnp.asarray(max(2 * num_inputs, 1) ** -0.5, dtype)
        b_re, b_im = (scale * jax.random.normal(key, (num_hidden, num_inputs), dtype) for key in (re_key, im_key))
        return LRUParams(nu_log, theta_log, gamma_log, b_re, b_im)

    def initial_state(params):
        zeros = jnp.zeros_like(params.nu_log)
        return LRUState(zeros, zeros)

    place = np.arange(2 * num_hidden).reshape(2, num_hidden).T[:, None]  # [N, 1, 2]
    return Cell(
        init=init,
        initial_state=initial_state,
        step=lambda params, state, x: _advance(params, state, _drive(params, x))[0],
        derivation=Derivation(_state_jacobian, _PULLBACK, BlockParts(_form_parts, place, affine=True, constant=True)),
        num_inputs=num_inputs,
    )


def _rotate(params):
    """λ, as (Re λ, Im λ)."""
    radius, phase = jnp.exp(-jnp.exp(params.nu_log)), jnp.exp(params.theta_log)
    return LRUState(radius * jnp.cos(phase), radius * jnp.sin(phase))


def _times(a, b):
    return LRUState(a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re)


def _conjugate(a):
    return LRUState(a.re, -a.im)


def _inject(params, x):
    """B x."""
    return LRUState(x @ params.b_re.T, x @ params.b_im.T)


def _scaled(scale, pair):
    return LRUState(scale * pair.re, scale * pair.im)


def _drive(params, x):
    return _scaled(jnp.exp(params.gamma_log), _inject(params, x))


def _advance(params, state, drive):
    carried = _times(_rotate(params), state)
    return LRUState(carried.re + drive.re, carried.im + drive.im), None


def _pull_params(params, state, x, delta):
    turned = _times(_conjugate(_times(_rotate(params), state)), delta)
    written = _times(_conjugate(_inject(params, x)), delta)
    gamma = jnp.exp(params.gamma_log)
    return LRUParams(
        nu_log=-jnp.exp(params.nu_log) * turned.re,
        theta_log=jnp.exp(params.theta_log) * turned.im,
        gamma_log=gamma * written.re,
        b_re=outer(gamma * delta.re, x),
        b_im=outer(gamma * delta.im, x),
    )


def _pull_input(params, delta):
    pushed = _scaled(jnp.exp(params.gamma_log), delta)
    return pushed.re @ params.b_re + pushed.im @ params.b_im


_PULLBACK = FactoredPullback(
    drive=_drive,
    advance=_advance,
    expand=lambda state, new, kept: (),
    delta=lambda factors, cotangent: cotangent,
    state=lambda params, factors, cotangent, delta: _times(_conjugate(_rotate(params)), cotangent),
    params=_pull_params,
    input=_pull_input,
)


def _form_parts(params, factors):
    return diagonal_blocks(jax.lax.complex(*_rotate(params)))


def _state_jacobian(params, state, x):
    re, im = map(jnp.diag, _rotate(params))
    return jnp.block([[re, -im], [im, re]])

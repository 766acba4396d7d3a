"""The gated recurrent unit in PyTorch's and Flax's form: the reset gate comes after the recurrent product."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt import _validation
from jaxbptt.cells.cell import Cell
from jaxbptt.cells.derivation import Derivation
from jaxbptt.cells.factored import FactoredPullback, outer
from jaxbptt.cells.initializers import Scheme, draw_weights, gaussian, require_scheme
from jaxbptt.cells.structure import JacobianParts


class GRUParams(NamedTuple):
    """θ of `gru`: floats of one dtype, named as in the equations.

    Attributes:
      w_hx: [3H, M], of the input; rows in the order r, z, n (reset gate, update gate, candidate), as in all leaves.
      w_hh: [3H, H], of the previous state.
      b_x: [3H], beside W_hx x_t.
      b_h: [3H], beside W_hh h_{t−1}: r multiplies its n part.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> params = cells.gru(num_inputs=2, num_hidden=3).init(jax.random.key(0))
      >>> recurrent = dict(zip(params.gates, jnp.split(params.w_hh, 3)))
      >>> recurrent["n"].shape  # the candidate's [H, H]
      (3, 3)
    """

    w_hx: jax.Array
    w_hh: jax.Array
    b_x: jax.Array
    b_h: jax.Array

    @property
    def gates(self) -> tuple[str, ...]:
        """The letters of the blocks of rows, in order."""
        return "r", "z", "n"


class GRUFactors(NamedTuple):
    """The factors that multiply a cotangent at one step."""

    carry: jax.Array  # [H] z = ∂⁺h_t/∂⁺h_{t-1} with r, z and n fixed
    gates: tuple[jax.Array, ...]  # ∂⁺h_t/∂⁺(W_hx x + b_x): its r, z and n part, each [H]
    hidden_n: jax.Array  # [H] the n part of ∂⁺h_t/∂⁺(W_hh h + b_h), times r; the r and z parts equal those of `gates`


class GRUDelta(NamedTuple):
    """δ_u = (r, z, n), δ_v = (r, z, hidden_n), each part [H]."""

    r: jax.Array
    z: jax.Array
    n: jax.Array
    hidden_n: jax.Array

    def inputs(self) -> jax.Array:
        """δ_u [3H]."""
        return jnp.concatenate((self.r, self.z, self.n))

    def hidden(self) -> jax.Array:
        """δ_v [3H]."""
        return jnp.concatenate((self.r, self.z, self.hidden_n))


def gru(num_inputs: int, num_hidden: int, *, recurrent: Scheme = gaussian(1.0)) -> Cell:
    """h_t = (1−z) ⊙ n + z ⊙ h_{t−1},  n = tanh(u_n + r ⊙ v_n),  (r, z) = σ(u + v).

    Here u = W_hx x_t + b_x and v = W_hh h_{t−1} + b_h.
    The hand derivation, with n' = (1−z)(1−n²), r' = r(1−r), z' = z(1−z): δ_u = (n' v_n r', (h_{t−1}−n) z', n') ⊙
    (λ, λ, λ); δ_v is δ_u with n' r for n' in its n part. The cotangents are δ_u x_tᵀ (w_hx), δ_v h_{t−1}ᵀ (w_hh), δ_u
    (b_x), δ_v (b_h), W_hxᵀ δ_u (input) and z ⊙ λ + W_hhᵀ δ_v (previous state). J_t = diag(z) + Σ_{r,z,n} diag(·) W, by
    the factors of δ_v.

    Args:
      num_inputs: M ≥ 0.
      num_hidden: H = N ≥ 1.
      recurrent: the scheme that draws each gate's [H, H] block of w_hh.

    Returns:
      Cell on a state [H] with `GRUParams(w_hx [3H, M], w_hh [3H, H], b_x [3H], b_h [3H])`, gate order r, z, n.

    Raises:
      TypeError, ValueError: a size that is not an int or is too small; a recurrent that is no scheme.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> cell = cells.gru(num_inputs=1, num_hidden=2)
      >>> params = cell.init(jax.random.key(0))
      >>> params = params._replace(b_x=params.b_x.at[2:4].set(100.0))  # rows r, z, n: now z = 1
      >>> cell.step(params, jnp.array([3.0, 4.0]), jnp.ones(1)).tolist()  # so that h is carried as it is
      [3.0, 4.0]

    Reference: Cho et al. (2014), arXiv:1406.1078, with the reset gate applied after the product as in cuDNN.
    """
    _validation.require_size("num_inputs", num_inputs, least=0)
    _validation.require_size("num_hidden", num_hidden)
    require_scheme(recurrent)

    def init(key):
        _validation.require_key(key)
        w_hx, w_hh = draw_weights(key, recurrent, num_inputs, num_hidden, num_gates=3)
        return GRUParams(w_hx, w_hh, jnp.zeros_like(w_hh[:, 0]), jnp.zeros_like(w_hh[:, 0]))

    return Cell(
        init=init,
        initial_state=lambda params: jnp.zeros_like(params.b_h[:num_hidden]),
        step=_step,
        derivation=Derivation(_state_jacobian, _PULLBACK, _PARTS),
        num_inputs=num_inputs,
    )


def _step(params, state, x):
    _, z, n, _ = _gates(params, state, _drive(params, x))
    return (1 - z) * n + z * state


def _drive(params, x):
    return x @ params.w_hx.T + params.b_x


def _gates(params, state, drive):
    u_r, u_z, u_n = jnp.split(drive, 3)
    v_r, v_z, v_n = jnp.split(params.w_hh @ state + params.b_h, 3)
    r = jax.nn.sigmoid(u_r + v_r)
    return r, jax.nn.sigmoid(u_z + v_z), jnp.tanh(u_n + r * v_n), v_n


def _advance(params, state, drive):
    r, z, n, v_n = _gates(params, state, drive)
    return (1 - z) * n + z * state, (r, z, n, v_n)


def _expand(state, new, gates):
    r, z, n, v_n = gates
    through_n = (1 - z) * (1 - n) * (1 + n)
    through_r, through_z = through_n * v_n * r * (1 - r), (state - n) * z * (1 - z)
    return GRUFactors(z, (through_r, through_z, through_n), through_n * r)


def _delta(factors, cotangent):
    r, z, n = (gate * cotangent for gate in factors.gates)
    return GRUDelta(r, z, n, factors.hidden_n * cotangent)


def _pull_state(params, factors, cotangent, delta):
    return factors.carry * cotangent + delta.hidden() @ params.w_hh


def _pull_params(params, state, x, delta):
    inputs, hidden = delta.inputs(), delta.hidden()
    return GRUParams(outer(inputs, x), outer(hidden, state), inputs, hidden)


def _pull_input(params, delta):
    return delta.inputs() @ params.w_hx


_PULLBACK = FactoredPullback(_drive, _advance, _expand, _delta, _pull_state, _pull_params, _pull_input)


def _form_parts(params, factors):
    """(diagonal, block [H, H])."""
    gates = (*factors.gates[:2], factors.hidden_n)
    r, z, n = (gate[:, None] * w for gate, w in zip(gates, jnp.split(params.w_hh, 3), strict=True))
    return factors.carry, r + z + n


_PARTS = JacobianParts(
    form=_form_parts,
    dense=lambda parts: jnp.diag(parts[0]) + parts[1],
    left=lambda parts, matrix: parts[0][:, None] * matrix + parts[1] @ matrix,
    right=lambda parts, matrix: matrix * parts[0][None] + matrix @ parts[1],
)


def _state_jacobian(params, state, x):
    return _PARTS.dense(_form_parts(params, _PULLBACK.factors(params, state, x)))

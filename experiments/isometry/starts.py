"""The initialisations: how a net's weights are drawn, nearer to or farther from dynamical isometry."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxbptt import cells
from jaxbptt.cells import Cell

from . import theory

DRIVE_KEY = 1000
DRIVE = 1e-3  # variance of what an input adds to a pre-activation: small, so that tanh is nearly linear
ORDERED, CHAOTIC = 0.8, 1.5  # of the critical gain
MEMORY = 28  # steps 1/(1 − z) of the critical gates: the sequences that are trained on are as long
KEEP = 1 - 1 / MEMORY  # z
GATED_GAIN = 2.0  # of the candidate's weights: with r = ½ the eigenvalues at rest are z + (1 − z) eig(Q)
CRITICAL = theory.critical_gain(DRIVE)
GAUSSIAN, ORTHOGONAL, GATED, DEFAULT = "gaussian, critical", "orthogonal, critical", "GRU, critical", "GRU, default"


def _elman(scheme: Callable, gain: float) -> Callable[[int, int], Cell]:
    return lambda inputs, size: _with_drive(cells.elman(inputs, size, recurrent=scheme(gain)))


STARTS: dict[str, Callable[[int, int], Cell]] = {  # (M, N) -> cell
    GAUSSIAN: _elman(cells.gaussian, CRITICAL),
    ORTHOGONAL: _elman(cells.orthogonal, CRITICAL),
    "gaussian, ordered": _elman(cells.gaussian, ORDERED * CRITICAL),
    "gaussian, chaotic": _elman(cells.gaussian, CHAOTIC * CRITICAL),
    "orthogonal, ordered": _elman(cells.orthogonal, ORDERED * CRITICAL),
    DEFAULT: lambda inputs, size: _with_drive(cells.gru(inputs, size)),
    GATED: lambda inputs, size: _with_drive(critical_gru(inputs, size)),
}
KINDS = tuple(STARTS)[:5], tuple(STARTS)[5:]  # those of one step, which one compiled program serves: Elman, GRU


def critical_gru(num_inputs: int, size: int) -> Cell:
    """A GRU whose gates start constant: no weights, r = ½, z = 1 − 1/MEMORY by its bias; the candidate's weights 2 Q.

    At rest J = z I + (1 − z) Q, Q orthogonal, of which no eigenvalue exceeds 1 and σ of J^t is known. Gilboa et al.
    (2019), arXiv:1901.08987, choose gates' biases and the weights' variances by a mean field whose weights are
    independent from step to step; this is the like for weights that are the same at all steps.
    """
    cell = cells.gru(num_inputs, size, recurrent=cells.orthogonal(GATED_GAIN))

    def init(key):
        params = cell.init(key)
        bias = jnp.log(jnp.asarray(KEEP / (1 - KEEP), params.b_x.dtype))
        return params._replace(
            w_hx=params.w_hx.at[: 2 * size].set(0),
            w_hh=params.w_hh.at[: 2 * size].set(0),
            b_x=params.b_x.at[size : 2 * size].set(bias),
        )

    return cell._replace(init=init)


def _with_drive(cell):
    """The cell whose input weights, where they are not zero, are N(0, DRIVE): one input of 1 at a step adds as much."""

    def init(key):
        params = cell.init(key)
        # The cell draws from split(key, n), which is fold_in(key, 0 … n − 1): its drive must not be one of these.
        drawn = jax.random.normal(jax.random.fold_in(key, DRIVE_KEY), params.w_hx.shape, params.w_hx.dtype)
        return params._replace(w_hx=jnp.where(params.w_hx == 0, 0, DRIVE**0.5 * drawn))

    return cell._replace(init=init)

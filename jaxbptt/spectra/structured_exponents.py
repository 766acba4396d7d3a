"""Exponents of a chain of blocks with copies, or of bordered Jacobians: the blocks are scanned apart."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxbptt.cells.structure import Border, dtype_of, entries_of, real_matrices
from jaxbptt.spectra.diagonal_scan import DiagonalChain, repeat_diagonal, scan_diagonal
from jaxbptt.spectra.qr_scan import run_scan
from jaxbptt.spectra.qr_step import Chain, Options
from jaxbptt.spectra.statistics import LyapunovExponents


class AdvanceStructured(Protocol):
    def __call__(self, state: Any, step: Any, /) -> tuple[Any, Any]:
        """(what the next call starts from, the blocks of J_t, or its Border)."""
        ...


def scan_structured(
    advance: AdvanceStructured, state: Any, steps: Any, length: int, size: int, options: Options
) -> LyapunovExponents:
    """Those of `length` Jacobians [N, N], N = size; `steps` has leading T, or is None where no step reads it."""
    one = jax.eval_shape(lambda: advance(state, jax.tree.map(lambda leaf: leaf[0], steps))[1])
    if isinstance(one, Border):

        def border(state, step):
            # Triangular with this diagonal, and so is their product.
            state, at = advance(state, step)
            return state, jnp.stack((at.scale, at.corner))

        return scan_diagonal(DiagonalChain(border, state, steps, length, (size - 1, 1)), options)
    entries = jax.eval_shape(entries_of, one)
    if entries is not None:
        if steps is None:
            fixed: Any = entries_of(advance(state, None)[1])
            return repeat_diagonal(fixed, length, size // entries.size, options)

        def diagonal(state, step):
            state, core = advance(state, step)
            return state, entries_of(core)

        return scan_diagonal(DiagonalChain(diagonal, state, steps, length, size // entries.size), options)

    def matrices(state, step):
        state, core = advance(state, step)
        return state, real_matrices(core)

    blocks, width, _ = jax.eval_shape(real_matrices, one).shape
    dtype = jnp.finfo(dtype_of(one)).dtype
    chain = Chain(matrices, state, steps, None, dtype, length, width, blocks, size // (blocks * width))
    return run_scan(chain, options._replace(width=width))

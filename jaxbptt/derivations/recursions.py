"""The recursion of λ, right and with one thing wrong, in NumPy: axes before [T, N, N] are other chains beside it."""

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

import numpy as np

Change: TypeAlias = Callable[[np.ndarray], np.ndarray]


def same(values: np.ndarray) -> np.ndarray:
    """The values."""
    return values


class Carried(NamedTuple):
    adjoints: np.ndarray  # λ [..., T, N]
    initial: np.ndarray  # μ_0 = J_1ᵀ λ_1 [..., N]

    def scaled(self, factor: float) -> "Carried":
        """Both times a number."""
        return Carried(self.adjoints * factor, self.initial * factor)


class Structure(NamedTuple):
    """A slip of the whole gradient: Σ_t (∂⁺h_t/∂⁺θ)ᵀ λ_t + (∂h_0/∂θ)ᵀ μ_0 + d · direct part of the last K losses."""

    slip: str
    note: str
    carry: Callable[[np.ndarray, np.ndarray], Carried]  # (J [..., T, N, N], c [T, N])
    direct: float = 1  # d
    last: int = 0  # K; 0: all losses


def adjoints(chain: np.ndarray, local: np.ndarray, change: Change = same, change_carried: Change = same) -> Carried:
    """λ_t = change(c_t + change_carried(J_{t+1}ᵀ λ_{t+1}))."""
    found = np.empty(np.broadcast_shapes(chain.shape[:-1], local.shape), local.dtype)
    later = np.zeros_like(found[..., 0, :])
    for t in reversed(range(local.shape[-2])):
        found[..., t, :] = change(local[..., t, :] + later)
        later = change_carried(_pull(chain[..., t, :, :], found[..., t, :]))
    return Carried(found, later)


def reversed_products(chain: np.ndarray, local: np.ndarray) -> Carried:
    """λ_k = Σ_t (J_{k+1} … J_t)ᵀ c_t, the latest factor on the right."""
    length, size = local.shape
    shape = (*chain.shape[:-3], length + 1)
    products = np.broadcast_to(np.eye(size, dtype=local.dtype), (*shape, size, size)).copy()
    total = np.zeros((*shape, size), local.dtype)
    for t in range(length):
        products[..., : t + 1, :, :] = products[..., : t + 1, :, :] @ chain[..., t : t + 1, :, :]
        total[..., : t + 2, :] += local[t] @ products[..., : t + 2, :, :]
    return Carried(total[..., 1:, :], total[..., 0, :])


def cut_before(starts: Iterable[int]) -> Callable[[np.ndarray, np.ndarray], Carried]:
    """Windows that begin at these steps, from 0: nothing is carried back across a beginning."""
    begins = [start for start in starts if start > 0]

    def carry(chain, local):
        linked = chain.copy()
        linked[..., begins, :, :] = 0
        return adjoints(linked, local)

    return carry


def keep_lags(count: int) -> Callable[[np.ndarray, np.ndarray], Carried]:
    """λ_k = Σ_{t = k}^{k + L − 1} (dh_t/dh_k)ᵀ c_t; h_0 is reached by the losses of the first L steps."""

    def carry(chain, local):
        found = np.broadcast_to(local, chain.shape[:-1])
        for _ in range(count - 1):
            pulled = _pull(chain, found)
            found = local + np.concatenate((pulled[..., 1:, :], np.zeros_like(pulled[..., :1, :])), axis=-2)
        return Carried(found, _pull(chain[..., 0, :, :], found[..., 0, :]))

    return carry


def keep_last(count: int) -> Callable[[np.ndarray, np.ndarray], Carried]:
    """λ_t = 0 for t ≤ T − K."""

    def carry(chain, local):
        found = adjoints(chain, local).adjoints.copy()
        found[..., : local.shape[-2] - count, :] = 0
        return Carried(found, np.zeros_like(found[..., 0, :]))

    return carry


def structures(length: int, reduction: str, learned_start: bool) -> list[Structure]:
    """Every single slip of the whole gradient; `learned_start`: h_0 depends on the params."""
    found = []

    def add(slip, note, carry=adjoints, direct=1, last=0):
        found.append(Structure(slip, note, carry, direct, last))

    def with_chain(change):
        return lambda chain, local: adjoints(change(chain), local)

    def with_adjoints(change):
        def carry(chain, local):
            right = adjoints(chain, local)
            return Carried(change(right.adjoints), right.initial)

        return carry

    def times(factor):
        return lambda chain, local: adjoints(chain, local).scaled(factor)

    def unlinked(carry):
        def without(chain, local):
            right = carry(chain, local)
            return Carried(right.adjoints, 0 * right.initial)

        return without

    def shift(earlier, values):  # J_t in place of J_{t+1}; the first adjoint still passes J_1 on its way to h_0
        parts = (values[..., :1, :, :], values[..., :-1, :, :])
        return np.concatenate(parts if earlier else (values[..., 1:, :, :], values[..., -1:, :, :]), axis=-3)

    def move(later, values):
        zero = np.zeros_like(values[..., :1, :])
        return np.concatenate((values[..., 1:, :], zero) if later else (zero, values[..., :-1, :]), axis=-2)

    turn = lambda chain: np.swapaxes(chain, -1, -2)
    add("transposed_jacobian", "in the recursion of λ", with_chain(turn))
    whole = lambda chain, local: reversed_products(turn(chain), local)
    add("transposed_jacobian", "every product dh_t/dh_k as a whole", whole)
    add("reversed_product", "J_{k+1} … J_t for J_t … J_{k+1}", reversed_products)
    add("wrong_time_index", "J_t for J_{t+1}", with_chain(lambda chain: shift(True, chain)))
    add("wrong_time_index", "J_{t+2} for J_{t+1}", with_chain(lambda chain: shift(False, chain)))
    add("wrong_time_index", "λ_{t+1} for λ_t", with_adjoints(lambda values: move(True, values)))
    add("wrong_time_index", "λ_{t−1} for λ_t", with_adjoints(lambda values: move(False, values)))
    if reduction == "mean":
        for slip, factor in (("lost_mean", length), ("double_mean", 1 / length)):
            for of_step, of_readout in ((factor, factor), (factor, 1), (1, factor)):
                add(slip, "", times(of_step), direct=of_readout)
    for of_step, of_readout in ((-1, 1), (1, -1)):
        add("sign", "of one of its two parts", times(of_step), direct=of_readout)
    add("missing_direct_term", "the readout's own use of the parameter", direct=0)
    add("missing_direct_term", "the step's own use of the parameter", times(0))
    if learned_start:
        add("missing_initial_state", "", unlinked(adjoints))

    def last_loss(chain, local):
        alone = np.zeros_like(local)
        alone[-1] = local[-1]
        return adjoints(chain, alone)

    for last in (0, 1):
        add("last_term_only", "only the last step's loss", last_loss, last=last)
        note = "only the last step's use of the parameter (truncated, K = 1)"
        add("last_term_only", note, keep_last(1), last=last)
        for carry in (unlinked(keep_lags(1)), *[keep_lags(1)] * learned_start):
            add("last_term_only", "of each loss only its own step's term (truncated, K = 1)", carry, last=last)
    for note, carry in _truncations(length):
        add("truncated", note, carry)
        if learned_start:
            add("truncated", f"{note}; that of h_0 left out", unlinked(carry))
    for count in range(2, length):
        for last in (0, count):
            add("truncated", f"the last {count} steps alone", keep_last(count), last=last)
    total = lambda chain, local: adjoints(chain, adjoints(chain, local).adjoints)
    add("double_path", "dh_k/dθ in total for the direct one, beside λ", total)
    for of_step, of_readout in ((2, 1), (1, 2)):
        add("double_path", "of its two parts, one twice", times(of_step), direct=of_readout)
    return found


def _truncations(length):
    """(note, recursion) of every adjoint that is cut every K steps, or carried back over L steps."""
    for count in range(2, length):
        yield f"every {count} steps", cut_before(range(count, length, count))
        if length % count:
            yield f"every {count} steps, counted from the end", cut_before(range(length - count, 0, -count))
        yield f"lag: each loss's last {count} steps", keep_lags(count)


def _pull(jacobian: np.ndarray, cotangent: np.ndarray) -> np.ndarray:
    """Jᵀ cotangent."""
    return (cotangent[..., None, :] @ jacobian)[..., 0, :]

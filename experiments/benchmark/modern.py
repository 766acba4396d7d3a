"""The gradient of the modern cells by `gradients.bptt`, by automatic differentiation of a plain scan, and by packages.

The plain step is the equation as anybody would write it, with its products in the loop. Where h_t = a_t ⊙ h_{t−1} + b_t
with a_t and b_t from the input alone, `lax.associative_scan` takes part too, its gates from one product for all steps.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt import cells

from . import packages, peers
from .cases import LARGEST, TOLERANCES, Case, draw_case, precision
from .timing import Contestant, race

LENGTH = 1024  # T, halved while T B N' is larger than what is measured at all, N' the entries of a state
ROUNDS = 3


class Kind(NamedTuple):
    """A cell of size N, and how anybody would write it."""

    make: Callable[[int], cells.Cell]
    sizes: tuple[int, ...]
    entries: Callable[[int], int]  # N -> of a state
    start: Callable  # (params) -> h_0
    step: Callable  # (params, h_{t−1}, x_t) -> (h_t, y_t)
    terms: Callable | None = None  # (params, x_t) -> (a_t, b_t)
    see: Callable | None = None  # (params, h_t, x_t) -> y_t


def modern_rows(config: Any, progress: Callable) -> Iterator[dict]:
    """Every cell at its sizes."""
    for dtype in config.dtypes:
        for name, kind in KINDS.items():
            for batch in config.batches:
                for units in sorted({min(size, max(config.sizes)) for size in kind.sizes}):
                    length = min(LENGTH, max(config.lengths))
                    while length * batch * kind.entries(units) > LARGEST["cpu"]:
                        length //= 2
                    progress(f"modern: {name}, T {length}, N {units}, B {batch}, {dtype}")
                    with precision(dtype):
                        case = draw_case(name, kind.make(units), length, units, batch, dtype=dtype)
                        rows = _race(case, kind, config.seconds / 2)
                    yield from ({"suite": "modern", **case.label(), **row} for row in rows)


def _race(case, kind, seconds):
    makers = [("jaxbptt", partial(peers.ours, case)), ("autodiff", partial(plain, case, kind))]
    if kind.terms is not None:
        makers += [("associative scan", partial(associative, case, kind))]
    makers += [(name, partial(make, case)) for name, make in packages.PACKAGES.get(case.cell, {}).items()]
    return race(makers, seconds=seconds, tolerance=TOLERANCES[case.inputs.dtype.name], rounds=ROUNDS)


def plain(case: Case, kind: Kind) -> Contestant:
    """`jax.value_and_grad` through a `lax.scan` of the plain step."""

    def run(params, inputs):
        return jax.lax.scan(lambda state, x: kind.step(params, state, x), kind.start(params), inputs)[1]

    return _differentiate(case, run, "lax.scan")


def associative(case: Case, kind: Kind) -> Contestant:
    """`jax.value_and_grad` through one `lax.associative_scan` over all steps."""

    def combine(earlier, later):
        return later[0] * earlier[0], later[0] * earlier[1] + later[1]

    def run(params, inputs):
        terms = jax.vmap(kind.terms, in_axes=(None, 0))(params, inputs)
        states = jax.lax.associative_scan(combine, terms)[1]
        return jax.vmap(kind.see, in_axes=(None, 0, 0))(params, states, inputs)

    return _differentiate(case, run, "lax.associative_scan")


def _differentiate(case, run, note):
    def loss(params, inputs, targets):
        seen = run(params.cell, inputs)
        outputs = seen @ params.readout.w_yh.T + params.readout.b_y[None]
        return jnp.sum((outputs - targets) ** 2) / 2

    function = jax.value_and_grad(peers.summed(loss, case))
    return Contestant(function, (case.params, case.inputs, case.targets), note=note)


def _affine(terms, see):
    """The step of h_t = a_t ⊙ h_{t−1} + b_t."""

    def step(params, state, x):
        carry, written = terms(params, x)
        state = carry * state + written
        return state, see(params, state, x)

    return step


def _diagonal(make, start, terms, see=lambda params, state, x: state, sizes=(64, 256), entries=lambda n: n):
    return Kind(make, sizes, entries, start, _affine(terms, see), terms, see)


def _lru_terms(params, x):
    carry = jnp.exp(-jnp.exp(params.nu_log) + 1j * jnp.exp(params.theta_log))
    return carry, jnp.exp(params.gamma_log) * ((params.b_re + 1j * params.b_im) @ x)


def _rg_lru_terms(params, x):
    r, i = jax.nn.sigmoid(params.w_a @ x + params.b_a), jax.nn.sigmoid(params.w_i @ x + params.b_i)
    log_a = -8 * r * jax.nn.softplus(params.lambda_)
    return jnp.exp(log_a), jnp.sqrt(-jnp.expm1(2 * log_a)) * i * x


def _ssm_terms(params, x):
    step, a = jax.nn.softplus(params.w_delta @ x + params.b_delta)[:, None], -jnp.exp(params.a_log)
    return jnp.exp(step * a), jnp.expm1(step * a) / a * (x[:, None] * (params.w_b @ x)[None])


def _min_gru_terms(params, x):
    z = jax.nn.sigmoid(params.w_z @ x + params.b_z)
    return 1 - z, z * (params.w_h @ x + params.b_h)


def _min_lstm_terms(params, x):
    f, i = jax.nn.sigmoid(params.w_f @ x + params.b_f), jax.nn.sigmoid(params.w_i @ x + params.b_i)
    return f / (f + i), i / (f + i) * (params.w_h @ x + params.b_h)


def _slstm_step(params, state, x):
    c, n, m, y = state
    z, i, f, o = jnp.split(params.w_hx @ x + params.w_hh @ y + params.b_h, 4)
    decayed = jax.nn.log_sigmoid(f) + m
    m = jnp.maximum(decayed, i)
    forget, write = jnp.exp(decayed - m), jnp.exp(i - m)
    c, n = forget * c + write * jnp.tanh(z), forget * n + write
    y = jax.nn.sigmoid(o) * c / n
    return (c, n, m, y), y


def _mlstm_step(params, state, x):
    memory, n, m = state
    q, o = params.w_q @ x + params.b_q, jax.nn.sigmoid(params.w_o @ x + params.b_o)
    k = params.w_k @ x / jnp.sqrt(len(params.b_k)).astype(x.dtype) + params.b_k
    v = params.w_v @ x + params.b_v
    i, f = params.w_i @ x + params.b_i, params.w_f @ x + params.b_f
    decayed = jax.nn.log_sigmoid(f) + m
    m = jnp.maximum(decayed, i)
    forget, write = jnp.exp(decayed - m), jnp.exp(i - m)
    memory, n = forget * memory + write * jnp.outer(k, v), forget * n + write * k
    return (memory, n, m), o * (q @ memory) / jnp.maximum(jnp.abs(n @ q), jnp.exp(-m))


def _unit(key):
    return key / jnp.linalg.norm(key)


def _delta_step(params, memory, x):
    q, k, v = _unit(params.w_q @ x), _unit(params.w_k @ x), params.w_v @ x
    beta = jax.nn.sigmoid(params.w_beta @ x + params.b_beta)
    if isinstance(params, cells.GatedDeltaNetParams):
        memory = jnp.exp(-jnp.exp(params.a_log) * jax.nn.softplus(params.w_g @ x + params.b_g)) * memory
    memory = memory + jnp.outer(beta * k, v - k @ memory)
    return memory, q @ memory


def _rwkv7_step(params, memory, x):
    k, v = params.w_k @ x, params.w_v @ x
    decay = jnp.exp(-jnp.exp(-0.5) * jax.nn.sigmoid(params.w_w @ x + params.b_w))
    removed = _unit(params.xi * k)
    rate = jax.nn.sigmoid(params.w_a @ x + params.b_a)
    memory = memory * decay[None] - jnp.outer(memory @ removed, removed * rate) + jnp.outer(v, k)
    return memory, memory @ (params.w_r @ x)


def _memory(params):
    return jnp.zeros((len(params.w_k), len(params.w_v)), params.w_k.dtype)


_matrix = partial(Kind, sizes=(16, 64), entries=lambda n: n**2, start=_memory)
KINDS = {
    "lru": _diagonal(
        lambda n: cells.lru(n, n),
        lambda params: jax.lax.complex(*[jnp.zeros_like(params.nu_log)] * 2),
        _lru_terms,
        lambda params, state, x: jnp.concatenate((state.real, state.imag)),
        entries=lambda n: 2 * n,
    ),
    "rg_lru": _diagonal(cells.rg_lru, lambda params: jnp.zeros_like(params.b_a), _rg_lru_terms),
    "selective_ssm": _diagonal(
        lambda n: cells.selective_ssm(n, 16),
        lambda params: jnp.zeros_like(params.a_log),
        _ssm_terms,
        lambda params, state, x: state @ (params.w_c @ x) + params.d * x,
        entries=lambda n: 16 * n,
    ),
    "min_gru": _diagonal(lambda n: cells.min_gru(n, n), lambda params: jnp.zeros_like(params.b_z), _min_gru_terms),
    "min_lstm": _diagonal(lambda n: cells.min_lstm(n, n), lambda params: jnp.zeros_like(params.b_f), _min_lstm_terms),
    "slstm": Kind(
        lambda n: cells.slstm(n, n),
        sizes=(64, 256),
        entries=lambda n: 4 * n,
        start=lambda params: (jnp.zeros_like(params.w_hh[0]),) * 4,
        step=_slstm_step,
    ),
    "mlstm": _matrix(
        lambda n: cells.mlstm(n, n, n),
        start=lambda params: (_memory(params), jnp.zeros_like(params.b_k), jnp.zeros_like(params.b_i)),
        step=_mlstm_step,
    ),
    "delta_net": _matrix(lambda n: cells.delta_net(n, n, n), step=_delta_step),
    "gated delta_net": _matrix(lambda n: cells.delta_net(n, n, n, gated=True), step=_delta_step),
    "rwkv7": _matrix(lambda n: cells.rwkv7(n, n, n), step=_rwkv7_step),
}

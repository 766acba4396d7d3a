"""Truncation of loops that others wrote: a plain `lax.scan`, a differential equation's solver; and what it lost."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.truncation.borders import cut, lost_norms, make_probe
from jaxbptt.types import State, States


class Loop(Protocol):
    """One pass of a loop, as `lax.scan` takes it.

    Returns:
      (the new carry, what is stacked over steps).

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import truncation
      >>> body = lambda h, x: (0.5 * h + x, h)
      >>> last, before = truncation.windowed_scan(body, jnp.array(1.0), jnp.ones(3), window=2)
      >>> before.tolist(), float(last)
      ([1.0, 1.5, 1.75], 1.875)
    """

    def __call__(self, carry: State, x: Any, /) -> tuple[State, Any]: ...


class Solve(Protocol):
    """A solver of a differential equation: the values at times ts from that at ts[0], ts[0] included.

    Returns:
      [len(ts), ...], a pytree like `initial`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import truncation
      >>> decay = lambda y, ts: y * jnp.exp(ts[0] - ts)
      >>> found = truncation.windowed_solve(decay, jnp.array(1.0), jnp.linspace(0, 4, 5), window=2)
      >>> bool(abs(found[-1] - jnp.exp(-4)) < 1e-6)
      True
    """

    def __call__(self, initial: State, ts: Float[Array, " times"], /) -> States: ...


class Windows(NamedTuple):
    """What a loss runs its loops by, in `value_and_windowed_grad`.

    Attributes:
      scan: (f, init, xs=None, length=None, reverse=False, unroll=1) -> (carry, ys), a `windowed_scan`.
      solve: (solve, initial, ts) -> values, a `windowed_solve`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import truncation
      >>> loss = lambda loops, w: loops.scan(lambda h, x: (w * h + x, None), 0.0, jnp.ones(4))[0]
      >>> exact = jax.grad(lambda w: loss(truncation.Windows(jax.lax.scan, lambda solve, *at: solve(*at)), w))
      >>> float(exact(2.0)), float(truncation.value_and_windowed_grad(loss, window=2)(2.0)[1])  # 1 + 2 w + 3 w²
      (17.0, 13.0)
    """

    scan: Callable[..., tuple[State, Any]]
    solve: Callable[..., States]


def windowed_scan(
    f: Loop,
    init: State,
    xs: Any = None,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
    *,
    window: int,
    probe: States | None = None,
) -> tuple[State, Any]:
    """`jax.lax.scan`, its values and its arguments, with the derivative of the carry cut after every K steps.

    In reverse mode this is `truncation.windowed` for a loop of anybody's: each window's losses reach back to its own
    beginning, the first one's to `init`. What f reads besides its carry is not cut. One scan of windows over a scan of
    steps; the T mod K steps left over are a second copy of f. Memory as that of `lax.scan`.

    Args:
      f: (carry, x) -> (carry, y); it may be rematerialised, or hold loops of its own.
      init: the first carry, any pytree; integers and keys pass.
      xs: x_1 … x_T, leading T, or None.
      length: T, where xs is None.
      reverse: whether x_T comes first; windows are counted in the order of the loop.
      unroll: as in `lax.scan`, within a window.
      window: K ≥ 1, static; K ≥ T cuts nothing.
      probe: `make_probe(init, T, K)`: the gradient with respect to it is the carry's cotangent that each border cut.

    Returns:
      (the last carry, ys with leading T).

    Raises:
      TypeError, ValueError: a window that is no int ≥ 1; neither xs nor a length; leaves of different T; a probe of
        another shape.

    Example:
      >>> import functools, jax, jax.numpy as jnp
      >>> from jaxbptt import truncation
      >>> def loss(w, scan):
      ...     states = scan(lambda h, x: (w * h + x,) * 2, 0.0, jnp.array([1.0, 0.0, 0.0, 0.0]))[1]
      ...     return jnp.sum(states**2) / 2
      >>> windowed = functools.partial(truncation.windowed_scan, window=2)
      >>> [float(jax.grad(loss)(2.0, scan)) for scan in (jax.lax.scan, windowed)]
      [114.0, 74.0]

    Reference: Williams & Peng (1990), Neural Computation 2; `truncation.windowed`.
    """
    _validation.require_size("window", window)
    num_steps = _count_steps(xs, length)
    count, rest = divmod(num_steps, window)
    if num_steps <= window:
        _require_rows(probe, 0)
        return jax.lax.scan(f, init, xs, length, reverse=reverse, unroll=unroll)
    flip = lambda tree: jax.tree.map(lambda leaf: jnp.flip(leaf, axis=0), tree) if reverse else tree
    xs = flip(jax.tree.map(jnp.asarray, xs))
    head = jax.tree.map(lambda leaf: leaf[: count * window].reshape(count, window, *leaf.shape[1:]), xs)
    probe, borders = _border_rows(init, num_steps, window, probe)

    def run(carry, window_of):
        xs, probe, is_border = window_of
        carry, ys = jax.lax.scan(f, carry, xs, window, unroll=unroll)
        return cut(carry, is_border, probe=probe), ys

    carry, ys = jax.lax.scan(run, init, (head, probe, borders))
    ys = jax.tree.map(lambda leaf: leaf.reshape(count * window, *leaf.shape[2:]), ys)
    if rest:
        tail = jax.tree.map(lambda leaf: leaf[count * window :], xs)
        carry, last = jax.lax.scan(f, carry, tail, rest, unroll=unroll)
        ys = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), ys, last)
    return carry, flip(ys)


def windowed_solve(
    solve: Solve, initial: State, ts: Float[Array, " times"], *, window: int, probe: States | None = None
) -> States:
    """The values of a solver at times t_0 … t_T, solved window by window, the derivative cut at every K-th time.

    Each window starts from the last value of the one before it, so that an adaptive solver chooses its first step anew:
    its values are the same to its tolerances, and bit for bit if K ≥ T. A step's gradient through the solver's own
    adjoint method is left to it, within a window.

    Args:
      solve: (value at ts[0], ts) -> values at all of ts, for any ts of increasing times; diffrax with `SaveAt(ts=ts)`.
      initial: the value at t_0, any pytree.
      ts: t_0 … t_T, increasing.
      window: K ≥ 1 intervals, static.
      probe: `make_probe(initial, T, K)`, as in `windowed_scan`.

    Returns:
      A pytree [T + 1, ...], that at t_0 first.

    Raises:
      TypeError, ValueError: a window that is no int ≥ 1; ts that are no vector of floats; values that are not
        [len(ts), ...] like `initial`; a probe of another shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import truncation
      >>> def loss(rate, window):  # with diffrax: lambda y, ts: diffrax.diffeqsolve(…, y, saveat=SaveAt(ts=ts)).ys
      ...     solve = lambda y, ts: y * jnp.exp(rate * (ts - ts[0]))
      ...     return truncation.windowed_solve(solve, 1.0, jnp.arange(5.0), window=window)[-1]
      >>> [round(float(jax.grad(loss)(0.0, window)), 3) for window in (4, 2, 1)]  # the last window's share of 4
      [4.0, 2.0, 1.0]

    Reference: Kidger (2021), arXiv:2202.02435, §5 (adjoints); truncated as in `windowed_scan`.
    """
    _validation.require_size("window", window)
    ts = _validation.as_arrays("ts", ts)
    _validation.require_array("ts", ts, ("T + 1",))
    num_steps = len(ts) - 1
    if num_steps <= window:
        _require_rows(probe, 0)
        return _solve(solve, initial, ts)
    count, rest = divmod(num_steps, window)
    initial = jax.tree.map(jnp.asarray, initial)
    probe, borders = _border_rows(initial, num_steps, window, probe)

    def run(value, window_of):
        ts, probe, is_border = window_of
        values = _solve(solve, value, ts)
        last, rest = jax.tree.map(lambda leaf: leaf[-1], values), jax.tree.map(lambda leaf: leaf[1:], values)
        return cut(last, is_border, probe=probe), rest

    starts = window * np.arange(count)[:, None] + np.arange(window + 1)[None, :]
    value, values = jax.lax.scan(run, initial, (ts[starts], probe, borders))
    parts = [jax.tree.map(lambda leaf: leaf.reshape(count * window, *leaf.shape[2:]), values)]
    if rest:
        parts.append(jax.tree.map(lambda leaf: leaf[1:], _solve(solve, value, ts[count * window :])))
    return jax.tree.map(lambda first, *rest: jnp.concatenate((first[None], *rest)), initial, *parts)


def value_and_windowed_grad(loss: Callable[..., Any], *, window: int) -> Callable[..., tuple[Any, Any, list[Any]]]:
    """`jax.value_and_grad` of a loss whose loops are cut every K steps, with what each border cut.

    Args:
      loss: (loops, params, *rest) -> scalar, that runs its loops by `loops.scan` and `loops.solve`, see `Windows`, each
        call of them outside other transformations than `jax.checkpoint`: a batch is a `jax.vmap` of the result.
      window: K ≥ 1, static, of every loop.

    Returns:
      (params, *rest) -> (the loss, its truncated gradient, a list of ‖μ‖ [⌈T/K⌉ − 1] at the borders of each loop, in
      the order of the calls): the norm of the cotangent that would have passed on, of the one window after the border.
      None for a carry without derivatives.

    Raises:
      TypeError, ValueError: a window that is no int ≥ 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import truncation
      >>> def loss(loops, w):
      ...     states = loops.scan(lambda h, x: (w * h + x,) * 2, 0.0, jnp.array([1.0, 0.0, 0.0, 0.0]))[1]
      ...     return jnp.sum(states**2) / 2
      >>> value, grad, lost = truncation.value_and_windowed_grad(loss, window=2)(2.0)
      >>> float(value), float(grad), [norms.tolist() for norms in lost]  # of 114; w (4 + w 8) passed back to h_2
      (42.5, 74.0, [[40.0]])
    """
    _validation.require_size("window", window)

    def differentiate(params, *rest):
        shapes: list[Any] = []

        def note(carry, num_steps):
            shapes.append(jax.eval_shape(lambda: make_probe(carry, num_steps, window)))
            return make_probe(carry, num_steps, window)

        jax.eval_shape(lambda: loss(_loops(window, note), params, *rest))
        probes = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def total(params, probes):
            following = iter(probes)
            return loss(_loops(window, lambda *_: next(following)), params, *rest)

        value, (grads, cotangents) = jax.value_and_grad(total, argnums=(0, 1))(params, probes)
        return value, grads, [lost_norms(each) if jax.tree.leaves(each) else None for each in cotangents]

    return differentiate


def _loops(window, probe_of):
    """Both loops; probe_of(first carry, T) is asked once a call."""

    def scan(f, init, xs=None, length=None, reverse=False, unroll=1):
        probe = probe_of(init, _count_steps(xs, length))
        return windowed_scan(f, init, xs, length, reverse, unroll, window=window, probe=probe)

    def solve(solve, initial, ts):
        probe = probe_of(initial, len(ts) - 1)
        return windowed_solve(solve, initial, ts, window=window, probe=probe)

    return Windows(scan, solve)


def _count_steps(xs, length):
    if jax.tree.leaves(xs):
        return _validation.require_time_axis("xs", xs, length, finite=False)
    _validation.require_size("length", length)
    return length


def _solve(solve, value, ts):
    """The solver's values; raise unless they are those at all of ts, like the first."""
    values = solve(value, ts)
    rows = lambda leaf: jax.ShapeDtypeStruct((len(ts), *jnp.shape(leaf)), jnp.result_type(leaf))
    _validation.require_same("solve's values", values, jax.tree.map(rows, value), dtypes=False)
    return values


def _require_rows(probe, borders):
    for leaf in jax.tree.leaves(probe):
        if jnp.shape(leaf)[:1] != (borders,):
            raise ValueError(f"probe: got shape {list(jnp.shape(leaf))}, expected {borders} rows, one a border")


def _border_rows(carry, num_steps, window, probe):
    """(probe, whether to cut) after each of the ⌊T/K⌋ whole windows: not after the last step of all."""
    count, borders = num_steps // window, -(-num_steps // window) - 1
    probe = make_probe(carry, num_steps, window) if probe is None else probe
    _require_rows(probe, borders)
    if count > borders:
        probe = jax.tree.map(lambda leaf: jnp.concatenate((leaf, jnp.zeros_like(leaf[:1]))), probe)
    return probe, jnp.arange(count) < borders

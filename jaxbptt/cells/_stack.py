"""Layers: every cell reads the output or the hidden part of the one below, at the same step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt import _validation
from jaxbptt.cells.cell import Cell
from jaxbptt.cells.derivation import Derivation
from jaxbptt.cells.factored import FactoredPullback, factored_pullback
from jaxbptt.types import State


def stack(*cells: Cell, read: Callable[[State], Any] | None = None) -> Cell:
    """h¹_t = f¹(h¹_{t−1}, x_t),  hˡ_t = fˡ(hˡ_{t−1}, r(hˡ⁻¹_t)) with r the hidden part of a state.

    A cell with an output of its own, y_t(h_t, x_t), passes that on in place of r, and so does a stack whose top has
    one. The chain is block lower triangular. Where every cell has a factored derivation, and none below the top has
    such an output, so has the stack: λ passes from each layer to the one below within a step, and weights' gradients
    are formed over all steps at once.

    Args:
      *cells: from the bottom to the top.
      read: (state of one layer) -> what the layer above takes as its input. None: the cell's output where it has one,
        else `.hidden` where there is one (an LSTM's), else the state itself if it is a single array.

    Returns:
      Cell on the tuple of their params and the tuple of their states; `num_inputs` is that of the lowest.

    Raises:
      TypeError, ValueError: no cells, or one that is not a cell; a state whose hidden part is not known; a layer that
        takes another number of inputs than the layer below gives.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, trajectories
      >>> cell = cells.stack(cells.lstm(2, 3), cells.gru(3, 4))  # the GRU reads the LSTM's h
      >>> params = cell.init(jax.random.key(0))
      >>> bottom, top = trajectories.unroll(cell, params, jnp.ones((5, 2))).states
      >>> bottom.hidden.shape, top.shape
      ((5, 3), (5, 4))
    """
    if not cells:
        raise ValueError("cells: got none, expected at least one")
    for cell in cells:
        _validation.require_functions("cell", cell, ("initial_state", "step"))
    hidden = hidden_part if read is None else read
    has_output = [cell.output is not None and read is None for cell in cells]

    def passed_on(layer, params, state, x):
        """What the layer above sees."""
        return cells[layer].output(params, state, x) if has_output[layer] else hidden(state)

    def init(key):
        _validation.require_key(key)
        keys = jax.random.split(key, len(cells))
        return tuple(cell.init(key) for cell, key in zip(cells, keys, strict=True))

    def initial_state(params):
        states = tuple(cell.initial_state(each) for cell, each in zip(cells, params, strict=True))
        for number, (cell, below) in enumerate(zip(cells[1:], states, strict=False), start=2):
            if has_output[number - 2]:
                continue  # it may need x_t to know its size: the step itself says what does not fit
            size = jax.eval_shape(hidden, below)
            if cell.num_inputs is not None and getattr(size, "shape", None) != (cell.num_inputs,):
                got = f"layer {number}: it takes {cell.num_inputs} inputs"
                raise ValueError(f"cells: got {got}, expected as many as layer {number - 1} gives ({_shapes(size)})")
        return states

    def step(params, state, x):
        new = []
        for layer, (cell, each, before) in enumerate(zip(cells, params, state, strict=True)):
            new.append(cell.step(each, before, x))
            x = passed_on(layer, each, new[-1], x) if layer + 1 < len(cells) else None
        return tuple(new)

    def output(params, state, x):
        for layer, (each, own) in enumerate(zip(params, state, strict=True)):
            x = passed_on(layer, each, own, x)
        return x

    has_init = all(cell.init is not _validation.no_init for cell in cells)
    return Cell(
        init=init if has_init else _validation.no_init,
        initial_state=initial_state,
        step=step,
        derivation=None if any(has_output[:-1]) else _derive(cells, hidden),
        num_inputs=cells[0].num_inputs,
        output=output if has_output[-1] else None,
    )


def hidden_part(state: State) -> Any:
    """`.hidden` of a state, or the state itself if it is a single array; else raise."""
    if hasattr(state, "hidden"):
        return state.hidden
    if len(jax.tree.leaves(state)) == 1:
        return jax.tree.leaves(state)[0]
    raise ValueError(f"read: got None, expected a function of a state of {_shapes(state)}: which part is hidden?")


def _shapes(tree):
    return ", ".join(str(list(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _derive(cells, hidden):
    """The factored derivation of the stack, from those of all its cells; None if one has none.

    δ of a lower layer needs the weights of those above, which `delta` does not take: the stack's δ is (factors, λ), and
    `pull` carries λ down from the top where params are at hand.
    """
    pullbacks = [factored_pullback(cell.derivation) for cell in cells]
    known = [pullback for pullback in pullbacks if pullback is not None]
    if len(known) < len(cells):
        return None

    def advance(params, state, drive):
        new: list[State] = []
        kept: list[Any] = []
        for layer, (pullback, each, before) in enumerate(zip(known, params, state, strict=True)):
            drive = pullback.drive(each, hidden(new[-1])) if layer else drive
            after, kept_of_layer = pullback.advance(each, before, drive)
            new.append(after)
            kept.append(kept_of_layer)
        return tuple(new), tuple(kept)

    def expand(state, new, kept):
        layers = zip(known, state, new, kept, strict=True)
        return tuple(pullback.expand(*rest) for pullback, *rest in layers), new

    def pull(params, factors, cotangent):
        """(cotangent of each layer's state with what came from above, δ of each layer), from the bottom up."""
        of_layers, states = factors
        totals: list[State] = []
        deltas: list[Any] = []
        from_above = None
        for layer in reversed(range(len(known))):
            total = cotangent[layer]
            if from_above is not None:
                seen = jax.vjp(hidden, states[layer])[1](from_above)[0]
                total = jax.tree.map(jnp.add, total, seen)
            delta = known[layer].delta(of_layers[layer], total)
            from_above = known[layer].input(params[layer], delta) if layer else None
            totals.insert(0, total)
            deltas.insert(0, delta)
        return totals, deltas

    def pull_state(params, factors, cotangent, delta):
        layers = zip(known, params, factors[0], *pull(params, factors, cotangent), strict=True)
        return tuple(pullback.state(*rest) for pullback, *rest in layers)

    def pull_params(params, state, x, delta):
        factors, cotangent = delta
        seen = [x, *map(hidden, factors[1][:-1])]
        layers = zip(known, params, state, seen, pull(params, factors, cotangent)[1], strict=True)
        return tuple(pullback.params(*rest) for pullback, *rest in layers)

    def pull_input(params, delta):
        return known[0].input(params[0], pull(params, *delta)[1][0])

    def state_jacobian(params, state, x):
        """Rows of layer l: what layer l − 1 passes on through its hidden part, then layer l's own J."""
        seen, below, rows = x, None, []
        sizes = [sum(leaf.size for leaf in jax.tree.leaves(each)) for each in state]
        for layer, (cell, each, before) in enumerate(zip(cells, params, state, strict=True)):
            own = cell.derivation.state_jacobian(each, before, seen)
            after = cell.step(each, before, seen)
            if below is not None:
                read = lambda x, cell=cell, each=each, before=before: ravel_pytree(cell.step(each, before, x))[0]
                push = lambda tangent, read=read, seen=seen: jax.jvp(read, (seen,), (tangent,))[1]
                own = jnp.concatenate((jax.vmap(push, in_axes=-1, out_axes=-1)(below), own), axis=1)
            width = sum(sizes[: layer + 1])
            rows.append(jnp.pad(own, ((0, 0), (0, sum(sizes) - width))))
            if layer + 1 == len(cells):
                break
            flat, unravel = ravel_pytree(after)
            up = lambda column, unravel=unravel, flat=flat: jax.jvp(lambda h: hidden(unravel(h)), (flat,), (column,))[1]
            below, seen = jax.vmap(up, in_axes=-1, out_axes=-1)(own), hidden(after)
        return jnp.concatenate(rows)

    drive = lambda params, x: known[0].drive(params[0], x)
    delta = lambda factors, cotangent: (factors, cotangent)
    pullback = FactoredPullback(drive, advance, expand, delta, pull_state, pull_params, pull_input)
    return Derivation(state_jacobian, pullback)

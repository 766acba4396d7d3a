"""What a report is asked of: one sequence or many, checked, and which of its steps form one unbroken chain."""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxbptt._jaxprs.text import key_of_program
from jaxbptt.derivations.compiled import map_rows
from jaxbptt.gradients.backpropagation import bptt
from jaxbptt.gradients.exact import autodiff
from jaxbptt.gradients.forward import Problem, take_problem
from jaxbptt.models._batched import single_of
from jaxbptt.models.model import Model
from jaxbptt.partials import step_partials
from jaxbptt.types import Inputs, Params, State, Targets

MOST_SEQUENCES = 16  # of a batch that are looked at: quartiles of more change little


class Subject(NamedTuple):
    """A model of one sequence, with the data of one or of many."""

    model: Model
    problem: Problem  # of all sequences
    batch: int | None  # B; None: one sequence, without an axis of its own
    key: Hashable  # tells the model's programs from others

    @property
    def chosen(self) -> np.ndarray:
        """The sequences that are looked at: all, or MOST_SEQUENCES evenly spaced."""
        batch = self.batch or 1
        return np.unique(np.linspace(0, batch - 1, min(batch, MOST_SEQUENCES)).round().astype(int))

    @property
    def size(self) -> int:
        """N of one sequence."""
        state = jax.eval_shape(self.model.initial_state, self.problem.params)
        return sum(leaf.size for leaf in jax.tree.leaves(state))

    @property
    def num_params(self) -> int:
        """|θ|."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.problem.params))

    @property
    def dtype(self) -> np.dtype:
        """That of params, or of the state where there are none."""
        state = jax.eval_shape(self.model.initial_state, self.problem.params)
        return np.dtype(jax.tree.leaves((self.problem.params, state))[0].dtype)

    def sequence(self, problem: Problem, index: Any) -> Problem:
        """The data of one sequence; `index` may be traced."""
        if self.batch is None:
            return problem
        inputs, targets = jax.tree.map(lambda leaf: leaf[:, index], (problem.inputs, problem.targets))
        initial = jax.tree.map(lambda leaf: leaf[index], problem.initial)
        return Problem(problem.params, inputs, targets, initial, problem.length)

    def measure(
        self, name: Hashable, function: Callable[..., Any], *shared: Any, chosen: np.ndarray | None = None
    ) -> Any:
        """function(problem, *shared) of every chosen sequence, one after another in one program; NumPy [B, ...]."""
        length = self.problem.length

        def at(arrays, index):
            (params, inputs, targets, initial), shared = arrays
            return function(self.sequence(Problem(params, inputs, targets, initial, length), index), *shared)

        rows = self.chosen if chosen is None else chosen
        arrays = self.problem[:4], shared
        return jax.tree.map(np.asarray, map_rows((name, self.batch, self.key), at, arrays, rows))


def take_subject(
    model: Model, params: Params, inputs: Inputs, targets: Targets, initial: State | None = None
) -> Subject:
    """The arguments of a report; raise unless they fit, before anything is compiled."""
    problem = take_problem(model, params, inputs, targets, initial)
    batch = model.batch
    single = model if batch is None else single_of(model)
    if single is None:
        raise ValueError("model: got a batch that does not know its model of one sequence, expected one from `batched`")
    key = _key_of(model, problem) or object()  # an object: what is compiled is kept for this call alone
    subject = Subject(single, problem, batch, key)
    if subject.dtype not in (np.float32, np.float64):
        raise TypeError(f"params: got {subject.dtype}, expected float32 or float64 (cast params and inputs)")
    return subject


def longest_stretch(model: Model, inputs: Inputs, length: int) -> tuple[int, int] | None:
    """(first, stop): steps first+1 … stop are the longest run without a reset, in any sequence; None: there is none."""
    if "resetting" not in model.applied:
        return 0, length
    resets = inputs if hasattr(inputs, "reset") else inputs.x  # counters and keys may be precomputed beside them
    reset = np.asarray(resets.reset).reshape(length, -1).any(axis=1)
    borders = np.flatnonzero(np.concatenate(([True], reset, [True])))
    # A run of steps without a reset lies between two resets: step t stands at index t − 1.
    runs = np.diff(borders) - 1
    longest = int(np.argmax(runs))
    return (int(borders[longest]), int(borders[longest] + runs[longest])) if runs[longest] > 0 else None


def _key_of(model, problem):
    """What tells this model's programs from others; shapes and constants are part of their text."""

    def programs(params, inputs, targets, initial):
        partials = step_partials(model)
        x = jax.tree.map(lambda leaf: leaf[0], inputs)
        state = model.initial_state(params) if initial is None else initial
        routes = [route(model, params, inputs, targets, initial=initial) for route in (autodiff, bptt)]
        return routes, partials.jacobian(params, state, x)

    return key_of_program(model, programs, problem.params, problem.inputs, problem.targets, problem.initial)

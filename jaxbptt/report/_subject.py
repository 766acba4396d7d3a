"""What all rows of a verdict share: the model at its data, its forward pass, and the gradient with what rounding may do
to it."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import _validation
from jaxbptt.derivations._check_gradient import Gradient
from jaxbptt.derivations.compiled import map_one, map_rows
from jaxbptt.derivations.kinks import Visit, find_visits
from jaxbptt.derivations.samples import Stream, epsilon_of, perturb, responses
from jaxbptt.gradients.exact import autodiff
from jaxbptt.gradients.forward import ForwardPass, Problem, run_forward
from jaxbptt.models.model import Model
from jaxbptt.types import Key

Status: TypeAlias = Literal["passed", "failed", "note", "n/a"]
ENTRIES, LEAVES = 200, 1  # in eps: of a leaf's largest entry, and of the largest entry of all


class Outcome(NamedTuple):
    """What one row found."""

    status: Status
    detail: str
    number: float | None = None


class Reference(NamedTuple):
    """dC/dθ by automatic differentiation."""

    grads: dict[str, np.ndarray]  # by leaf, float64
    tolerance: dict[str, float]  # of one entry of each leaf: what rounding of sums and arguments may do
    noise: float  # the same of C

    def worst(self, grads: Any, allowance: float = 1) -> tuple[float, float, str]:
        """(relative difference of the whole; the worst leaf's largest difference in tolerances; that leaf)."""
        differences = {name: leaf - self.grads[name] for name, leaf in named(grads).items()}
        norm = np.sqrt(sum(np.sum(leaf**2) for leaf in self.grads.values()))
        off = np.sqrt(sum(np.sum(leaf**2) for leaf in differences.values()))
        excess = {
            name: np.max(np.abs(leaf), initial=0) / (allowance * self.tolerance[name])
            for name, leaf in differences.items()
        }
        leaf = max(excess, key=lambda name: np.nan_to_num(excess[name], nan=np.inf))
        return float(off / max(norm, np.finfo(np.float64).tiny)), float(np.nan_to_num(excess[leaf], nan=np.inf)), leaf


class Subject:
    """A model at its data; what several rows need is computed once, when the first of them asks."""

    def __init__(self, model: Model, problem: Problem, gradient: Gradient | None, key: Key) -> None:
        self.model, self.problem, self.gradient, self.key = model, problem, gradient, key
        self.params, self.inputs, self.targets, self.initial, self.length = problem
        self.epsilon = epsilon_of(self.params)

    @property
    def data(self) -> tuple[Any, ...]:
        """(θ, x, y, h_0 or None): the arguments of a route."""
        return self.problem[:4]

    def compiled(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(*arguments) as one program, in NumPy's float64 no more than in JAX's own dtypes."""
        return map_one(None, lambda _, row: function(*row), jax.tree.map(jnp.asarray, arguments))

    @functools.cached_property
    def forward(self) -> ForwardPass:
        return self.compiled(lambda *data: run_forward(self.model, *data), *self.data)

    @functools.cached_property
    def reference(self) -> Reference:
        """At the arguments, and at some that differ from them by rounding."""

        def body(_, row):
            return autodiff(self.model, *row[:3], initial=row[3])

        loss, grads = map_rows(None, body, None, perturb(self.data, Stream(self.key, 30)))
        values = {name: leaf[:, None] for name, leaf in named(grads).items()}
        sizes = {name: np.max(np.abs(leaf[0]), initial=0) for name, leaf in values.items()}
        largest = max(sizes.values(), default=0)
        tolerance = {
            name: self.epsilon * (ENTRIES * sizes[name] + LEAVES * largest)
            + float(np.max(responses(leaf, self.epsilon), initial=0))
            for name, leaf in values.items()
        }
        loss = np.asarray(loss, np.float64)
        noise = float(np.max(np.abs(loss[1:5] - loss[0])) + self.epsilon * np.abs(loss[0]))
        return Reference({name: leaf[0, 0] for name, leaf in values.items()}, tolerance, noise)

    @functools.cached_property
    def kinks(self) -> tuple[Visit, ...]:
        """Where the step is not differentiable at a number it visits."""
        trajectory = self.forward.trajectory
        return find_visits(None, self.model.step, self.params, trajectory.previous, trajectory.inputs)

    def wrong(self, detail: str, number: float | None) -> Outcome:
        """A difference between derivatives: a failure, but for a kink, where several are right."""
        if self.kinks:
            return Outcome("note", f"{detail}; {self.kinks[0]}, where more than one value is right", number)
        return Outcome("failed", detail, number)

    def pick(self, count: int) -> np.ndarray:
        """Up to `count` steps, from 0, evenly spaced, the first and the last among them."""
        return np.unique(np.linspace(0, self.length - 1, count).round().astype(int))


def named(tree: Any) -> dict[str, np.ndarray]:
    """{"params.<leaf>": float64 array}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_validation.leaf_name("params", path): np.asarray(leaf, np.float64) for path, leaf in leaves}


def flat64(tree: Any) -> np.ndarray:
    """All float leaves as one vector in float64."""
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves) if leaves else np.zeros(0)


def map_floats(function: Callable[[jax.Array], Any], tree: Any) -> Any:
    """`function` of every float leaf, the others as they are."""
    return jax.tree.map(lambda leaf: function(leaf) if _validation.is_float(leaf) else leaf, tree)


def join_names(names: list[str], most: int = 4) -> str:
    """The first few of a list."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def one_line(error: Exception) -> str:
    """The first line of what was raised."""
    return str(error).partition("\n")[0] or type(error).__name__

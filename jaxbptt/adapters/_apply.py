"""A model from a function (params, carry, x) -> (carry, output), which every framework's module comes down to."""

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import _validation
from jaxbptt._jaxprs.outputs import OutputReader, read_output
from jaxbptt.models import Adapted, Loss, Model, real_pairs, trainable
from jaxbptt.models._adapted import chain
from jaxbptt.types import Input, Output, Reads, Reduction, State

READERS = 8  # programs kept, by the shapes they were read at


class Apply(Protocol):
    def __call__(self, params: Any, carry: State, x: Input, /) -> tuple[State, Output]:
        """(h_t, o_t) from h_{t−1} and x_t."""
        ...


def from_apply(
    apply: Apply,
    params: Any,
    carry: Any,
    *,
    loss: Loss,
    reduction: Reduction = "sum",
    x: Input = None,
    select: Callable[[Any, Any], bool] | None = None,
) -> Adapted:
    """h_t, o_t = apply(θ, h_{t−1}, x_t),  L_t = L(o_t, y_t).

    The output is read from the new carry, x and params wherever the program allows: it is cut where the new carry is
    known, through jit, remat, reshapes and concatenations. The state is the carry alone, so are J_t and all spectra.
    An output that truly needs h_{t−1}, such as one of a gate, reads it: λ_{t−1} then has a term of its own.

    Args:
      apply: (params, carry, x) -> (carry, output), pure.
      params: any pytree; float and complex leaves are trained, others are constants.
      carry: h_0, or a function (params) -> h_0; floats are cast to the dtype of params, in which the recurrence then
        runs even if the module would keep a carry of less precision.
      loss: (o_t, y_t) -> a scalar.
      reduction: "sum" or "mean" over the steps.
      x: an example of one input. None: what the output reads is found where the model is called; needed for an output
        that reads h_{t−1}, and by functions that ask for an output of the state alone.
      select: as in `models.trainable`.

    Returns:
      Adapted. Complex leaves are pairs of real ones (`models.real_pairs`).

    Raises:
      TypeError, ValueError: an argument not as stated; a result that is not (carry, output) with the carry's structure.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import adapters, gradients, models
      >>> apply = lambda w, carry, x: (w["a"] * carry + x, w["b"] * carry)  # o_t reads h_{t−1}
      >>> weights = {"a": jnp.asarray(0.5), "b": jnp.asarray(1.0)}
      >>> mine = adapters.from_apply(apply, weights, jnp.asarray(0.0), loss=models.squared_error, x=jnp.asarray(0.0))
      >>> loss, grads = gradients.bptt(mine.model, mine.params, jnp.ones(3), jnp.zeros(3))  # o = 0, 1, 1.5
      >>> loss.item(), jax.tree.map(float, mine.restore(grads))
      (1.625, {'a': 1.5, 'b': 3.25})
    """
    if not callable(apply):
        raise TypeError(f"apply: got {type(apply).__name__}, expected a function (params, carry, x) -> (carry, output)")
    _validation.require_choice("reduction", reduction, ("sum", "mean"))
    carry = carry if callable(carry) else _validation.as_arrays("carry", carry)
    dtype = _float_dtype(params)
    initial_state = lambda params: _cast(carry(params) if callable(carry) else carry, dtype)

    def checked(params, state, x):
        result = apply(params, state, x)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"apply: got {type(result).__name__}, expected (carry, output)")
        like = jax.eval_shape(lambda state: state, state)
        _validation.require_same("apply's new carry", result[0], like, dtypes=False)  # dtypes: where a model is called
        return result

    structure: Any = jax.tree.structure(params)
    leaves = jax.tree.leaves(params)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray | np.generic)]

    def on_arrays(arrays, state, x):
        known = dict(zip(places, arrays, strict=True))
        return checked(structure.unflatten([known.get(place, leaf) for place, leaf in enumerate(leaves)]), state, x)

    @functools.lru_cache(maxsize=READERS)  # a readout is traced many times
    def read_at(structure: Any, shapes: Any) -> OutputReader:
        return read_output(on_arrays, *structure.unflatten([jax.ShapeDtypeStruct(*each) for each in shapes]))

    def reader(params, state, x):
        given, structure = jax.tree.flatten(([jax.tree.leaves(params)[place] for place in places], state, x))
        return read_at(structure, tuple((jnp.shape(leaf), leaf.dtype) for leaf in given))

    reads: Reads = "state, x"
    if x is not None:
        x = _validation.as_arrays("x", x, shapes=True)
        start = jax.eval_shape(lambda: initial_state(params))
        _validation.trace("x", lambda x: checked(params, jax.tree.map(jnp.zeros_like, start), x), x)
        reads = reader(params, start, x).reads

    def readout(params, state, *seen):
        x_t, *previous = seen or (x,)
        found = reader(params, state, x_t)
        if found.reads == "state, x, previous" and not previous:
            raise ValueError("x: got None, expected an example of one input: the output needs h_{t−1}")
        arrays = [jax.tree.leaves(params)[place] for place in places]
        return found.run(arrays, state, x_t, previous[0] if previous else None)

    model = Model(
        init=None,
        initial_state=initial_state,
        step=lambda params, state, x: checked(params, state, x)[0],
        readout=readout,
        loss=loss,
        reduction=reduction,
        reads=reads,
    )
    adapted = trainable(model, params, select)
    complex_leaves = jax.tree.leaves((adapted.params, jax.eval_shape(adapted.model.initial_state, adapted.params)))
    if not any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in complex_leaves):
        return adapted
    return chain(adapted, real_pairs(adapted.model, adapted.params))


class Layers(NamedTuple):
    """Modules on top of each other, or one alone."""

    modules: list[Any]
    several: bool

    @property
    def depth(self) -> int:
        """The place in a key path where a layer's own tree begins."""
        return int(self.several)

    def of(self, tree: Any) -> list[Any]:
        """What belongs to each layer."""
        return list(tree) if self.several else [tree]

    def join(self, parts: list[Any]) -> Any:
        """The inverse of `of`."""
        return parts if self.several else parts[0]


def take_layers(module: Any, variables: Any, carry: Any) -> Layers:
    """One module or a list of them; raise unless variables and carry are lists of as many."""
    several = isinstance(module, list | tuple)
    modules = list(module) if several else [module]
    for name, tree in (("variables", variables), ("carry", carry)):
        listed = isinstance(tree, list | tuple) and len(tree) == len(modules)
        if several and not listed and not callable(tree):
            raise ValueError(f"{name}: got {type(tree).__name__}, expected a list of {len(modules)}, one per layer")
    return Layers(modules, several)


def run_layers(layers: Layers, apply_layer: Callable[[int, Any, State, Input], tuple[State, Output]]) -> Apply:
    """(params, carry, x) -> (carry, output) of all layers, each reading the output of the one below."""

    def apply(params, carry, x):
        new = []
        for number, (own, before) in enumerate(zip(layers.of(params), layers.of(carry), strict=True)):
            after, x = apply_layer(number, own, before, x)
            new.append(after)
        return type(carry)(new) if layers.several else new[0], x

    return apply


def split_result(result: Any, carry: State, output: Callable[[Any], Any] = lambda carry: carry) -> Any:
    """(carry, output) of a module that returns both, or the new carry alone: then its output is `output(carry)`."""
    own: Any = jax.tree.structure(carry)
    if jax.tree.structure(result) == own:
        return result, output(result)
    if isinstance(result, tuple) and len(result) == 2 and jax.tree.structure(result[0]) == own:
        return result
    raise TypeError(f"module: got a result of {_describe(result)}, expected (carry, output) or a carry like h_0")


def _describe(tree):
    return str(jax.tree.structure(tree)).removeprefix("PyTreeDef(").removesuffix(")")


def import_framework(name: str, extra: str) -> Any:
    """The module of a framework; raise in one line where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name}: not installed, expected it (pip install 'jaxbptt[{extra}]')") from error


def _float_dtype(params):
    """The real dtype of the params' floats; None without any."""
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, jax.Array | np.ndarray | np.generic) and jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jnp.finfo(leaf.dtype).dtype
    return None


def _cast(tree, dtype):
    """Floats in `dtype`, complex numbers in the complex dtype of the same precision."""

    def cast(leaf):
        leaf = jnp.asarray(leaf)
        if dtype is None or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        is_complex = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
        return leaf.astype(np.result_type(dtype, np.complex64) if is_complex else dtype)

    return jax.tree.map(cast, tree)

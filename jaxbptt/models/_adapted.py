"""A model on part of somebody's params, or on real numbers in place of complex ones, and the way back."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import _validation
from jaxbptt.cells.factored import is_outer
from jaxbptt.cells.lifting import on_larger_params
from jaxbptt.models._order import require_order
from jaxbptt.models.model import Model
from jaxbptt.types import Params


class Adapted(NamedTuple):
    """A model, its params, and the way back to the tree that they came from.

    Attributes:
      model: a `Model`; of a PyTorch module that runs both ways a `BidirectionalModel`.
      params: θ of that model, the leaves that are trained.
      restore: a gradient -> the first tree, as `jax.grad` gives it; None where frozen.
      values: params -> the first tree, frozen leaves in their places.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import models
      >>> step, start = lambda p, h, x: p["a"] * h + p["b"] * x, lambda p: jnp.zeros_like(p["a"])
      >>> model = models.make_model(step, start, lambda p, h: h, models.squared_error)
      >>> params = {"a": jnp.asarray(0.5), "b": jnp.asarray(1.0)}
      >>> adapted = models.trainable(model, params, select=lambda path, leaf: path[0].key == "a")
      >>> jax.tree.map(float, adapted.params), jax.tree.map(float, adapted.values(adapted.params))
      ({'a': 0.5, 'b': None}, {'a': 0.5, 'b': 1.0})
    """

    model: Any
    params: Params
    restore: Callable[[Params], Any]
    values: Callable[[Params], Any]


class RealPair(NamedTuple):
    """A complex leaf as two real ones.

    Attributes:
      re: the real part, of the leaf's shape.
      im: the imaginary part.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models
      >>> pair = models.split_complex(jnp.asarray(3 - 4j))
      >>> float(pair.re), float(pair.im)
      (3.0, -4.0)
    """

    re: jax.Array
    im: jax.Array


def trainable(model: Model, params: Any, select: Callable[[Any, Any], bool] | None = None) -> Adapted:
    """The model on some leaves of its params alone; the others are constants.

    Args:
      model: on params of any leaves: floats, integers, bools, keys, functions.
      params: the full tree.
      select: (path, leaf) -> whether the leaf is trained, with a key path as of `jax.tree_util.tree_map_with_path`;
        asked of float (and complex) leaves alone. None: all of them.

    Returns:
      Adapted; its params keep the structure of the tree, with None for frozen leaves.

    Raises:
      ValueError, TypeError: no leaf is trained; a model with a penalty or of a batch whose params do not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import gradients, models
      >>> step, start = lambda p, h, x: p["a"] * h + p["b"] * x, lambda p: jnp.zeros_like(p["a"])
      >>> model = models.make_model(step, start, lambda p, h: h, models.squared_error)
      >>> params = {"a": jnp.asarray(0.5), "b": jnp.asarray(1.0)}
      >>> adapted = models.trainable(model, params, select=lambda path, leaf: path[0].key == "a")
      >>> loss, grads = gradients.bptt(adapted.model, adapted.params, jnp.ones(3), jnp.zeros(3))
      >>> jax.tree.map(float, adapted.restore(grads))
      {'a': 5.0, 'b': None}
    """
    _validation.require_functions("model", model, ("initial_state", "step", "readout", "loss"))
    paths = jax.tree_util.tree_leaves_with_path(params)
    structure: Any = jax.tree.structure(params)

    def is_trained(path, leaf):
        array = isinstance(leaf, jax.Array | np.ndarray | np.generic)
        inexact = array and jnp.issubdtype(leaf.dtype, jnp.inexact)
        return bool(inexact and (select is None or select(path, leaf)))

    trained = [is_trained(path, leaf) for path, leaf in paths]
    if not any(trained):
        raise ValueError("params: got no leaf to train, expected at least one float leaf that `select` takes")
    frozen = [leaf for _, leaf in paths]
    kept = [jnp.asarray(leaf) if is_kept else None for leaf, is_kept in zip(frozen, trained, strict=True)]

    def values(part):
        found = iter(jax.tree.leaves(part))
        return structure.unflatten(
            [next(found) if is_kept else leaf for leaf, is_kept in zip(frozen, trained, strict=True)]
        )

    def pick(_, cotangent):
        leaves = zip(jax.tree.leaves(cotangent, is_leaf=is_outer), trained, strict=True)
        return structure.unflatten([leaf if is_kept else None for leaf, is_kept in leaves])

    adapted = _on(model, values)._replace(derivation=on_larger_params(model.derivation, values, pick))
    return Adapted(adapted, structure.unflatten(kept), lambda gradient: gradient, values)


def real_pairs(model: Model, params: Params) -> Adapted:
    """The model with every complex leaf of params and state as (re, im): all functions then take it.

    Args:
      model: its params, state and inputs may be complex; its loss is real.
      params: with complex leaves.

    Returns:
      Adapted, on params with a `RealPair` for each complex leaf and a state alike. `restore` gives re − i·im, which is
      what `jax.grad` gives of a real function; `values` re + i·im.

    Raises:
      ValueError, TypeError: a model made in another order; params that are not arrays.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import gradients, models
      >>> step = lambda a, h, x: a * h + x
      >>> model = models.make_model(step, jnp.zeros_like, lambda a, h: h.real, models.squared_error)
      >>> adapted = models.real_pairs(model, jnp.asarray(0.5j))
      >>> loss, grads = gradients.bptt(adapted.model, adapted.params, jnp.ones(3, complex), jnp.zeros(3))
      >>> complex(adapted.restore(grads))  # ∂C/∂Re a − i ∂C/∂Im a, as jax.grad
      (1.75+0.75j)
    """
    require_order(model, "real_pairs")
    whole = _on(model, join_pairs)
    adapted = whole._replace(
        init=None if model.init is None else _composed(split_complex, model.init),
        initial_state=lambda params: split_complex(whole.initial_state(params)),
        step=lambda params, state, x: split_complex(whole.step(params, join_pairs(state), x)),
        readout=lambda params, state, *rest: whole.readout(params, join_pairs(state), *_joined(rest)),
        applied=(*model.applied, "real_pairs"),
    )
    gradient = lambda tree: jax.tree.map(jnp.conj, join_pairs(tree))
    return Adapted(adapted, split_complex(_validation.as_arrays("params", params)), gradient, join_pairs)


def split_complex(tree: Any) -> Any:
    """A tree with a `RealPair` for each complex leaf, such as the h_0 of a `real_pairs` model.

    Args:
      tree: any pytree of arrays.

    Returns:
      The tree; its other leaves are unchanged.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import models
      >>> jax.tree.map(float, models.split_complex({"h": jnp.asarray(1 + 2j), "count": jnp.asarray(3.0)}))
      {'count': 3.0, 'h': RealPair(re=1.0, im=2.0)}
    """
    is_complex = lambda leaf: jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating)
    return jax.tree.map(lambda leaf: RealPair(jnp.real(leaf), jnp.imag(leaf)) if is_complex(leaf) else leaf, tree)


def join_pairs(tree: Any) -> Any:
    """The inverse of `split_complex`.

    Args:
      tree: a pytree that may hold a `RealPair`.

    Returns:
      The tree with complex leaves.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models
      >>> complex(models.join_pairs(models.RealPair(re=jnp.asarray(1.0), im=jnp.asarray(2.0))))
      (1+2j)
    """
    is_pair = lambda node: isinstance(node, RealPair)
    return jax.tree.map(lambda node: jax.lax.complex(*node) if is_pair(node) else node, tree, is_leaf=is_pair)


def chain(first: Adapted, second: Adapted) -> Adapted:
    """`second`, made of the model and params of `first`, with the way back to where `first` came from."""
    return Adapted(
        second.model,
        second.params,
        lambda gradient: first.restore(second.restore(gradient)),
        lambda params: first.values(second.values(params)),
    )


def _joined(rest):
    """x as it came, and h_{t−1} as complex numbers."""
    return (*rest[:1], *map(join_pairs, rest[1:]))


def _on(model, full):
    """The model on `full(params)`."""
    return model._replace(
        init=None,
        initial_state=lambda params: model.initial_state(full(params)),
        step=lambda params, state, x: model.step(full(params), state, x),
        readout=lambda params, *seen: model.readout(full(params), *seen),
        derivation=None,
        penalty=None if model.penalty is None else _composed(model.penalty, full),
    )


def _composed(outer, inner):
    return lambda params: outer(inner(params))

"""A forward and a backward function of anybody's, called with changed numbers in arrays of the kind they came in."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import _validation
from jaxbptt.derivations._arrays import (
    WIDE,
    epsilon_of,
    floats_of,
    is_key,
    is_mutable,
    is_torch,
    like,
    require_array,
    to_numpy,
)


class Leaf(NamedTuple):
    """One leaf of the arguments."""

    name: str  # such as "params.w_hh"
    given: Any  # as it came
    numbers: np.ndarray | None  # its floats, in their own dtype; None: a constant
    is_timed: bool = False  # whether its leading axis is time

    def holding(self, numbers: np.ndarray | None) -> Any:
        """A fresh array of this leaf's kind with these numbers (None: its own)."""
        if numbers is None:
            return like(self.given, to_numpy(self.given)) if is_mutable(self.given) else self.given
        fresh = like(self.given, numbers)
        return fresh.requires_grad_(self.given.requires_grad) if is_torch(fresh) else fresh

    def cut(self, length: int) -> "Leaf":
        """Its first entries."""
        return self._replace(given=self.given[:length], numbers=None if self.numbers is None else self.numbers[:length])


class Output(NamedTuple):
    """What forward returned."""

    structure: Any
    leaves: tuple[Any, ...]  # as they came
    floats: tuple[np.ndarray | None, ...]  # in their own dtype; None: no float

    @property
    def vector(self) -> np.ndarray:
        """The float entries of all leaves, [m]."""
        return np.concatenate([floats.astype(WIDE).ravel() for floats in self.floats if floats is not None])

    @property
    def epsilon(self) -> float:
        """Of its coarsest dtype."""
        return max(epsilon_of(floats.dtype) for floats in self.floats if floats is not None)

    def cotangent(self, vector: np.ndarray) -> Any:
        """[m] numbers as a cotangent: structure, kinds and dtypes of the output."""
        leaves, start = [], 0
        for leaf, floats in zip(self.leaves, self.floats, strict=True):
            if floats is None:
                leaves.append(leaf if is_key(leaf) else like(leaf, np.zeros_like(to_numpy(leaf))))
            else:
                part = vector[start : start + floats.size].reshape(floats.shape)
                leaves.append(like(leaf, part.astype(floats.dtype)))
                start += floats.size
        return jax.tree.unflatten(self.structure, leaves)


class Pulled(NamedTuple):
    """What backward returned."""

    cotangents: dict[int, np.ndarray]  # leaf -> its cotangent, where a usable one came
    problems: dict[str, str]  # piece -> what is wrong with its structure or shape
    epsilon: float  # of the coarsest dtype
    changed: tuple[str, ...]  # arguments changed in place


class Pair(NamedTuple):
    """forward and backward, with the arguments at which they are compared."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]  # (*arguments, cotangent)
    names: tuple[str, ...]  # of the arguments
    structures: tuple[Any, ...]  # of each argument, None being a leaf
    leaves: tuple[Leaf, ...]  # of all arguments

    @property
    def floats(self) -> dict[int, np.ndarray]:
        """The leaves that have a derivative, in their own dtypes."""
        return {i: leaf.numbers for i, leaf in enumerate(self.leaves) if leaf.numbers is not None}

    def evaluate(self, changed: Mapping[int, Any] | None = None, dtype: Any = None) -> Output:
        """forward, with new numbers in some leaves; `dtype`: of every float leaf in place of its own."""
        output = self.forward(*self._fill(changed or {}, dtype)[0])
        leaves, structure = jax.tree.flatten(output)
        return Output(structure, tuple(leaves), tuple(floats_of(leaf) for leaf in leaves))

    def changed_by_forward(self) -> tuple[str, ...]:
        """The arguments that forward changes in place."""
        arguments, handed = self._fill({}, None)
        self.forward(*arguments)
        return self._changed(handed, {})

    def pull(self, output: Output, cotangent: np.ndarray, changed: Mapping[int, Any] | None = None) -> Pulled:
        """backward for the cotangent [m], with new numbers in some leaves."""
        arguments, handed = self._fill(changed or {}, None)
        given = output.cotangent(cotangent)
        before = [to_numpy(leaf) for leaf in jax.tree.leaves(given)]
        result = self.backward(*arguments, given)
        pulled, problems = self._unpack(result)
        epsilon = max((epsilon_of(numbers.dtype) for numbers in pulled.values()), default=0.0)
        names = self._changed(handed, changed or {})
        if not all(map(_same, before, map(to_numpy, jax.tree.leaves(given)))):
            names += ("cotangent",)
        wide = {i: numbers.astype(WIDE) for i, numbers in pulled.items()}
        return Pulled(wide, problems, epsilon, names)

    def with_time(self, length: int) -> "Pair":
        """The pair, every leaf of this leading size marked as one of time."""
        sizes = [tuple(getattr(leaf.given, "shape", ()))[:1] for leaf in self.leaves]
        return self._replace(
            leaves=tuple(
                leaf._replace(is_timed=size == (length,)) for leaf, size in zip(self.leaves, sizes, strict=True)
            )
        )

    def cut(self, length: int) -> "Pair":
        """The pair at arguments whose leaves of time are cut to their first entries."""
        return self._replace(leaves=tuple(leaf.cut(length) if leaf.is_timed else leaf for leaf in self.leaves))

    def _fill(self, changed, dtype):
        """(arguments, their leaves), every array fresh: a call cannot change the numbers of the next."""
        leaves = []
        for i, leaf in enumerate(self.leaves):
            numbers = leaf.numbers
            if numbers is not None:
                numbers = np.array(changed.get(i, numbers), numbers.dtype if dtype is None else dtype)
            leaves.append(leaf.holding(numbers))
        arguments, start = [], 0
        for structure in self.structures:
            arguments.append(jax.tree.unflatten(structure, leaves[start : start + structure.num_leaves]))
            start += structure.num_leaves
        return arguments, leaves

    def _changed(self, handed, changed):
        """The names of the mutable leaves that are not what was handed out."""
        names = []
        for i, (leaf, now) in enumerate(zip(self.leaves, handed, strict=True)):
            if is_mutable(now):
                numbers = leaf.numbers
                if numbers is not None:
                    numbers = np.array(changed.get(i, numbers), numbers.dtype)
                if not _same(to_numpy(leaf.holding(numbers)), to_numpy(now)):
                    names.append(leaf.name)
        return tuple(names)

    def _unpack(self, result):
        """({leaf: its cotangent}, problems)."""
        count = len(self.structures)
        if count == 1 and (_structure(result) == self.structures[0] or not isinstance(result, tuple | list)):
            result = (result,)  # of a single argument: bare
        if not isinstance(result, tuple | list) or len(result) != count:
            got = f"{type(result).__name__} of {len(result)}" if hasattr(result, "__len__") else type(result).__name__
            return {}, {"backward": f"returns a {got}, expected a tuple of {count}: a cotangent for each argument"}
        taken, problems, floats, start = {}, {}, self.floats, 0
        for name, structure, value in zip(self.names, self.structures, result, strict=True):
            own = range(start, start + structure.num_leaves)
            start += structure.num_leaves
            if not any(i in floats for i in own):
                continue
            if _structure(value) != structure:
                got = "None" if value is None else f"structure {_describe(_structure(value))}"
                problems[name] = f"its cotangent has {got}, expected {_describe(structure)} (* is an array)"
                continue
            for i, leaf in zip(own, jax.tree.leaves(value, is_leaf=_is_none), strict=True):
                if i in floats:
                    numbers, problem = _take(leaf, floats[i].shape)
                    if numbers is None:
                        problems[self.leaves[i].name] = problem
                    else:
                        taken[i] = numbers
        return taken, problems


def make_pair(forward: Callable[..., Any], backward: Callable[..., Any], arguments: Any) -> Pair:
    """The pair, its functions and arguments checked at the door."""
    for name, function in (("forward", forward), ("backward", backward)):
        if not callable(function):
            raise TypeError(f"{name}: got {type(function).__name__}, expected a function")
    if not isinstance(arguments, tuple | list) or not arguments:
        got = "none" if isinstance(arguments, tuple | list) else type(arguments).__name__
        raise TypeError(f"arguments: got {got}, expected a tuple of arrays, or of pytrees of arrays")
    count = len(arguments)
    if not _accepts(forward, count):
        raise TypeError(f"forward: got {_signature(forward)}, expected one that takes the {count} arguments")
    if _accepts(backward, count + 1):
        unpacked = backward
    elif _accepts(backward, 2):
        unpacked = lambda *given: backward(given[:-1], given[-1])
    else:
        raise TypeError(f"backward: got {_signature(backward)}, expected (*arguments, cotangent), here {count + 1}")
    names = _argument_names(forward, count)
    leaves, structures = [], []
    for name, argument in zip(names, arguments, strict=True):
        paths, structure = jax.tree_util.tree_flatten_with_path(argument, is_leaf=_is_none)
        structures.append(structure)
        leaves += [_make_leaf(_validation.leaf_name(name, path), leaf) for path, leaf in paths]
    if all(leaf.numbers is None for leaf in leaves):
        raise TypeError("arguments: got no float arrays, expected at least one (of the others there is no derivative)")
    return Pair(forward, unpacked, names, tuple(structures), tuple(leaves))


def _make_leaf(name, leaf):
    if leaf is None or isinstance(leaf, bool | int | str) or is_key(leaf):
        return Leaf(name, leaf, None)
    require_array(name, leaf)
    return Leaf(name, leaf, floats_of(leaf))


def _take(leaf, shape):
    """(the cotangent of one leaf, "") or (None, what is wrong with it)."""
    if leaf is None:
        return None, f"its cotangent is None, expected an array {list(shape)}"
    try:
        numbers = to_numpy(leaf)
    except Exception as error:  # anything may come back
        return None, f"its cotangent is no array ({type(leaf).__name__}: {str(error).partition(chr(10))[0]})"
    if not jnp.issubdtype(numbers.dtype, jnp.floating):
        got = "float0" if numbers.dtype == jax.dtypes.float0 else numbers.dtype
        return None, f"its cotangent has dtype {got}, expected a real float dtype"
    if numbers.shape != shape:
        return None, f"its cotangent has shape {list(numbers.shape)}, expected {list(shape)}"
    return numbers, ""


def _is_none(leaf):
    return leaf is None


def _structure(tree):
    return jax.tree.structure(tree, is_leaf=_is_none)


def _describe(structure):
    return str(structure).removeprefix("PyTreeDef(").removesuffix(")")


def _same(one, other):
    return np.array_equal(one, other, equal_nan=jnp.issubdtype(one.dtype, jnp.inexact))


def _signature(function):
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # a function of C has none
        return None


def _accepts(function, count):
    """Whether it takes so many positional arguments, as far as its signature tells."""
    signature = _signature(function)
    if signature is None:
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _argument_names(forward, count):
    """As forward calls them; arguments[i] where it has no name for one."""
    signature = _signature(forward)
    each = () if signature is None else signature.parameters.values()
    named = [one.name for one in each if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)][:count]
    return tuple(named + [f"arguments[{i}]" for i in range(len(named), count)])

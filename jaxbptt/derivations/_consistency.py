"""What a backward function says of itself: is its result finite, repeatable and linear in its cotangent?"""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxbptt import _validation
from jaxbptt.derivations._arrays import WIDE, epsilon_of
from jaxbptt.derivations._differences import Differences, entry_sizes
from jaxbptt.derivations._pairs import Leaf, Output, Pair, Pulled
from jaxbptt.derivations.reports import Finding

DRAWS = 3  # of perturbed calls, which show what rounding does
HALF = 1e-4  # eps of half precision: its margins are small, for its sums are held in more
WHOLE, SECOND, REST = "every row", "every row, drawn again", "the other rows"


class Calls(NamedTuple):
    """Calls of backward at the same arguments."""

    cotangents: dict[str, np.ndarray]  # name -> c [m]: two of all rows, then of single rows, then of those left over
    pulled: dict[str, Pulled]  # name -> backward(c)
    again: Pulled  # of the first cotangent
    both: Pulled  # of the sum of the first two
    multiples: dict[float, Pulled]  # factor -> of so many times the first
    moved: tuple[Pulled, ...]  # of the first, with all numbers perturbed
    epsilon: float  # of the coarsest dtype that backward takes or gives

    @property
    def every(self) -> tuple[Pulled, ...]:
        return (*self.pulled.values(), self.again, self.both, *self.multiples.values(), *self.moved)


class Margins(NamedTuple):
    """How much rounding is allowed, in eps or in multiples of what is measured; several times what was ever seen."""

    perturbation: float  # of every number, eps
    response: float  # times what such a perturbation does
    terms: float  # eps of what is added up
    output: float  # eps of the output

    @classmethod
    def of(cls, epsilon: float) -> "Margins":
        return cls(4, 8, 50, 50) if epsilon < HALF else cls(1, 4, 4, 4)


class Rounding(NamedTuple):
    """What rounding may do to the cotangent of one leaf."""

    epsilon: float
    response: np.ndarray  # how far it moves as all numbers move by a few eps
    least: np.ndarray  # what the rounding of the output alone does to one entry

    def tolerance(self, *terms: np.ndarray) -> np.ndarray:
        """Of each entry of the sum of these cotangents."""
        size = sum(np.abs(term) + np.sqrt(np.mean(term**2)) for term in terms)
        tiny = np.finfo(np.float32 if self.epsilon > 1e-10 else np.float64).tiny
        margins = Margins.of(self.epsilon)
        return np.asarray(margins.terms * self.epsilon * size + margins.response * self.response + tiny)


def call_backward(pair: Pair, output: Output, most_rows: int, random: np.random.Generator) -> Calls:
    """Backward for all the cotangents that the checks need; of more than `most_rows` rows, a sample."""
    cotangents = _draw_cotangents(output, most_rows, random)
    first, second = cotangents[WHOLE], cotangents[SECOND]
    pulled = {name: pair.pull(output, vector) for name, vector in cotangents.items()}
    power = 2.0 ** (10 if output.epsilon < HALF else 4)  # half precision holds no larger range
    epsilon = max(_coarsest(pair, output), pulled[WHOLE].epsilon)
    with np.errstate(all="ignore"):  # arguments on the edge of the domain
        moved = [
            pair.pull(output, _perturb(first, epsilon, random), _perturbed_arguments(pair, epsilon, random))
            for _ in range(DRAWS)
        ]
    return Calls(
        cotangents,
        pulled,
        pair.pull(output, first),
        pair.pull(output, first + second),
        {factor: pair.pull(output, factor * first) for factor in (2.0, 1 / power, power)},
        tuple(moved),
        epsilon,
    )


def rounding_of(differences: Differences, calls: Calls, position: int) -> Rounding:
    """What rounding may do to the cotangent of a leaf."""
    first = calls.pulled[WHOLE]
    with np.errstate(invalid="ignore"):
        moved = [np.abs(call.cotangents[position] - first.cotangents[position]) for call in calls.moved]
    response = np.max(np.nan_to_num(moved, posinf=0), axis=0)
    sizes = entry_sizes(differences.pair.floats[position])
    least = output_rounding(differences, calls.epsilon, calls.cotangents[WHOLE]) / sizes
    return Rounding(calls.epsilon, np.asarray(response), np.asarray(least))


def output_rounding(differences: Differences, epsilon: float, cotangent: np.ndarray) -> Any:
    """⟨c, rounding of the output⟩: finer no slope along a direction as large as the arguments can be known.

    Where a unit is saturated its derivative, such as 1 − h², has no digits left, though h has them all.
    """
    noise = differences.own_noise + epsilon * np.abs(differences.center)
    return Margins.of(epsilon).output * (np.abs(cotangent) @ noise)


def agreement(pair: Pair, output: Output, random: np.random.Generator) -> np.ndarray:
    """[m], how far the output may be from another evaluation that rounds otherwise."""
    vector, epsilon = output.vector, _coarsest(pair, output)
    with np.errstate(all="ignore"):
        moved = [np.abs(pair.evaluate(_perturbed_arguments(pair, epsilon, random)).vector - vector) for _ in range(2)]
        moved = np.nan_to_num(moved, posinf=0)
    size = np.abs(vector) + np.sqrt(np.mean(vector**2))
    return 100 * epsilon * size + Margins.of(epsilon).response * np.max(moved, axis=0)


def inconsistency(leaf: Leaf, position: int, calls: Calls, rounding: Rounding) -> Finding | None:
    """The finding, if the cotangent of a leaf is not finite, not repeated or not linear."""
    cotangent = {name: call.cotangents[position] for name, call in calls.pulled.items()}
    for name, value in cotangent.items():
        if not np.all(np.isfinite(value)):
            place = np.unravel_index(np.argmin(np.isfinite(value)), value.shape)
            where = f"first at {name_entry(leaf.name, place)}, for the cotangent of {name}"
            said = f"{leaf.name} is not finite: {where}."
            return make_finding(leaf.name, said, *step_and_entry(leaf, place), actual=value[place])
    first, second = cotangent[WHOLE], cotangent[SECOND]
    parts = [value for name, value in cotangent.items() if name not in (WHOLE, SECOND)]
    size = np.sqrt(np.mean(first**2))
    # Not its response to a perturbation: noise would widen it.
    slack = 1000 * rounding.epsilon * (np.abs(first) + size) + 50 * rounding.least
    tolerance = lambda *terms: rounding.tolerance(*terms) + rounding.least
    linear = "is not linear in its cotangent: {} is not {}"
    claims = [
        ("is not the same twice: a second call gives other numbers", calls.again.cotangents[position], first, slack)
    ]
    for factor, call in calls.multiples.items():
        said = linear.format(f"backward({factor:g} c) / {factor:g}", "backward(c)")
        claims.append((said, call.cotangents[position] / WIDE(factor), first, tolerance(first)))
    said = linear.format("backward(c + d)", "backward(c) + backward(d)")
    claims.append((said, calls.both.cotangents[position], first + second, tolerance(first, second)))
    if parts:
        said = linear.format("the sum over cotangents of single rows", "the result for all rows at once")
        claims.append((said, np.sum(parts, axis=0), first, tolerance(first, *parts)))
    for said, actual, expected, allowed in claims:
        with np.errstate(all="ignore"):
            errors = np.abs(actual - expected) / (allowed + np.finfo(np.float64).tiny)
        if not np.all(errors <= 1):
            place = np.unravel_index(np.argmax(np.nan_to_num(errors, nan=np.inf)), errors.shape)
            return _describe(leaf, said, place, expected, actual)
    return None


def _describe(leaf: Leaf, said: str, place: tuple, expected: np.ndarray, actual: np.ndarray) -> Finding:
    """The finding of a leaf whose cotangent is known whole; `place`: the entry to be named."""
    norm = np.linalg.norm(expected)
    relative = np.linalg.norm(actual - expected) / max(norm, np.finfo(np.float64).tiny)
    where = f"worst at {name_entry(leaf.name, place)}: got {actual[place]:.6g}, expected {expected[place]:.6g}"
    return make_finding(
        leaf.name,
        f"{leaf.name} {said} (off by {relative:.1e} relative); {where}.",
        *step_and_entry(leaf, place),
        expected=expected[place],
        actual=actual[place],
        relative=relative,
        norm=norm,
    )


def make_finding(
    piece: str,
    sentence: str,
    step: int | None = None,
    entry: tuple[int, ...] | None = None,
    *,
    expected: Any = None,
    actual: Any = None,
    relative: Any = np.nan,
    norm: Any = np.nan,
    slip: str | None = None,
) -> Finding:
    """A finding; what it does not know is None or NaN."""
    return Finding(
        piece=piece,
        slip=slip,
        relative=float(relative),
        step=step,
        entry=entry,
        expected=None if expected is None else float(expected),
        actual=None if actual is None else float(actual),
        expected_norm=float(norm),
        sentence=sentence,
    )


def step_and_entry(leaf: Leaf, place: tuple) -> tuple[int | None, tuple[int, ...]]:
    """t from 1, where the leading axis is time, and the indices of the rest."""
    place = tuple(int(index) for index in place)
    return (place[0] + 1, place[1:]) if leaf.is_timed else (None, place)


def name_entry(name: str, place: tuple) -> str:
    """Such as w_hh[0, 2]."""
    return f"{name}[{', '.join(str(int(index)) for index in place)}]" if place else name


def sample_rows(count: int, most: int, random: np.random.Generator) -> list[int]:
    """All rows, or the first, the last and some of those between."""
    if count <= most:
        return list(range(count))
    return sorted({0, count - 1, *random.choice(np.arange(1, count - 1), most - 2, replace=False).tolist()})


def _draw_cotangents(output, most_rows, random):
    """{name: c [m]}: none of their entries is small, and sums and multiples of them are exact in every dtype."""
    rows, names = rows_of(output)
    first, second = (
        WIDE(random.choice([-1, 1], rows.shape)) * random.integers(8, 25, rows.shape) / 16 for _ in range(2)
    )
    cotangents = {WHOLE: first, SECOND: second}
    if len(names) > 1:
        chosen = sample_rows(len(names), most_rows, random)
        cotangents |= {names[row]: np.where(rows == row, first, 0) for row in chosen}
        if len(chosen) < len(names):
            cotangents[REST] = np.where(np.isin(rows, chosen), 0, first)
    return cotangents


def rows_of(output: Output) -> tuple[np.ndarray, list[str]]:
    """(the row of each entry [m], their names): along the leading axis of the leaf of most axes; other leaves whole."""
    floats = [each for each in output.floats if each is not None]
    shape = max((each.shape for each in floats), key=len)
    count = shape[0] if shape else 0
    rows, names = [], [f"output[{row}]" for row in range(count)]
    paths = jax.tree_util.tree_leaves_with_path(jax.tree.unflatten(output.structure, output.floats))
    for path, each in paths:
        if each.shape[:1] == (count,):
            rows.append(np.repeat(np.arange(count), each.size // max(count, 1)))
        else:
            rows.append(np.full(each.size, len(names)))
            names.append(_validation.leaf_name("output", path))
    return np.concatenate(rows), names


def _perturbed_arguments(pair, epsilon, random):
    """Every leaf moved by a few eps."""
    return {i: _perturb(numbers, epsilon, random) for i, numbers in pair.floats.items()}


def _perturb(numbers, epsilon, random):
    """Every entry a few eps nearer to zero, so that it leaves no domain; whole numbers may be switches and stay."""
    numbers = numbers.astype(WIDE)
    noise = Margins.of(epsilon).perturbation * epsilon * np.abs(random.standard_normal(numbers.shape))
    return np.where(numbers == np.round(numbers), numbers, numbers * (1 - noise))


def _coarsest(pair, output):
    """eps of the coarsest dtype of arguments and output."""
    return max(output.epsilon, *(epsilon_of(numbers.dtype) for numbers in pair.floats.values()))

"""A backward pass of anybody's, checked against differences of its forward pass."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxbptt import _validation
from jaxbptt.derivations._arrays import WIDE
from jaxbptt.derivations._consistency import (
    agreement,
    call_backward,
    inconsistency,
    make_finding,
    name_entry,
    rounding_of,
    rows_of,
)
from jaxbptt.derivations._differences import prepare
from jaxbptt.derivations._pairs import make_pair
from jaxbptt.derivations._probes import Subject, mistake
from jaxbptt.derivations.reports import Finding, Report
from jaxbptt.types import Key

MOST_ROWS = 16  # of one array probed one by one; of more, a sample
FEWER_ROWS = 6  # at the lengths below T
COARSE = 1e-2  # relative: a leaf known no better is named in the report
PRECISIONS = {
    1e-30: "quadruple precision (128-bit)",
    1e-18: "extended precision (80-bit)",
    1e-15: "float64",
    1e-6: "float32",
}


class Examination(NamedTuple):
    """What was found at one set of arguments, and how finely one could look."""

    findings: dict[str, Finding]  # by piece; "<piece> in place": an argument was changed
    resolution: dict[str, float]  # leaf -> relative error below which nothing was seen
    precision: float | None  # eps of the differences; None: there were none
    num_cotangents: int


def check_vjp(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    arguments: Sequence[Any],
    *,
    key: Key,
    lengths: Sequence[int] | None = None,
) -> Report:
    """Certify a backward pass that is not JAX's: NumPy, PyTorch, a kernel, the bwd of a custom_vjp.

    For random cotangents c and directions v in every leaf of the arguments, and in every row of it,

      ⟨backward(arguments, c), v⟩ = ⟨c, d/de forward(arguments + e v)⟩ at e = 0,

    the right side by central differences of fourth order that measure their own error, in extended precision where
    forward is NumPy that keeps it. c is nonzero in all rows of the output (time steps, or sequences of a batch), or in
    a single one. A wrong leaf is halved until its first wrong entry is found. Besides: backward is linear in c (nothing
    is clipped inside), cotangents of single rows add up, a second call gives the same numbers, and neither function
    changes its arguments in place. With `lengths`, all of it at every length, and forward(first L steps) is the first L
    outputs of the whole: mistakes at the border of a block, or beyond the range of an index, show at some lengths only.

    What rounding or a kink of forward hides is no finding; the report says how large that is. Forward runs hundreds of
    times, backward dozens: jit them.

    Args:
      forward: (*arguments) -> output, an array or a pytree of arrays; pure, and taken as correct.
      backward: (*arguments, cotangent) -> a tuple, for each argument its cotangent (None if it has no floats); of a
        single argument also bare. Called as (arguments, cotangent) if its signature allows only that.
      arguments: arrays or pytrees of arrays of NumPy, JAX or PyTorch, handed on as the kind they are. Integers, bools
        and keys are constants.
      key: typed key for all random draws.
      lengths: L ≤ T to which the arguments of leading size T are cut; None: only the arguments as they are. T is the
        leading size of the output (of its leaf of most axes) if an argument shares it, else the largest of the
        arguments'. Choose a T that is no other size.

    Returns:
      Report: a finding's piece is a leaf such as "w_hh" or "params.w_hh", "forward", "backward" or "cotangent"; its
      step counts along a leading axis T; expected_norm and relative are estimates from random directions.

    Raises:
      TypeError: arguments or an output without floats; lengths that are no ints; functions that cannot take their
        arguments.
      ValueError: arguments that are not finite; a length outside 1 … T; an argument that cannot be cut.

    Example:
      >>> import jax, numpy as np
      >>> from jaxbptt import derivations
      >>> forward = lambda w, x: np.cumsum(w * x)  # y_t = Σ_{s≤t} w_s x_s
      >>> backward = lambda w, x, c: (np.cumsum(c) * x, np.cumsum(c[::-1])[::-1] * w)  # of w: summed from the wrong end
      >>> report = derivations.check_vjp(forward, backward, (np.ones(5), np.ones(5)), key=jax.random.key(0))
      >>> [finding.piece for finding in report.findings]
      ['w']

    Reference: the dot-product test of adjoint code, Griewank & Walther (2008), Evaluating Derivatives, SIAM.
    """
    _validation.require_key(key)
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
    pair = make_pair(forward, backward, arguments)
    output = pair.evaluate()
    if all(floats is None for floats in output.floats):
        raise TypeError("forward: got an output without floats, expected at least one float array")
    time = _time_size(pair, output)
    pair = pair.with_time(time)
    wanted = [time] if lengths is None else _require_lengths(lengths, time, pair)
    pairs = [pair if length == time else pair.cut(length) for length in wanted]
    if lengths is not None:
        for length, each in zip(wanted, pairs, strict=True):
            _require_cut(each, length)

    findings: dict[str, Finding] = {}
    examinations = []
    for number, (length, each) in enumerate(zip(wanted, pairs, strict=True)):
        examined = _examine(each, random, is_cut=length != time)
        examinations.append(examined)
        found = dict(examined.findings)
        if length != time:
            broken = _not_a_prefix(pair, output, each.evaluate(), time, length, random)
            found |= {} if broken is None else {"forward": broken}
        since = f"Wrong already at T = {length}: " if len(wanted) > 1 else ""
        if number:
            since = f"Right up to T = {wanted[number - 1]}, wrong from T = {length}: "
        for piece, finding in found.items():
            findings.setdefault(piece, finding._replace(sentence=since + finding.sentence))
    checked = _say(pair, examinations, [] if lengths is None else wanted)
    return Report(tuple(findings.values()), checked, notes=_notes(examinations[-1]))


def _examine(pair, random, *, is_cut):
    """Compare backward with itself and with differences of forward, at the pair's arguments."""
    output, most_rows = pair.evaluate(), FEWER_ROWS if is_cut else MOST_ROWS
    findings = {f"{name} in place": _in_place(name, "forward") for name in pair.changed_by_forward()}
    problem = _problem_of_forward(pair, output)
    if problem:
        return Examination({**findings, "forward": problem}, {}, None, 0)
    try:
        calls = call_backward(pair, output, most_rows, random)
    except Exception as error:  # whatever backward raises: at some lengths only, that is a mistake of it
        if not is_cut:
            raise
        failed = make_finding("backward", f"backward fails ({_first_line(error)}).")
        return Examination({**findings, "backward": failed}, {}, None, 0)
    for call in calls.every:
        for piece, problem in call.problems.items():
            findings.setdefault(piece, make_finding(piece, f"{piece}: {problem}."))
        for name in call.changed:
            findings.setdefault(f"{name} in place", _in_place(name, "backward"))
    if _problem_of_forward(pair, output):
        findings["forward"] = make_finding("forward", "forward gives other numbers once backward has run.")
    resolution = {}
    differences = prepare(pair, output, agreement(pair, output, random), 10 * calls.epsilon, random)
    for position, numbers in pair.floats.items():
        leaf = pair.leaves[position]
        if not numbers.size or any(position not in call.cotangents for call in calls.every):
            continue
        rounding = rounding_of(differences, calls, position)
        finding = inconsistency(leaf, position, calls, rounding)
        if finding is None:
            subject = Subject(leaf, position, numbers, differences, calls, rounding)
            finding, resolution[leaf.name] = mistake(subject, most_rows, random)
        if finding is not None:
            findings.setdefault(leaf.name, finding)
    return Examination(findings, resolution, differences.epsilon, len(calls.cotangents))


def _problem_of_forward(pair, output):
    """The finding, if forward is not finite or does not repeat its output."""
    vector = output.vector
    again = pair.evaluate().vector
    rows, names = rows_of(output)
    if not np.all(np.isfinite(vector)):
        first = names[rows[np.argmin(np.isfinite(vector))]]
        return make_finding("forward", f"forward gives NaN or inf, first in {first}.")
    slack = 1000 * output.epsilon * (np.abs(vector) + np.sqrt(np.mean(vector**2)))
    if again.shape != vector.shape or not np.all(np.abs(again - vector) <= slack):
        return make_finding("forward", "forward is not the same twice: a second call gives other numbers.")
    return None


def _not_a_prefix(pair, whole, short, time, length, random):
    """The finding, if the outputs of the first steps are not the first outputs of all of them."""
    start, tolerances = 0, agreement(pair, whole, random)
    for one, other in zip(whole.floats, short.floats, strict=True):
        if one is None:
            continue
        tolerance = tolerances[start : start + one.size].reshape(one.shape)[:length]
        start += one.size
        if one.shape[:1] != (time,) or other is None or other.shape != (length, *one.shape[1:]):
            continue
        expected, actual = one[:length].astype(WIDE), other.astype(WIDE)
        wrong = ~(np.abs(actual - expected) <= tolerance)
        if np.any(wrong):
            place = np.unravel_index(np.argmax(wrong), wrong.shape)
            where = f"{name_entry('output', place)} is {actual[place]:.6g}, not {expected[place]:.6g}"
            said = f"forward on the first {length} of {time} steps does not give the first {length} outputs: {where}."
            step, entry = int(place[0]) + 1, tuple(map(int, place[1:]))
            return make_finding("forward", said, step, entry, expected=expected[place], actual=actual[place])
    return None


def _time_size(pair, output):
    """T: the leading size of the output's leaf of most axes that an argument shares, else the arguments' largest."""
    shapes = [tuple(getattr(leaf.given, "shape", ())) for leaf in pair.leaves]
    sizes = [shape[0] for shape in shapes if shape]
    for floats in sorted((each for each in output.floats if each is not None), key=lambda each: -each.ndim):
        if floats.shape[:1] and floats.shape[0] in sizes:
            return floats.shape[0]
    return max(sizes, default=0)


def _require_lengths(lengths, time, pair):
    """The lengths in order, and T."""
    if not isinstance(lengths, tuple | list) or not lengths:
        raise TypeError(f"lengths: got {lengths!r}, expected a tuple of ints")
    if not time:
        raise ValueError(f"lengths: got {lengths!r}, but no argument has a leading axis to cut")
    names = ", ".join(leaf.name for leaf in pair.leaves if leaf.is_timed)
    for length in lengths:
        if isinstance(length, bool) or not isinstance(length, int | np.integer):
            raise TypeError(f"lengths: got {length!r}, expected ints")
        if not 1 <= length <= time:
            raise ValueError(f"lengths: got {length}, expected 1 … T = {time}, the leading size of {names}")
    return sorted({*map(int, lengths), time})


def _require_cut(pair, length):
    """Raise unless forward takes the arguments cut to this length."""
    try:
        pair.evaluate()
    except Exception as error:  # whatever forward raises
        names = ", ".join(leaf.name for leaf in pair.leaves if leaf.is_timed)
        said = f"lengths: got {length}, but forward refuses {names} cut to it ({_first_line(error)})"
        raise ValueError(said) from error


def _first_line(error):
    return str(error).partition("\n")[0]


def _in_place(name, who):
    """The finding of an array that is not what it was."""
    return make_finding(name, f"{name}: {who} changes it in place.")


def _say(pair, examinations, lengths):
    """What was compared, in words."""
    names = [pair.leaves[i].name for i in pair.floats]
    number = sum(each.num_cotangents for each in examinations)
    epsilon = max((each.precision for each in examinations if each.precision is not None), default=None)
    parts = [
        f"{len(names)} {'leaf' if len(names) == 1 else 'leaves'} of the arguments ({', '.join(names)})",
        f"for {number} cotangents of the output",
    ]
    if lengths:
        parts.append(f"at T = {', '.join(map(str, lengths))}")
    if epsilon is not None:
        precision = next((name for least, name in PRECISIONS.items() if epsilon <= least), "half precision")
        parts.append(f"differences in {precision}")
    fine = [value for value in examinations[-1].resolution.values() if value <= COARSE]
    if fine:
        parts.append(f"errors below {max(fine):.0e} relative cannot be seen")
    return ", ".join(parts)


def _notes(examination):
    """The leaves that could not be judged well."""
    why = "forward has a kink there, is saturated, or hardly depends on it"
    coarse = [(name, value) for name, value in examination.resolution.items() if value > COARSE]
    return tuple(f"errors of {name} below {value:.0e} relative cannot be seen: {why}" for name, value in coarse)

"""Everything the toolkit can check about one model at its data, as one table for a test suite."""

import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxbptt import _validation
from jaxbptt.derivations._check_gradient import Gradient
from jaxbptt.gradients.forward import run_forward, take_problem
from jaxbptt.models.model import Model
from jaxbptt.report import _gradient_rows, _step_rows
from jaxbptt.report._subject import Outcome, Status, Subject, one_line
from jaxbptt.types import Inputs, Key, Params, State, Targets

WIDTH = 100
ARGUMENTS, STATE = "arguments, scalar loss", "state kept"
ROWS: tuple[tuple[str, Callable[[Subject], Outcome]], ...] = (
    (STATE, _step_rows.keeps_state),
    ("calls agree", _step_rows.repeats),
    ("pullback linear", _step_rows.is_linear),
    ("forward = reverseᵀ", _step_rows.is_transpose),
    ("routes", _gradient_rows.agree_by_routes),
    ("hand derivation", _gradient_rows.matches_derivation),
    ("gradient given", _gradient_rows.matches_gradient),
    ("finite differences", _gradient_rows.matches_differences),
    ("prefix", _step_rows.is_causal),
    ("reaches h_0", _step_rows.is_live),
    ("batch", _gradient_rows.agrees_in_a_batch),
    ("jit", _step_rows.is_compiled_alike),
    ("dead leaves", _gradient_rows.has_no_dead_leaf),
    ("h_0 counted", _gradient_rows.counts_initial),
    ("float32, float64", _gradient_rows.agrees_in_other_dtype),
    ("rank of J_t", _step_rows.has_full_rank),
)


class Check(NamedTuple):
    """One row of a verdict.

    Attributes:
      name: as in the table of `verify`.
      status: "passed", "failed", "note" or "n/a": "failed" alone is a fault; a "note" is worth knowing; "n/a": why it
        does not apply.
      detail: one sentence.
      number: what was measured, mostly a relative difference.

    Example:
      >>> import jax.numpy as jnp, jaxbptt
      >>> from jaxbptt import models
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> first = jaxbptt.verify(model, jnp.array(0.5), jnp.ones(4), jnp.zeros(5)).checks[0]
      >>> first.name, first.status, first.detail
      ('arguments, scalar loss', 'failed', 'targets: got 5 steps, expected 4')
    """

    name: str
    status: Status
    detail: str
    number: float | None = None


class Verdict(NamedTuple):
    """The rows, in a fixed order; `str()` is a table of at most 100 columns.

    Attributes:
      checks: a Check for each row, in a fixed order.

    Example:
      >>> from jaxbptt import report
      >>> routes = report.Check("routes", "passed", "They agree.", 3e-16)
      >>> print(report.Verdict((routes, report.Check("jit", "failed", "It differs.", 0.1))))
      1 of 2 checks failed: jit
      routes  passed   3.0e-16  They agree.
      jit     failed   1.0e-01  It differs.
    """

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether no row failed."""
        return all(check.status != "failed" for check in self.checks)

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = []
        for check in self.checks:
            number = "" if check.number is None else f"{check.number:.1e}"
            start = f"{check.name:{width}}  {check.status:6}  {number:>8}  "
            lines.append(textwrap.fill(check.detail, WIDTH, initial_indent=start, subsequent_indent=" " * len(start)))
        failed = [check.name for check in self.checks if check.status == "failed"]
        head = f"{len(failed)} of {len(self.checks)} checks failed: {', '.join(failed)}" if failed else "verified"
        return "\n".join((textwrap.fill(head, WIDTH), *lines))


def verify(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    gradient: Gradient | None = None,
    initial: State | None = None,
    key: Key | None = None,
) -> Verdict:
    """Check a model and its gradient at these arguments by everything the toolkit knows.

      arguments, scalar loss   the model, its arguments and its loss fit together
      state kept               the step keeps the state's structure, shapes and dtypes
      calls agree              two calls and two traces give the same bits: no hidden state
      pullback linear          Jᵀ(s v) = s Jᵀv and Jᵀ(v + w) = Jᵀv + Jᵀw, also under a jax.custom_vjp
      forward = reverseᵀ       ⟨u, J v⟩ = ⟨Jᵀ u, v⟩ at several steps
      routes                   autodiff, bptt and, where not too large, forward_sensitivity and double_sum
      hand derivation          `derivations.check`, where the model has one
      gradient given           `derivations.check_gradient`, with the slip's name
      finite differences       ⟨dC/dθ, v⟩ beside extrapolated central differences of C along random v
      prefix                   the first T − 1 steps do not change when step T is left out
      reaches h_0              the loss at T alone has a gradient in h_0, unless h_T does not depend on it
      batch                    sequences side by side give what each gives by itself
      jit                      steps op by op give what the compiled program gives
      dead leaves, h_0 counted, float32, float64, rank of J_t   what is worth knowing

    Differences are judged by what rounding of the arguments does to the gradient, measured, in the dtype of params.
    Rank, dead leaves, derivatives at a kink and numbers that rounding leaves no digits of are notes, not failures.

    Args:
      model: f, g, L and the reduction.
      params: θ.
      inputs: x_1 … x_T. Short ones do: every row is compiled anew, 5 to 15 s in all on two cores.
      targets: y_1 … y_T.
      gradient: (model, params, inputs, targets) -> grads shaped like params, or (loss, grads): yours, to be checked.
        With `initial`, the model it gets has that as its initial state.
      initial: h_0 as a constant, as in `gradients.bptt`.
      key: typed key for all random draws; None: a fixed one.

    Returns:
      Verdict: `.ok`, `.checks` (each `.name`, `.status`, `.detail`, `.number`), `str()`. What is wrong with the
      arguments, and whatever the model's functions raise, is a failed row.

    Raises:
      TypeError: a model without its functions; a key that is no typed key; a gradient that is no function.
      ValueError: several keys.

    Example:
      >>> import jax.numpy as jnp, jaxbptt
      >>> from jaxbptt import models
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> verdict = jaxbptt.verify(model, jnp.array(0.5), jnp.ones(3), jnp.zeros(3))
      >>> verdict.ok, {check.name: check.status for check in verdict.checks}["routes"]
      (True, 'passed')
    """
    key = jax.random.key(0) if key is None else key
    _validation.require_key(key)
    _validation.require_functions("model", model, ("initial_state", "step", "readout", "loss"))
    if gradient is not None and not callable(gradient):
        raise TypeError(f"gradient: got {type(gradient).__name__}, expected a function")
    try:
        problem = take_problem(model, params, inputs, targets, initial)
    except Exception as error:  # whatever the model's own functions raise is its verdict
        return _refused(one_line(error))
    subject = Subject(model, problem, gradient, key)
    try:
        if not all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(subject.forward.loss)):
            run_forward(model, *problem[:4])  # outside a compiled program: it names the first bad step
    except Exception as error:  # the same
        return _refused(one_line(error))
    length = f"T = {problem.length} steps, the loss is a scalar"
    checks = [Check(ARGUMENTS, "passed", length)]
    for name, row in ROWS:
        checks.append(_examine(subject, name, row, checks))
    return Verdict(tuple(checks))


def assert_verified(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    gradient: Gradient | None = None,
    initial: State | None = None,
    key: Key | None = None,
) -> None:
    """`verify` as one line of a test suite: raise AssertionError with the table unless no row failed.

    Args:
      model, params, inputs, targets, gradient, initial, key: as in `verify`.

    Returns:
      None.

    Raises:
      AssertionError: a row failed; the message is the table.
      TypeError, ValueError: as `verify`.

    Example:
      >>> import jax.numpy as jnp, jaxbptt
      >>> from jaxbptt import models
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> jaxbptt.assert_verified(model, jnp.array(0.5), jnp.ones(3), jnp.zeros(3))  # silent: no row failed
      >>> jaxbptt.assert_verified(model, jnp.array(0.5), jnp.ones(3), jnp.zeros(4))  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ...
      AssertionError: 1 of 17 checks failed: arguments, scalar loss...
    """
    verdict = verify(model, params, inputs, targets, gradient=gradient, initial=initial, key=key)
    if not verdict.ok:
        raise AssertionError(str(verdict))


def _refused(line: str) -> Verdict:
    """The verdict where the arguments are refused: nothing else can be asked."""
    of_step = line.startswith("step")
    failed = STATE if of_step else ARGUMENTS
    checks = [Check(name, "n/a", "not reached") for name in (ARGUMENTS, *(name for name, _ in ROWS))]
    return Verdict(
        tuple(check._replace(status="failed", detail=line) if check.name == failed else check for check in checks)
    )


def _examine(subject: Subject, name: str, row: Callable[[Subject], Outcome], earlier: Sequence[Check] = ()) -> Check:
    """One row; what it raises is a fault, told once."""
    try:
        return Check(name, *row(subject))
    except Exception as error:  # whatever the model's functions or a row raises
        detail = f"raised {type(error).__name__}: {one_line(error)}"
        told = next((check.name for check in earlier if check.detail == detail), None)
        return Check(name, "failed", detail) if told is None else Check(name, "n/a", f"raised the same as {told!r}")

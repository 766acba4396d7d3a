"""One published mistake: a function that can make it, what it does to the numbers, and who catches it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxbptt import derivations, gradients
from jaxbptt.comparison import compare

EXACT = 1e-12  # relative: an exact fact holds to rounding


class Look(NamedTuple):
    """What one variant gives, and what the catcher says of it."""

    error: float  # relative, of what the row is about; of a gradient, its worst leaf
    cosine: float  # of the worst leaf with the right one; NaN where the row is about something else
    passes: bool
    said: str  # in a few words


class Mistake(NamedTuple):
    """A row of the table."""

    name: str
    catcher: str  # of the toolkit, or an exact fact
    about: str  # what is wrong: "gradient", "state" …
    twin: str  # what is right; rows of one twin share it
    look: Callable[[jax.Array, bool], Look]  # (key, whether to make the mistake)
    on_purpose: bool = False  # the published code means it


def look_at_fact(expected: Any, actual: Any, fact: str) -> Look:
    """Two sides of an equation that is exact."""
    error = compare(expected, actual).relative
    return Look(error, np.nan, error < EXACT, f"{fact} {'holds' if error < EXACT else 'fails'}")


def look_at_gradient(model: Any, mine: Any, key: jax.Array, params: Any, inputs: Any, targets: Any) -> Look:
    """`check_gradient` of the gradient `mine`: (params, inputs, targets) -> (loss, grads)."""
    compiled = jax.jit(mine)
    call = lambda model, *data: compiled(*data)
    report = derivations.check_gradient(model, call, key=key, params=params, inputs=inputs, targets=targets)
    exact = jax.jit(lambda *data: gradients.autodiff(model, *data))
    data = params, inputs, targets
    return Look(*distance(exact(*data)[1], compiled(*data)[1]), report.ok, name_slips(report))


def name_slips(report: derivations.Report) -> str:
    """The slips that a report names, else the pieces that are wrong."""
    if report.ok:
        return "all correct"
    slips = sorted({finding.slip for finding in report.findings if finding.slip})
    return ", ".join(slips) or f"wrong: {', '.join(finding.piece for finding in report.findings)}"


def distance(expected: Any, actual: Any) -> tuple[float, float]:
    """(relative error, cosine) of the worst leaf."""
    leaves = compare(expected, actual).leaves
    return max(leaf.relative for leaf in leaves), float(np.nanmin([leaf.cosine for leaf in leaves]))

"""The checks as one line of a test suite."""

from typing import Any

from jaxbptt.cells.derivation import Derivation
from jaxbptt.derivations._check import check
from jaxbptt.derivations._check_gradient import check_gradient
from jaxbptt.types import Inputs, Key, Params, Targets


def assert_correct(
    subject: Any,
    candidate: Any,
    *,
    key: Key,
    params: Params | None = None,
    inputs: Inputs | None = None,
    targets: Targets | None = None,
) -> None:
    """Raise AssertionError with the report unless `check` or `check_gradient` finds everything correct.

    Args:
      subject: Cell for a derivation, Model for a gradient.
      candidate: Derivation (then `check`), else a function (then `check_gradient`).
      key: typed key for all random draws.
      params, inputs, targets: as in `check` and `check_gradient`; a derivation takes no targets.

    Returns:
      None.

    Raises:
      AssertionError: something is wrong; the message is the report.
      TypeError, ValueError: as `check` and `check_gradient`; targets for a derivation.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, derivations
      >>> cell = cells.from_step(lambda w, h, x: w * h + x, lambda w: jnp.zeros(1))
      >>> mine = derivations.Derivation(lambda w, h, x: w[None], lambda w, h, x, v: (h * v, w * v, v))
      >>> data = {"params": jnp.array([2.0]), "inputs": jnp.ones((3, 1))}
      >>> derivations.assert_correct(cell, mine, key=jax.random.key(0), **data)  # silent: all of it is right
    """
    if isinstance(candidate, Derivation):
        if targets is not None:
            raise TypeError("targets: got some for a derivation, expected None (one step has no loss)")
        report = check(subject, candidate, key=key, params=params, inputs=inputs)
    elif callable(candidate):
        report = check_gradient(subject, candidate, key=key, params=params, inputs=inputs, targets=targets)
    else:
        raise TypeError(f"candidate: got {type(candidate).__name__}, expected a Derivation or a function")
    if not report.ok:
        raise AssertionError(str(report))

"""Checks of derivatives and gradients derived by hand: which piece is wrong, and what the mistake looks like.

`check` takes the partials of one step; `check_gradient` takes a gradient function (model, params, inputs, targets) ->
grads; `assert_correct` takes either, as one line of a test suite. Mistakes such as a transposed Jacobian, a reversed
product, h_t for h_{t−1}, a lost 1/T or a missing direct term are named, with the leaf. `check_vjp` takes a backward
pass of anybody's, in NumPy, PyTorch or a kernel, beside its forward pass.

>>> import jax
>>> from jaxbptt import cells, derivations, gradients, models
>>> model = models.sequence_model(cells.elman(num_inputs=2, num_hidden=3), num_outputs=1, reduction="mean")
>>> def mine(model, params, inputs, targets):                                          # forgets 1/T
...     return gradients.bptt(model._replace(reduction="sum"), params, inputs, targets)
>>> report = derivations.check_gradient(model, mine, key=jax.random.key(0))
>>> {finding.slip for finding in report.findings}
{'lost_mean'}
"""

from jaxbptt.cells.derivation import Derivation
from jaxbptt.cells.factored import FactoredPullback, Outer
from jaxbptt.derivations._assertion import assert_correct
from jaxbptt.derivations._check import check
from jaxbptt.derivations._check_gradient import check_gradient
from jaxbptt.derivations._check_vjp import check_vjp
from jaxbptt.derivations.reports import Finding, Report

__all__ = [
    "Derivation",
    "FactoredPullback",
    "Finding",
    "Outer",
    "Report",
    "assert_correct",
    "check",
    "check_gradient",
    "check_vjp",
]

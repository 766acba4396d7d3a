"""What a report says: where, how much, and what it looks like."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt.derivations import check
from tests.derivations.by_hand import T, make


def test_the_report_says_where_and_what():
    cell = make("elman")
    derivation = cell.derivation._replace(state_jacobian=lambda *args: -cell.derivation.state_jacobian(*args))
    report = check(cell, derivation, key=jax.random.key(0))
    (finding,) = report.findings
    assert (finding.piece, finding.slip) == ("state_jacobian", "sign")
    assert np.isclose(finding.relative, 2)
    assert np.isclose(finding.actual, -finding.expected)
    assert 1 <= finding.step <= T
    assert len(finding.entry) == 2
    for words in ("state_jacobian", "sign", f"t = {finding.step}", str(list(finding.entry))):
        assert words in str(report)
    assert "correct" in str(check(cell, cell.derivation, key=jax.random.key(0)))


def test_an_unknown_mistake_a_wrong_shape_and_nan_are_findings_without_a_slip():
    cell = make("elman")
    right = cell.derivation.state_jacobian
    for state_jacobian, words in (
        (lambda *args: right(*args) + 1e-3, "no known slip"),
        (lambda *args: right(*args)[:2], "shape [2, 3]"),
        (lambda *args: right(*args) * jnp.nan, "not finite"),
    ):
        report = check(cell, cell.derivation._replace(state_jacobian=state_jacobian), key=jax.random.key(0))
        assert [(finding.piece, finding.slip) for finding in report.findings] == [("state_jacobian", None)]
        assert words in str(report)

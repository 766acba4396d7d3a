import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import __main__ as entry
from experiments import identities
from experiments.identities import instances
from experiments.identities.identity import Claim, Identity, judge
from jaxbptt import cells, gradients, jacobians, models
from tests.mutation import mutate, mutate_package

ROWS = identities.load()


@pytest.fixture(autouse=True)
def promotion_as_in_the_script():
    """Rows are written as people write experiments; the library is held to strict promotion elsewhere."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@functools.cache
def judged(id):
    return judge(ROWS[id])


def test_every_row_of_the_audit_is_there():
    counts = {source: sum(row.source == source for row in ROWS.values()) for source in identities.SOURCES}
    assert counts == {"S0": 31, "S1": 33, "S2": 21, "S3": 10, "S4": 28, "X": 5}
    expected = [row.expected for row in ROWS.values()]
    assert [expected.count(verdict) for verdict in ("holds", "conditional", "fails")] == [59, 43, 26]


@pytest.mark.sweep(10)
@pytest.mark.parametrize("id", ROWS)
def test_the_computed_verdict_is_the_expected_one(id):
    judgement = judged(id)
    assert judgement.verdict == ROWS[id].expected, judgement


@pytest.mark.sweep
@pytest.mark.parametrize("id", [id for id, row in ROWS.items() if row.expected == "fails"])
def test_a_false_row_says_what_is_right_and_where_it_fails(id):
    row = ROWS[id]
    assert row.correct
    assert row.smallest
    assert row.counterexample
    assert judged(id).residual_corrected <= 1e-9


MUTANTS = [
    (
        gradients,
        "bptt",
        "pull(residuals, jax.tree.map(jnp.add, local, from_later))",
        "pull(residuals, local)",
        ["S0.10", "S1.20", "S2.28", "S4.9"],
    ),
    (jacobians, "product", "(multiply(step, total), None)", "(multiply(total, step), None)", ["S0.17", "S4.7", "S4.9"]),
    (jacobians, "product", "leaf[start:stop], steps)", "leaf[start + 1 : stop], steps)", ["S0.17", "S4.7"]),
    (
        jacobians,
        "step_jacobians",
        "jacobians = jax.vmap(at)",
        "jacobians = 0.5 * jax.vmap(at)",
        ["S0.9", "S3.4"],
    ),
]


@pytest.mark.sweep
@pytest.mark.parametrize(("module", "name", "old", "new", "ids"), MUTANTS)
def test_breaking_the_toolkit_changes_verdicts(module, name, old, new, ids, monkeypatch):
    def forget():
        instances._route.cache_clear()
        instances._call.clear_cache()

    mutant = (mutate_package if hasattr(module, "__path__") else mutate)(module, old, new)
    monkeypatch.setattr(module, name, getattr(mutant, name))
    forget()
    try:
        assert any(judge(ROWS[id]).verdict != ROWS[id].expected for id in ids)
    finally:
        monkeypatch.undo()
        forget()


def row_of(expected, written, truth, corrected=None, general=None, smallest=()):
    claim = lambda **instance: Claim(written(**instance), truth(**instance), corrected and corrected(**instance))
    return Identity("S0.1", expected, "x", "", "", "", general or (lambda key: {"x": 2.0}), claim, smallest, "")


def test_the_judge():
    square, double = (lambda x: x * x), (lambda x: 2 * x)
    assert judge(row_of("holds", double, double)).verdict == "holds"
    general = lambda key: {"x": 5.0}
    assert judge(row_of("fails", square, double, double, general)).verdict == "fails"
    # No correct statement beside it, a wrong one, or agreement at every instance tried: not a verdict.
    assert judge(row_of("fails", square, double, None, general)).verdict == "undecided"
    assert judge(row_of("fails", square, double, square, general)).verdict == "undecided"
    assert judge(row_of("fails", square, double, double)).verdict == "holds"
    side = lambda key, satisfied: {"x": 2.0 if satisfied else 3.0}
    assert judge(row_of("conditional", square, double, None, side)).verdict == "conditional"
    assert judge(row_of("conditional", double, double, None, side)).verdict == "holds"
    near = lambda x: x * (2 + 1e-5)
    assert judge(row_of("holds", near, double)).verdict == "undecided"


def test_residuals_see_shape_and_nan():
    two, three = (lambda x: jnp.ones(2)), (lambda x: jnp.ones(3))
    assert judge(row_of("holds", two, three)).residual == 1
    assert judge(row_of("holds", two, lambda x: jnp.full(2, jnp.nan))).residual == 1


def test_command_line_filters_and_files(tmp_path, capsys):
    assert entry.main(["identities", "--id", "s0.9", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "S0.9" in out
    assert "1 rows: 1 conditional" in out
    (record,) = json.loads((tmp_path / "identities.json").read_text())
    assert {"id", "source", "statement", "verdict", "residual"} <= set(record)
    text = (tmp_path / "identities.html").read_text()
    assert '<article id="S0.9"' in text
    assert not re.search(r"(src|href)=[\"']https?:", text)
    assert entry.main(["identities", "--source", "X", "--only", "true", "--force", "--out", str(tmp_path)]) == 0
    assert {record["verdict"] for record in json.loads((tmp_path / "identities.json").read_text())} == {"holds"}
    assert entry.main(["identities", "--id", "S9.9", "--force", "--out", str(tmp_path)]) == 2
    assert "id: got 'S9.9', expected a row such as 'S4.16' (there are 128), did you mean 'S" in capsys.readouterr().err


def test_a_verdict_that_differs_is_an_exit_code(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(identities, "load", lambda: {"S0.9": ROWS["S0.9"]._replace(expected="conditional", id="S0.9")})
    assert entry.main(["identities", "--out", str(tmp_path)]) == 0
    wrong = ROWS["S0.10"]._replace(expected="fails")
    monkeypatch.setattr(identities, "load", lambda: {"S0.10": wrong})
    assert entry.main(["identities", "--force", "--out", str(tmp_path)]) == 1
    assert "verdict differs from the expected one: S0.10" in capsys.readouterr().out


WORDS_ALONE = {"S0.20"}  # how often a line through the states is folded is counted, not computed


def test_every_correct_statement_stands_there_as_an_equation():
    assert {id for id, row in ROWS.items() if row.correct and not row.correct_latex} == WORDS_ALONE
    assert not [id for id, row in ROWS.items() if row.correct_latex and not row.correct]
    assert not [id for id, row in ROWS.items() if row.correct_latex == row.latex or "$" in row.correct_latex]


def test_truncation_strategies_as_exact_expectations():
    """S3.7, h_t = w h_{t−1} + 1, w = 0.9, T = 8: windows are biased, randomised is not, at a price in spread."""
    from experiments.identities.slides import truncation_expectations

    cell = cells.from_step(lambda w, h, x: w * h + x, lambda w: jnp.zeros(()))
    model = models.Model(cell.init, cell.initial_state, cell.step, lambda w, h: h, lambda output, target: output)
    steps = jnp.ones(8)
    result = truncation_expectations(instances.Problem(model, jnp.array(0.9), steps, steps, jnp.zeros(())))
    np.testing.assert_allclose(result.full.ravel(), 18.690, atol=5e-4)
    windows = np.array([result.windows[k] for k in (1, 2, 4)]).ravel()
    np.testing.assert_allclose(windows, [5.217, 9.434, 15.258], atol=5e-4)
    for keep, spread in ((0.5, 25.3), (0.9, 6.16)):
        mean, deviation = result.randomised[keep]
        np.testing.assert_allclose(mean, result.full, rtol=1e-12)
        np.testing.assert_allclose(deviation.ravel(), spread, atol=0.05)

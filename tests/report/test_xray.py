"""The verdict and its numbers, each against what the toolkit's own functions or dense algebra say."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxbptt
from jaxbptt import cells, gradients, models, report, terms, truncation
from jaxbptt.cells.derivation import Derivation
from jaxbptt.jacobians import step_jacobians
from jaxbptt.report import _directions, _numbers, _problem, _proof, _spectra, _tables, _verdict
from jaxbptt.trajectories import unroll
from tests import cases
from tests.mutation import mutate

KEY = jax.random.key(4)
T, EVERY = 12, 3
GRU = models.sequence_model(cases.CELLS["gru"], cases.O, reduction="mean")
DATA = cases.instance(GRU, KEY, length=T, gain=1.5)


def known(model, **fields):
    """The model with fields that wrappers set."""
    return type("Known", (models.Model,), fields)(*model)


def seen(model, data, **options):
    return jaxbptt.xray(model, *data[:3], initial=data[3], every=EVERY, **options)


def dense(model, data, start=0, stop=T):
    """ln σ of dh_t/dh_start at every EVERY-th step, by a decomposition of the product: short products are harmless."""
    trajectory = unroll(model, data[0], data[1], initial=data[3])
    product, rows = np.eye(cases.N), []
    for t, jacobian in enumerate(step_jacobians(model, data[0], trajectory, method="forward")[start:stop], start=1):
        product = np.asarray(jacobian) @ product
        if t % EVERY == 0 or t == stop - start:
            rows.append(np.log(np.linalg.svd(product, compute_uv=False)))
    return np.array(rows)


@pytest.fixture(scope="module")
def found():
    return seen(GRU, DATA)


def test_arrays_are_what_the_functions_give(found):
    expected = dense(GRU, DATA)
    np.testing.assert_array_equal(found.steps, [3, 6, 9, 12])
    np.testing.assert_allclose(found.log_sigma, expected, atol=1e-7)
    assert found.log_sigma_error.shape == found.log_sigma.shape
    assert np.all(np.abs(found.log_sigma[0] - expected[0]) < 1e-12)
    assert found.exponents.shape == found.exponents_error.shape == (cases.N,)
    table = terms.gradient_terms(GRU, *DATA[:3], initial=DATA[3])
    np.testing.assert_allclose(found.norms, table.norms, rtol=1e-12)
    np.testing.assert_allclose(found.profile, table.profile(), rtol=1e-12)
    felt = terms.input_saliency(GRU, *DATA[:3], initial=DATA[3])
    np.testing.assert_allclose(found.log_saliency, felt.log_norms, rtol=1e-12)
    np.testing.assert_allclose(found.recall_density, felt.recall_density(), rtol=1e-12)
    assert found.summary["reach"] == {str(q): int(table.reach(q)) for q in (0.5, 0.9, 0.99)}
    assert found.summary["saliency_reach"] == {str(q): int(felt.reach(q)) for q in (0.5, 0.9, 0.99)}


def test_the_proof_and_the_rate(found):
    summary = found.summary
    assert summary["proved"]
    assert list(summary["routes"]) == ["bptt", "forward_sensitivity", "double_sum", "state_jacobian"]
    assert 0 < summary["worst_relative_error"] < 1e-13
    slope = np.polyfit([6, 9, 12], found.log_sigma[1:, 0], 1)
    np.testing.assert_allclose([summary["rate_per_step"], summary["rate_intercept"]], slope, rtol=1e-9)
    assert found.verdict[0].startswith("Gradient proved: 4 routes agree to ")
    assert str(found) == "\n".join(found.verdict)


def test_a_second_call_compiles_nothing_and_the_first_little(caplog):
    model = models.sequence_model(cells.elman(cases.M, 4), cases.O)
    data = cases.instance(model, KEY, length=7)
    for most in (6, 0):
        caplog.clear()
        with jax.log_compiles():
            seen(model, data)
        compiled = [record for record in caplog.records if record.getMessage().startswith("Compiling")]
        assert len(compiled) <= most


def test_save_and_load(found, tmp_path):
    folder = tmp_path / "new" / "folder"
    found.save(folder)
    assert {path.name for path in folder.iterdir()} == {"arrays.npz", "summary.json", "figure.png"}
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    back = report.load(folder)
    assert (back.summary, back.verdict) == (found.summary, found.verdict)
    for name, array in found.arrays().items():
        np.testing.assert_array_equal(getattr(back, name), array, strict=True)


def test_numbers_that_json_lacks_come_back(found, tmp_path):
    summary = {**found.summary, "half_life": np.inf, "rate_per_step": -np.inf, "lambda_1_error": np.nan}
    lost = report.XRay(summary, found.verdict, **{**found.arrays(), "norms": None, "log_saliency": None})
    lost.save(tmp_path)
    json.loads((tmp_path / "summary.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    back = report.load(tmp_path)
    assert back.norms is back.log_saliency is None
    assert (back.summary["half_life"], back.summary["rate_per_step"]) == (np.inf, -np.inf)
    assert np.isnan(back.summary["lambda_1_error"])


@pytest.mark.sweep
@pytest.mark.parametrize("moment", range(4))
def test_a_save_that_is_cut_off_never_leaves_parts_of_two_reports(moment, found, tmp_path, monkeypatch):
    """Cut off before the moment-th file comes to its place; a cut before all leaves the old report whole."""
    found.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other, calls, replace, unlink = report.XRay(found.summary, ["new"], **found.arrays()), [], Path.replace, Path.unlink

    def cut(act):
        def maybe(path, *arguments, **options):
            calls.append(path)
            if len(calls) > moment:
                raise KeyboardInterrupt
            return act(path, *arguments, **options)

        return maybe

    monkeypatch.setattr(Path, "replace", cut(replace))
    monkeypatch.setattr(Path, "unlink", cut(unlink))
    with pytest.raises(KeyboardInterrupt):
        other.save(tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "summary.json").exists() == (moment == 0)
    if moment == 0:
        assert {name: (tmp_path / name).read_bytes() for name in before} == before
    other.save(tmp_path)
    assert report.load(tmp_path).verdict == ["new"]
    assert {path.name for path in tmp_path.iterdir()} == set(before)


def test_what_is_no_report_is_not_loaded(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ValueError, match=r"folder: got .*, expected one that XRay.save wrote"):
            report.load(folder)
    np.savez(tmp_path / "arrays.npz", steps=np.arange(2))
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(ValueError, match="whose files are not those of a report"):
        report.load(tmp_path)


def wrong_sign(cell):
    def pullback(*at):
        of_params, of_state, of_x = cell.derivation.pullback(*at)
        return of_params._replace(b_h=-of_params.b_h), of_state, of_x

    return Derivation(cell.derivation.state_jacobian, pullback)


def transposed(cell):
    return Derivation(lambda *at: cell.derivation.state_jacobian(*at).T, lambda *at: cell.derivation.pullback(*at))


@pytest.mark.parametrize(
    ("plant", "route", "place"), [(wrong_sign, "bptt", "cell.b_h"), (transposed, "state_jacobian", "J_t")]
)
def test_a_wrong_derivation_is_named_and_not_used(found, plant, route, place):
    model = models.sequence_model(cases.CELLS["gru"]._replace(derivation=plant(cases.CELLS["gru"])), cases.O)
    wrong = seen(model._replace(reduction="mean"), DATA)
    assert not wrong.summary["proved"]
    assert wrong.summary["wrong"] == {route: place}
    assert wrong.summary["worst_relative_error"] > 0.1
    assert wrong.verdict[0].startswith("Gradient NOT proved: ")
    assert _verdict.ROUTES[route] in wrong.verdict[0]
    assert "What follows is measured without the hand derivation." in wrong.verdict
    np.testing.assert_allclose(wrong.log_sigma, found.log_sigma, atol=1e-7)
    np.testing.assert_allclose(wrong.norms, found.norms, rtol=1e-11)


def test_a_route_that_costs_too_much_is_replaced(monkeypatch):
    monkeypatch.setattr(_proof, "MOST_TERMS", 1)
    monkeypatch.setattr(_proof, "MOST_FLOPS", 1)
    monkeypatch.setattr(_proof, "MOST_JACOBIAN", 1)
    subject = _problem.take_subject(GRU, *DATA)
    proof = _proof.prove(subject)
    assert list(proof.routes) == ["bptt", "directional"]
    assert set(proof.left_out) == {"forward_sensitivity", "double_sum", "state_jacobian"}
    assert proof.worst < 1e-13
    summary = seen(GRU, DATA).summary
    assert summary["left_out"]["double_sum"] == "6e+03 numbers"
    exact = _proof.autodiff

    def off(*at, **options):
        loss, grads = exact(*at, **options)
        return loss, grads._replace(cell=grads.cell._replace(w_hx=grads.cell.w_hx * (1 + 1e-9)))

    monkeypatch.setattr(_proof, "autodiff", off)
    proof = _proof.prove(subject._replace(key="off"))
    assert proof.wrong == {"bptt": "cell.w_hx", "directional": "cell.w_hx"}
    assert 1e-10 < proof.routes["directional"] < 1e-8


@pytest.mark.sweep
@pytest.mark.parametrize("start", ["given", "zero", "from params"])
@pytest.mark.parametrize("left_out", ["MOST_TERMS", "MOST_FLOPS"])
def test_what_replaces_a_costly_route_is_the_gradient(left_out, start, monkeypatch):
    monkeypatch.setattr(_proof, left_out, 1)
    model, data = GRU, (*DATA[:3], DATA[3] if start == "given" else None)
    if start == "from params":
        model = GRU._replace(initial_state=lambda params: params.cell.b_h[: cases.N], derivation=None)
    proof = _proof.prove(_problem.take_subject(model, *data))
    replacements = {"MOST_TERMS": ["directional", "double_sum_directional"], "MOST_FLOPS": ["directional"]}[left_out]
    assert [name for name in proof.routes if "directional" in name] == replacements
    assert proof.worst < 1e-13
    assert not proof.wrong


def test_the_double_sum_along_directions_sees_each_kind_of_term(monkeypatch):
    monkeypatch.setattr(_proof, "MOST_TERMS", 1)
    model = GRU._replace(initial_state=lambda params: params.cell.b_h[: cases.N], derivation=None)
    wrongs = (
        ("+ along(direct, directions)", "", "readout.w_yh"),
        ("unravel(jnp.sum(carried, axis=0))", "unravel(0 * jnp.sum(carried, axis=0))", "cell.b_h"),
        ("total + jnp.sum(jnp.tensordot", "total + 2 * jnp.sum(jnp.tensordot", "cell.w_hx"),
    )
    for old, new, leaf in wrongs:
        monkeypatch.setattr(_proof, "sum_pairs", mutate(_directions, old, new).sum_pairs)
        proof = _proof.prove(_problem.take_subject(model, *DATA[:3])._replace(key=old))
        assert list(proof.wrong) == ["double_sum_directional"], old
        names = dict(zip(proof.leaves, proof.errors["double_sum_directional"][0], strict=True))
        assert names[leaf] > 1e-3, old


def test_a_batch_gives_medians(found):
    inputs, targets = (jnp.stack([leaf, 0.5 * leaf, -leaf], axis=1) for leaf in DATA[1:3])
    initial = jnp.stack([DATA[3], 0 * DATA[3], 2 * DATA[3]])
    batch = known(models.batched(GRU, 3), single=GRU)
    whole = seen(batch, (DATA[0], inputs, targets, initial))
    singles = [found, *(seen(GRU, (DATA[0], inputs[:, b], targets[:, b], initial[b])) for b in (1, 2))]
    for name in found.arrays():
        np.testing.assert_allclose(
            getattr(whole, name), np.median([getattr(one, name) for one in singles], axis=0), rtol=1e-9, err_msg=name
        )
    for name in ("loss", "rate_per_step", "lambda_1"):
        each = sorted(one.summary[name] for one in singles)
        np.testing.assert_allclose(whole.summary[name], each[1], rtol=1e-9)
        low, high = whole.summary["spread"][name]
        assert low == pytest.approx(each[0])
        assert high in (pytest.approx(each[1]), pytest.approx(each[2]))
    assert whole.summary["proved"]
    assert whole.summary["sequences"] == 3
    assert "Numbers are medians over all 3 sequences." in whole.verdict


def test_of_many_sequences_some_are_looked_at(monkeypatch):
    monkeypatch.setattr(_problem, "MOST_SEQUENCES", 3)
    batch = known(models.batched(GRU, 8), single=GRU)
    inputs, targets = (jnp.repeat(leaf[:, None], 8, axis=1) for leaf in DATA[1:3])
    subject = _problem.take_subject(batch, DATA[0], inputs, targets)
    np.testing.assert_array_equal(subject.chosen, [0, 4, 7])


class Resetting(dict):
    reset = property(lambda self: self["reset"])


def rebuild(_, leaves):
    return Resetting(x=leaves[0], reset=leaves[1])


jax.tree_util.register_pytree_node(Resetting, lambda tree: ((tree["x"], tree["reset"]), None), rebuild)


def resetting():
    def step(params, h, inputs):
        fresh = GRU.initial_state(params)
        return GRU.step(params, jnp.where(inputs.reset, fresh, h), inputs["x"])

    model = models.make_model(step, GRU.initial_state, lambda *at: GRU.readout(*at), GRU.loss)
    return known(model, applied=("resetting",))


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("resets", "stretch"),
    [([5], (5, 12)), ([1, 9], (1, 8)), ([], (0, 12)), ([12], (0, 11)), (range(1, 13), None)],
)
def test_the_longest_stretch_without_a_reset(resets, stretch):
    reset = jnp.isin(jnp.arange(1, T + 1), jnp.asarray(list(resets), int))
    assert _problem.longest_stretch(resetting(), Resetting(x=DATA[1], reset=reset), T) == stretch


def test_spectra_stop_at_resets():
    reset = jnp.isin(jnp.arange(1, T + 1), jnp.array([2, 10]))
    model, data = resetting(), (DATA[0], Resetting(x=DATA[1], reset=reset), *DATA[2:])
    found = seen(model, data)
    np.testing.assert_allclose(found.log_sigma, dense(model, data, 2, 9), atol=1e-7)
    assert found.summary["stretch"] == [2, 9]
    assert "steps 3 to 9, the longest stretch without a reset" in str(found)
    assert np.all(found.norms[1:, 0] == 0)
    nothing = seen(model, (data[0], Resetting(x=DATA[1], reset=jnp.ones(T, bool)), *data[2:]))
    assert nothing.log_sigma is None
    assert nothing.summary["trend"] == "unknown"
    assert "Not computed: singular values and Lyapunov exponents (every step is a reset)." in nothing.verdict


def test_tokens_have_no_saliency():
    step = lambda params, h, x: GRU.step(params, h, jnp.eye(cases.M)[x])
    model = models.make_model(step, GRU.initial_state, lambda *at: GRU.readout(*at), GRU.loss)
    found = seen(model, (DATA[0], jnp.arange(T) % cases.M, *DATA[2:]))
    assert found.log_saliency is found.recall_density is None
    assert "Not computed: the input saliency (the inputs are int64: they have no derivative)." in found.verdict


def test_a_large_state_gets_its_leading_values(found, monkeypatch):
    monkeypatch.setattr(_spectra, "MOST_STATE", 2)
    monkeypatch.setattr(_tables, "MOST_LAGS", 5)
    large = seen(GRU, DATA)
    np.testing.assert_array_equal(large.steps, [6, 8, 10, 12])
    np.testing.assert_allclose(large.log_sigma[[0, 3]], found.log_sigma[[1, 3]], atol=1e-3)
    assert large.log_sigma_error.max() < 0.01
    assert large.norms is large.exponents is large.log_saliency is None
    np.testing.assert_allclose(large.profile[:5], found.profile[:5], rtol=1e-12)
    profile = truncation.lag_profile(GRU, *DATA[:3], initial=DATA[3], num_lags=5)
    np.testing.assert_allclose(large.profile, profile.norms, rtol=1e-12)
    assert "N = 3: only products with J_t are formed" in str(large)
    assert "Sums by lag end at lag 4: shares are of what lies within it." in large.verdict


def test_a_long_sequence_gets_norms_by_lag(found, monkeypatch):
    monkeypatch.setattr(_tables, "MOST_STEPS", T - 1)
    long = seen(GRU, DATA)
    assert long.norms is long.log_saliency is None
    np.testing.assert_allclose(long.profile, found.profile, rtol=1e-12)
    assert long.summary["reach"] == found.summary["reach"]
    assert "(a table of 12 × 12 pairs is too large)" in str(long)
    monkeypatch.setattr(_tables, "MOST_FACTORS", 1)
    monkeypatch.setattr(_spectra, "MOST_ERROR_WORK", 1)
    least = seen(GRU._replace(derivation=None), DATA)
    assert least.profile is least.log_sigma_error is least.summary["reach"] is None
    np.testing.assert_allclose(least.log_sigma, found.log_sigma, atol=1e-7)


BATCH = models.batched(GRU, 5)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda data: (GRU.step, *data), TypeError, "model: got function, expected a Model"),
        (lambda data: (GRU, data[0], data[1][:, :1], *data[2:]), ValueError, "inputs: got shape"),
        (lambda data: (GRU, data[0], data[1], data[2][1:], data[3]), ValueError, "targets: got 11 steps, expected 12"),
        (lambda data: (GRU, *jax.tree.map(lambda leaf: leaf.astype(jnp.float16), data)), TypeError, "got float16"),
        (lambda data: (BATCH, *data), ValueError, "expected 5 sequences first"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(change, error, words, monkeypatch):
    monkeypatch.setattr(_problem, "map_rows", None)
    with pytest.raises(error, match=words):
        jaxbptt.xray(*change(DATA)[:4])
    for every in (0, 1.5):
        with pytest.raises((ValueError, TypeError), match="every: got"):
            jaxbptt.xray(GRU, *DATA[:3], every=every)


def test_a_gradient_that_is_not_finite_names_its_step():
    step = lambda w, h, x: jnp.where(x > 0, h * w, 0 * h * jnp.sqrt(jnp.minimum(x, 0)))
    model = models.make_model(step, jnp.ones_like, lambda w, h: h, models.squared_error)
    inputs = jnp.ones((5, 2)).at[2].set(-1)
    with pytest.raises(ValueError, match="first at step t = 3"):
        jaxbptt.xray(model, jnp.ones(2), inputs, jnp.zeros((5, 2)))


@pytest.mark.slow
def test_training_on_a_delayed_task_makes_the_reach_grow():
    """The output is the input of six steps before."""
    model = models.sequence_model(cells.gru(1, 8), 1, reduction="mean")
    inputs = jax.random.normal(KEY, (24, 4, 1))
    targets = jnp.concatenate((jnp.zeros((6, 4, 1)), inputs[:-6]))
    optimizer = optax.adam(0.02)

    def loss(params):
        one = lambda x, y: gradients.autodiff(model, params, x, y)[0]
        return jnp.mean(jax.vmap(one, in_axes=1)(inputs, targets))

    @jax.jit
    def train(params):
        def update(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(update, (params, optimizer.init(params)), None, 300)[0][0]

    with jax.numpy_dtype_promotion("standard"):  # optax counts in int32
        first = model.init(KEY)
        last = train(first)
    before, after = (jaxbptt.xray(model, params, inputs[:, 0], targets[:, 0]) for params in (first, last))
    assert after.summary["loss"] < 0.5 * before.summary["loss"]
    assert before.summary["saliency_reach"]["0.5"] < 5 <= after.summary["saliency_reach"]["0.5"]
    assert after.summary["reach"]["0.9"] > before.summary["reach"]["0.9"]
    assert after.verdict != before.verdict
    assert after.summary["rate_per_step"] > before.summary["rate_per_step"]


def fake(rate, length=40, error=1e-15):
    """What the stages give for a σ_1 of e^(rate t)."""
    steps = np.arange(1, length + 1)
    with np.errstate(invalid="ignore"):
        values = np.outer(steps, [rate, rate - 1.0, -np.inf])[None]
    proof = _proof.Proof(np.array([3.3]), {"bptt": np.array([[0.0, error]])}, 1e-9, {}, ["w", "b"], 1e-12)
    spectra = _spectra.Spectra((0, length), steps, values, 0 * steps, values[:, 0], values[:, 0], {})
    reach = np.array([[1, 20, 39]])
    tables = _tables.Tables(None, np.ones((1, length)), reach, None, None, None, None, {})
    subject = _problem.take_subject(GRU, *DATA)
    subject = subject._replace(problem=subject.problem._replace(length=length))
    return _numbers.summarise(subject, proof, spectra, tables)


@pytest.mark.parametrize(
    ("rate", "trend", "words"),
    [
        (-0.5, "vanishing", "-0.5000 nats per step, half-life 1.4 steps; it would leave float32 at step 175."),
        (0.5, "exploding", "+0.5000 nats per step, doubling time 1.4 steps; it would leave float32 at step 177."),
        (-4.0, "vanishing", "half-life 0.2 steps; it leaves float32 by step 22."),
        (0.001, "stable", "+0.0010 nats per step; it stays in float32 over 40 steps."),
        (-np.inf, "vanishing", "is exactly zero at the end; it leaves float32 by step 1."),
        (0.0, "stable", "+0.0000 nats per step; it stays in float32 over 40 steps."),
    ],
)
def test_the_verdict_says_what_the_numbers_say(rate, trend, words):
    summary = fake(rate)
    assert summary["trend"] == trend
    assert summary["rate_per_step"] == pytest.approx(rate, abs=1e-12)
    verdict = _verdict.in_words(summary)
    assert verdict[1].startswith(trend.capitalize())
    assert verdict[1].endswith(words)
    assert "90 % of the gradient comes from at most 20 steps back (50 %: 1, 99 %: 39)." in verdict


@jax.custom_vjp
def bent(a):
    return jnp.tanh(a)


bent.defvjp(lambda a: (jnp.tanh(a),) * 2, lambda t, cotangent: ((1 - t) * cotangent,))  # should be 1 − t²


@pytest.mark.parametrize(
    "step",
    [
        lambda p, h, x: bent(p.w_hh @ h + p.w_hx @ x),
        lambda p, h, x: jnp.tanh(p.w_hh @ jax.lax.stop_gradient(h) + p.w_hx @ x),
    ],
)
def test_a_rule_that_all_routes_share_is_not_proved(step):
    cell = cells.elman(cases.M, cases.N)
    model = models.make_model(step, cell.initial_state, lambda p, h: h, models.squared_error)
    data = cell.init(KEY), DATA[1], jnp.ones((T, cases.N))
    found = report.xray(model, *data)
    assert not found.summary["proved"]
    assert found.summary["wrong"] == {"differences": "θ as a whole"}
    assert "All routes may share a rule that is wrong" in found.verdict[1]
    right = model._replace(step=cell.step)
    assert report.xray(right, *data).summary["confirmed_by_differences"] < 1e-6


@pytest.mark.slow
def test_a_chaotic_net_is_proved():
    """Differences of C see no slope there, at any size: they say nothing, and blame nothing."""
    model = models.sequence_model(cells.elman(3, 24, recurrent=cells.gaussian(3.0)), 2, reduction="mean")
    data = model.init(KEY), jax.random.normal(KEY, (150, 3)), jnp.ones((150, 2))
    subject = _problem.take_subject(model, *data, None)
    proof = _proof.prove(subject)
    assert "differences" not in proof.wrong
    assert np.isnan(proof.confirmed)
    verdict = report.verify(model, *data)
    assert {check.name: check.status for check in verdict.checks}["finite differences"] in ("note", "passed")


@pytest.mark.slow
def test_a_batch_with_another_reduction_is_looked_at_as_such():
    batch = models.batched(GRU, 2)._replace(reduction="sum")
    stacked = [jnp.stack((each, each[::-1]), axis=1) for each in DATA[1:3]]
    assert _problem.take_subject(batch, DATA[0], *stacked, None).model.reduction == "sum"
    numbers = report.monitor(batch, DATA[0], *stacked)
    assert numbers["loss"] == pytest.approx(T * report.monitor(models.batched(GRU, 2), DATA[0], *stacked)["loss"])


def test_a_gradient_of_zero_has_no_reach():
    model = GRU._replace(loss=lambda output, target: 0 * jnp.sum(output))
    found = seen(model, DATA)
    assert "The gradient is exactly zero." in found.verdict
    assert not any("90 %" in sentence for sentence in found.verdict)


@pytest.mark.parametrize("error", [1e-11, np.nan, np.inf])
def test_a_wrong_gradient_is_not_proved(error):
    summary = fake(-0.1, error=error)
    assert not summary["proved"]
    assert summary["wrong"] == {"bptt": "b"}
    said = _verdict.in_words(summary)[0]
    assert said.startswith("Gradient NOT proved: of what was compared, these differ")
    assert "backpropagation through time (by " in said


def test_a_wrong_cotangent_of_the_input_does_no_harm(found):
    """No gradient of θ contains it, so that the proof cannot see it: the saliency does without."""
    cell = cases.CELLS["gru"]
    right = cell.derivation.pullback
    derivation = cell.derivation._replace(pullback=right._replace(input=lambda *at: -2 * right.input(*at)))
    model = models.sequence_model(cell._replace(derivation=derivation), cases.O, reduction="mean")
    subject = _problem.take_subject(model, *DATA)._replace(key="wrong input")
    np.testing.assert_allclose(_tables.measure_tables(subject).log_saliency[0], found.log_saliency, rtol=1e-10)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import claims
from experiments import credit as experiment
from experiments.credit import streams, summary, training
from jaxbptt import gradients, truncation
from jaxbptt.trajectories import unroll

STEPS, SHORT = 800, 10


@pytest.fixture
def only():
    """only(table, *names): a table of the experiment without the others until the test ends, in its order after it."""
    whole = []

    def keep(table, *names):
        whole.append((table, dict(table)))
        for name in set(table) - set(names):
            del table[name]

    yield keep
    for table, before in whole:
        table.clear()
        table.update(before)


def shorten(monkeypatch):
    """Stretches of SHORT steps and two rates."""
    for room in (experiment, training):
        monkeypatch.setattr(room, "WHOLE", SHORT)
        monkeypatch.setattr(room, "RATES", (0.003, 0.01))


def draw(name):
    return streams.STREAMS[name](jax.random.key(3), STEPS)


@pytest.mark.parametrize(("name", "ahead"), [("sine", 1), ("50 ahead", 50), ("Lorenz", 1)])
def test_predictions_ask_what_comes(name, ahead):
    seen, asked = draw(name)
    assert seen.shape == asked.shape == (STEPS, 1)
    assert seen.dtype == asked.dtype == jnp.float32
    half = STEPS // 2
    for start, stop in ((0, half - ahead), (half, STEPS - ahead)):
        np.testing.assert_allclose(asked[start:stop], seen[start + ahead : stop + ahead], atol=2e-4)
    for part in (seen[:half], seen[half:]):
        assert 0.2 < jnp.std(part) < 1


def test_a_sine_changes_its_period_in_the_middle():
    seen = np.asarray(draw("sine")[0][:, 0])
    for period, part in zip(streams.PERIODS, np.split(seen, 2), strict=True):
        np.testing.assert_allclose(part[period:], part[:-period], atol=2e-4)


@pytest.mark.parametrize("delay", [streams.SHORT, streams.LONG])
def test_copies_turn_their_sign_in_the_middle(delay):
    seen, asked = draw(f"copy {delay}")
    turned = np.where(np.arange(STEPS) < STEPS // 2, 1, -1)[delay:, None]
    np.testing.assert_array_equal(asked[delay:], turned * np.asarray(seen[:-delay]))
    assert not np.any(asked[:delay])
    assert streams.memoryless_loss(*map(np.asarray, (seen[-300:], asked[-300:]))) == pytest.approx(0.5, abs=0.02)


def test_memoryless_loss_leaves_what_the_present_does_not_say():
    x, rest = np.array([[1.0], [-1.0], [1.0], [-1.0]]), np.array([[1.0], [1.0], [-1.0], [-1.0]])
    assert streams.memoryless_loss(x, 3 * x + 2 + rest) == pytest.approx(0.5)


def test_windows_move_by_the_sum_of_their_gradients(monkeypatch, only):
    shorten(monkeypatch)
    monkeypatch.setitem(training.METHODS, "BPTT", training.Method(window=SHORT))
    only(training.OPTIMISERS, "SGD")
    model = training.make_net(3)
    params = model.init(jax.random.key(0))
    inputs, targets = (values[STEPS // 2 - 2 * SHORT :][: 4 * SHORT].astype(float) for values in draw("sine"))
    learner = jax.jit(training.make_learner("BPTT", model, params))
    found = learner(params, inputs, targets, jnp.asarray(1e-3), jnp.asarray(0), jax.random.key(1))
    state = model.initial_state(params)
    for start in range(0, 2 * SHORT, SHORT):
        window = slice(start, start + SHORT)
        loss, grads = gradients.bptt(model, params, inputs[window], targets[window], initial=state)
        assert found.curve[start // SHORT] == pytest.approx(float(loss) / SHORT)
        state = unroll(model, params, inputs[window], initial=state).states[-1]
        params = jax.tree.map(lambda leaf, step: leaf - 1e-3 * step, params, grads)
    np.testing.assert_allclose(found.state, state, atol=1e-12)
    for moved, expected in zip(jax.tree.leaves(found.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(moved, expected, atol=1e-12)
    still = truncation.windowed(model, params, inputs[-2 * SHORT :], targets[-2 * SHORT :], initial=state, window=10)[0]
    assert jnp.mean(found.frozen) == pytest.approx(float(still) / (2 * SHORT))


def test_a_readout_that_learns_alone_leaves_the_cell(monkeypatch, only):
    shorten(monkeypatch)
    only(training.OPTIMISERS, "SGD")
    model = training.make_net(3)
    params = model.init(jax.random.key(0))
    inputs, targets = (values[: 2 * SHORT].astype(float) for values in draw("sine"))
    learner = jax.jit(training.make_learner(training.READOUT, model, params))
    found = learner(params, inputs, targets, jnp.asarray(0.1), jnp.asarray(0), jax.random.key(1))
    for moved, before in zip(found.params.cell, params.cell, strict=True):
        np.testing.assert_array_equal(moved, before)
    assert jnp.all(found.params.readout.w_yh != params.readout.w_yh)


@pytest.mark.slow
def test_a_tiny_run_twice(monkeypatch, only):
    only(training.METHODS, "immediate", "RTRL")  # to compile is all that a tiny run costs
    only(training.OPTIMISERS, "RMSprop")
    only(streams.STREAMS, "copy 10")
    shorten(monkeypatch)
    config = experiment.Config(hidden=3, steps=8 * SHORT, keys=2)
    with jax.numpy_dtype_promotion("standard"):
        once, again = experiment.run(config), experiment.run(config)
    jax.tree.map(np.testing.assert_array_equal, *(({k: v._asdict() for k, v in run.items()}) for run in (once, again)))
    found = once["copy 10"]
    assert found.curve.shape == (2, 1, 2, 2, 8)
    immediate, rtrl = range(2)
    assert (found.curve[rtrl] != found.curve[immediate]).any()
    np.testing.assert_allclose(found.cosine[rtrl], 1, atol=1e-5)
    assert (found.cosine[immediate] < 1 - 1e-4).all()
    np.testing.assert_allclose(found.bias[rtrl], 0, atol=1e-4)
    np.testing.assert_allclose(found.profile.sum(axis=-1), 1, atol=1e-5)
    assert found.errors.max() < summary.TOLERANCE


def fake_outcome(recovery, keys=6, broken=0.0):
    """Every recovery at the first rate, [M, O] by `recovery`, with a little noise; the second is worse before."""
    methods, optimisers = list(training.METHODS), list(training.OPTIMISERS)
    noise = np.random.default_rng(0).normal(0, 1e-3, (len(methods), len(optimisers), keys))
    curve = np.ones((len(methods), len(optimisers), 2, keys, 16))
    curve[:, :, 1, :, :8] = 1.5
    curve[:, :, 1, :, 8:] = 1e-6  # what comes after decides nothing
    for m, method in enumerate(methods):
        for o, optimiser in enumerate(optimisers):
            curve[m, o, 0, :, -2:] = 1 - (recovery(method, optimiser) + noise[m, o])[:, None]
    wide = np.broadcast_to(np.linspace(0.2, 1, len(methods))[:, None], (len(methods), keys))
    profile = np.zeros((keys, 100))
    profile[:, :4] = 0.25
    return experiment.Outcome(
        hidden=np.array(5),
        methods=np.array(methods),
        optimisers=np.array(optimisers),
        rates=np.array([0.1, 0.2]),
        curve=curve,
        frozen=np.ones((*curve.shape[:-1], 8)),
        memoryless=np.ones(keys),
        cosine=wide,
        bias=1 - wide,
        spread=0 * wide,
        profile=profile,
        errors=np.full((2, keys), broken),
    )


def as_published(method, optimiser):
    if method == training.READOUT or (method, optimiser) == ("immediate", "SGD"):
        return 0.1
    if method == "RFLO":
        return {"SGD": 0.0, "RMSprop": 0.1, "Adam": 0.18}[optimiser]
    return 0.5 if method == "RTRL" else 0.6


def nothing(method, optimiser):
    return 0.004


def the_opposite(method, optimiser):
    if method == "immediate" and optimiser != "SGD":
        return 0.3
    return 0.9


def results(recovery, at_the_end, **options):
    told = {name: fake_outcome(recovery, **options) for name in ("sine", "Lorenz", "50 ahead", "copy 10")}
    return told | {"copy 50": fake_outcome(at_the_end, **options)}


@pytest.mark.parametrize(
    ("recovery", "at_the_end", "verdict"),
    [(as_published, nothing, "holds"), (the_opposite, the_opposite, "fails")],
)
def test_claims_hold_and_fail(recovery, at_the_end, verdict, tmp_path):
    given = results(recovery, at_the_end)
    found = experiment.summarise(given, experiment.Config())
    verdicts = [claim["verdict"] for claim in found.numbers["claims"]]
    assert verdicts == [verdict] * 18
    assert found.exit_code == 0
    sine = found.numbers["tasks"]["sine"]
    assert sine["reach"] == [4] * 6
    entry = sine["methods"]["RTRL"]["optimisers"]["RMSprop"]
    assert entry["rate"] == 0.1
    assert entry["recovery"]["value"] == pytest.approx(recovery("RTRL", "RMSprop"), abs=2e-3)
    assert entry["recovery_at_the_rate_of_the_least_loss_of_the_whole_run"] == pytest.approx(1 - 1e-6)
    assert sum(line.startswith(verdict.upper()) for line in found.lines) == 18
    assert found.lines[-2].startswith("120 of 120 rates are an end of the grid: readout alone + SGD (sine), ")
    if verdict == "holds":
        experiment.plot(given, tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_what_does_not_recover_has_no_ratio():
    found = experiment.summarise(results(lambda *_: -1.0, nothing), experiment.Config())
    first = found.numbers["claims"][0]
    assert first["verdict"] == "cannot tell: a key has no number"
    assert first["number"] == "recovery over RTRL's; published 1.02"


def test_a_broken_identity_is_exit_code_1():
    found = experiment.summarise(results(as_published, nothing, broken=1e-2), experiment.Config())
    assert found.exit_code == 1
    assert "off by 0.01 of the norm, more than 0.002" in found.lines[-1]


def test_a_net_that_diverged_recovered_nothing():
    outcome = fake_outcome(as_published)
    outcome.curve[3, 1, 0, 2, -1] = np.nan
    outcome.curve[3, 1, 0, 3, -1] = 100
    recovery = summary.score(outcome).recovery[3, 1]
    assert (recovery[2:4] == 0).all()
    assert (recovery[[0, 1, 4, 5]] > 0).all()


def test_ratio_interval_is_where_t_cannot_tell():
    below = np.random.default_rng(1).normal(2, 0.5, 7)
    above = 0.8 * below + np.random.default_rng(2).normal(0, 0.2, 7)
    found = summary.ratio_interval(above, below)
    assert found.low < found.value < found.high
    for end in (found.low, found.high):
        at = claims.mean_interval(above - end * below)
        assert min(abs(at.low), abs(at.high)) < 1e-12
    unsure = summary.ratio_interval(above, below - below.mean())
    assert (unsure.low, unsure.high) == (-np.inf, np.inf)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"steps": 1000}, "steps: got 1000, expected a multiple of 800"),
        ({"keys": 1}, "keys: got 1, expected at least 2"),
    ],
)
def test_options_are_checked(options, line):
    with pytest.raises(ValueError, match=line):
        experiment.run(experiment.Config(**options))

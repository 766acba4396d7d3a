import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from experiments import tasks, text, training
from experiments.training import arms, clipping, curves, figure, summary
from jaxbptt import cells, gradients

from .runs import WITH_SUMMARY, run_tiny

TASK = tasks.copy_memory(3, items=2, symbols=3)
BATCH, EVENTS, KEYS, STATE = 3, 3, 4, 5


@pytest.fixture(scope="module")
def chaotic():
    """(model, params, one batch) of a net whose gradient explodes."""
    model = tasks.make_model(TASK, cells.elman(TASK.num_inputs, STATE, recurrent=cells.gaussian(4.0)))
    return model, model.init(jax.random.key(0)), tasks.draw_batch(TASK, jax.random.key(1), BATCH)


def mean_gradient(model, params, data):
    each = jax.vmap(lambda *one: gradients.autodiff(model, params, *one)[1])(*data)
    return ravel_pytree(jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), each))[0]


def test_a_wide_bound_clips_nothing(chaotic):
    model, params, data = chaotic
    clipped = clipping.clip_in_time(model, 1e6)
    np.testing.assert_allclose(mean_gradient(clipped, params, data), mean_gradient(model, params, data), rtol=1e-12)


@pytest.mark.parametrize("bound", [0.1, 0.03])
def test_clipping_in_time_is_the_clipped_recursion(chaotic, bound):
    """λ_t = (J_{t+1}ᵀ λ_{t+1} + ∂L_t/∂h_t), then times min(1, bound/‖λ_t‖); each term by the step's own pullback."""
    model, params, data = chaotic
    inputs, targets = jax.tree.map(lambda leaf: leaf[0], data)
    states, state = [], model.initial_state(params)
    for x in inputs:
        states.append(state)
        state = model.step(params, state, x)
    total = jnp.sum(targets.weight)
    expected, carried, shortened = jnp.zeros(ravel_pytree(params)[0].size), jnp.zeros(STATE), 0
    for t in reversed(range(len(inputs))):
        following = model.step(params, states[t], inputs[t])
        loss = lambda p, h, t=t: TASK.loss(model.readout(p, h), targets.target[t]) * targets.weight[t] / total
        direct, local = jax.grad(loss, argnums=(0, 1))(params, following)
        carried = carried + local
        norm = float(jnp.linalg.norm(carried))
        shortened += norm > bound
        pull = jax.vjp(lambda p, h, t=t: model.step(p, h, inputs[t]), params, states[t])[1]
        pulled, carried = pull(carried * min(1, bound / norm))
        expected += ravel_pytree(direct)[0] + ravel_pytree(pulled)[0]
    assert shortened
    found = ravel_pytree(gradients.autodiff(clipping.clip_in_time(model, bound), params, inputs, targets)[1])[0]
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-14)


def test_the_kinds_of_clipping(chaotic):
    model, params, data = chaotic
    found = {
        kind: ravel_pytree(route(params, *data))[0] for kind, route in clipping.make_gradients(model, BATCH).items()
    }
    assert tuple(found) == arms.CLIPPINGS
    exact, by_norm, in_time = found.values()
    np.testing.assert_allclose(exact, mean_gradient(model, params, data), rtol=1e-11, atol=1e-14)
    assert jnp.linalg.norm(exact) > 1
    np.testing.assert_allclose(by_norm, exact / jnp.linalg.norm(exact), rtol=1e-12)
    clipped = clipping.clip_in_time(model, clipping.BOUND)
    np.testing.assert_allclose(in_time, mean_gradient(clipped, params, data), rtol=1e-11, atol=1e-14)
    batches = jax.tree.map(lambda leaf: jnp.stack((leaf, leaf[::-1])), data)
    bias = clipping.measure_bias(model, params, batches)  # the same batch twice: its norm turns nothing
    norms = [float(jnp.linalg.norm(each)) for each in (exact, by_norm, in_time)]
    np.testing.assert_allclose(bias["clipped_norm"], norms, rtol=1e-11)
    np.testing.assert_allclose(bias["shrinkage"], np.array(norms) / norms[0], rtol=1e-11)
    cosine = float(jnp.vdot(exact, in_time)) / (norms[0] * norms[2])
    np.testing.assert_allclose(bias["cosine"], [1, 1, cosine], rtol=1e-11)
    assert cosine < 0.99


def test_arms_start_as_named():
    params = {name: arm.make(3, 6, 20).init(jax.random.key(0)) for name, arm in arms.ARMS.items()}
    np.testing.assert_allclose(params["ReLU, identity"].w_hh, np.eye(6))
    orthogonal = params["tanh, orthogonal"].w_hh
    np.testing.assert_allclose(orthogonal.T @ orthogonal, np.eye(6), atol=1e-12)
    for bias in (0, 1, 3):
        np.testing.assert_allclose(params[f"LSTM, forget bias {bias}"].b_h[6:12], bias)
    input_bias, forget_bias = params["LSTM, chrono"].b_h[:12].reshape(2, 6)
    np.testing.assert_allclose(input_bias, -forget_bias)
    assert (forget_bias > 0).all()
    assert (forget_bias < np.log(19)).all()
    modulus = np.exp(-np.exp(params["LRU, ring"].nu_log))
    assert ((modulus > 0.9) & (modulus < 0.999)).all()
    assert set(sum(figure.FAMILIES, ())) == set(arms.ARMS)


def fake(loss=1.0, seed=0, kinds=0):
    """Curves of any net; its last loss about `loss`."""
    draw = np.random.default_rng(seed).uniform
    values = {name: draw(1, 2, (EVENTS, KEYS)) for name in ("gradient_norm", "clipped_norm", *curves.SEEN)}
    return curves.Curves(
        rates=np.array(curves.RATES),
        tuning=draw(0, 1, (EVENTS, 3, KEYS)),
        rate=np.array(0.01),
        updates=np.arange(EVENTS) * 10,
        memoryless=np.array(2.0),
        loss=loss + draw(-0.01, 0.01, (EVENTS, KEYS)),
        accuracy=draw(0, 1, (EVENTS, KEYS)),
        log_sigma=draw(-9, 1, (2, KEYS, 6)),
        cosine=np.broadcast_to(
            1 - 0.2 * np.arange(kinds) + draw(-0.01, 0.01, (EVENTS, KEYS, 1)), (EVENTS, KEYS, kinds)
        ),
        shrinkage=draw(0, 1, (EVENTS, KEYS, kinds)),
        **values,
    )


LOSSES = {"tanh, orthogonal": 0.5, "ReLU, identity": 1.5}  # lower and higher than the others' 1


def fakes(*names):
    results = {f"{task}: {arm}": fake(LOSSES.get(arm, 1.0), i) for task in names for i, arm in enumerate(arms.ARMS)}
    return results | {f"{names[0]}: gain 2, {kind}": fake(1.0, 90 + i, 3) for i, kind in enumerate(arms.CLIPPINGS)}


def test_claims_and_table():
    read = text.Alphabet(np.array([" ", "a"]), np.array("text: 2 symbols"))
    found = summary.summarise(fakes("copy", "adding") | {"alphabet": read}, training.Config())
    assert found.lines[0] == "text: 2 symbols"
    assert not any("alphabet" in name for name in found.numbers["nets"])
    verdicts = {task: [claim["verdict"] for claim in made] for task, made in found.numbers["claims"].items()}
    assert verdicts["copy"][:3] == ["holds", "fails", f"cannot tell with {KEYS} keys"]
    assert verdicts["copy"][-1] == "holds"  # the cosine falls by 0.2 a kind
    assert len(verdicts["copy"]) == len(verdicts["adding"]) + 2
    rows = [line for line in found.lines if line.startswith("tanh, orthogonal")]
    assert len(rows) == 2
    assert "0.50" in rows[0]
    assert found.numbers["nets"]["copy: gain 2, in time"]["cosine"] == pytest.approx([1, 0.8, 0.6], abs=0.01)
    assert found.exit_code == 0


@pytest.mark.parametrize("names", [("copy",), ("text", "adding")])
def test_figure(tmp_path, names):
    read = text.Alphabet(np.array([" ", "a"]), np.array("text: 2 symbols"))
    figure.plot(fakes(*names) | {"alphabet": read}, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 20_000


def test_a_figure_of_spectra_that_are_lost(tmp_path):
    results = {
        name: curves._replace(log_sigma=np.full_like(curves.log_sigma, np.nan))
        for name, curves in fakes("copy").items()
    }
    figure.plot(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 20_000


@pytest.mark.slow
def test_a_tiny_run_is_whole_and_the_same_again(tmp_path, monkeypatch):
    few = {name: arms.ARMS[name] for name in ("tanh, Gaussian", "tanh, orthogonal")}
    monkeypatch.setattr(training, "ARMS", few)
    monkeypatch.setattr(training, "plot", None)
    monkeypatch.setattr(training, "EXPERIMENT", training.EXPERIMENT._replace(plot=lambda results, path: None))
    options = "--updates 6 --records 2 --keys 2 --hidden 4 --length 11 --batch 2"
    runs = [run_tiny("training", options, tmp_path / name, promotion="standard") for name in "ab"]
    first, second = runs
    assert first.code == 0
    assert first.files == WITH_SUMMARY - {"figure.png"}
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, second.arrays[name], err_msg=name)
    get = lambda arm, name: first.arrays[f"copy: {arm}.{name}"]
    assert get("tanh, Gaussian", "loss").shape == (3, 2)
    assert get("tanh, Gaussian", "log_sigma").shape == (2, 2, 4)
    assert (get("tanh, Gaussian", "loss")[0] != get("tanh, Gaussian", "loss")[-1]).all()
    np.testing.assert_allclose(get("gain 2, no clipping", "cosine")[..., 0], 1, rtol=1e-5)
    norm, clipped = (get("gain 2, by the global norm", name) for name in ("gradient_norm", "clipped_norm"))
    np.testing.assert_allclose(clipped, np.minimum(norm, 1), rtol=1e-5)
    free, kept = (get("gain 2, no clipping", name) for name in ("gradient_norm", "clipped_norm"))
    np.testing.assert_allclose(free, kept, rtol=1e-5)
    sigma, error = (get("tanh, Gaussian", f"log_sigma_max{end}") for end in ("", "_error"))
    largest = get("tanh, Gaussian", "log_sigma")[..., 0]
    ends = [0, -1]
    assert (sigma[ends] < largest + 1e-4).all()
    assert (largest < sigma[ends] + error[ends] + 1e-4).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--length 10", "length: got 10, expected at least 11"),
        ("--keys 1", "keys: got 1"),
        ("--updates 1", "updates"),
        ("--updates 10 --records 3", "updates: got 10, expected a multiple of records = 3"),
        ("--seed -1", "seed: got -1"),
        ("--seed 100000000000000000000", "seed: got"),
    ],
)
def test_options(tmp_path, options, said, capsys):
    from experiments import __main__ as entry

    assert entry.main(["training", *options.split(), "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err

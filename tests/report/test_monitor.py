"""A monitor's numbers beside dense references, and the programs it must run in."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbptt import cells, gradients, models, report, spectra, terms
from jaxbptt.jacobians import step_jacobians
from jaxbptt.report import _monitor
from jaxbptt.trajectories import unroll
from tests import cases

KEY = jax.random.key(4)
CHAINS = {  # cell, T: long and short, with and without whole blocks, growing and shrinking
    "elman": (cells.elman(2, 6), 133),
    "chaotic elman": (cells.elman(2, 8, recurrent=cells.gaussian(3.0)), 200),
    "orthogonal": (cells.linear(2, 5, recurrent=cells.orthogonal(1.0)), 40),
    "growing": (cells.linear(2, 4, recurrent=cells.gaussian(1.5)), 70),
    "lstm": (cells.lstm(2, 4), 60),
    "gru": (cells.gru(2, 5), 17),
    "custom": (cases.custom_cell(), 24),
    "one step": (cells.gru(2, 5), 1),
}


def norm_of(tree):
    return np.linalg.norm(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]))


def model_of(cell, reduction="sum"):
    return models.sequence_model(cell, 3, reduction=reduction)


@functools.cache
def problem_of(name):
    """(model, data, chain of Jacobians, the monitor's numbers with every loss followed)."""
    cell, length = CHAINS[name]
    model = model_of(cell, "mean")
    params = model.init(KEY)
    data = params, jax.random.normal(KEY, (length, 2)), jax.random.normal(KEY, (length, 3))
    chain = jax.jit(lambda p, x: step_jacobians(model, p, unroll(model, p, x)))(*data[:2])
    return model, data, chain, jax.jit(lambda *data: report.monitor(model, *data, samples=length))(*data)


@pytest.mark.sweep
@pytest.mark.parametrize("name", CHAINS)
def test_loss_and_norms_are_exact(name):
    model, data, _, numbers = problem_of(name)
    loss, grads = gradients.autodiff(model, *data)
    leaves = {f"gradient_norm/{path}": leaf for path, leaf in _named(grads).items()}
    assert {key for key in numbers if key.startswith("gradient_norm/")} == set(leaves)
    np.testing.assert_allclose(numbers["loss"], loss, rtol=1e-12)
    np.testing.assert_allclose(numbers["gradient_norm"], norm_of(grads), rtol=1e-12)
    for key, leaf in leaves.items():
        np.testing.assert_allclose(numbers[key], jnp.linalg.norm(leaf.ravel()), rtol=1e-10)


def _named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


@pytest.mark.sweep
@pytest.mark.parametrize("name", CHAINS)
def test_reach_is_that_of_the_table_if_every_loss_is_followed(name):
    model, data, _, numbers = problem_of(name)
    table = jax.jit(lambda *data: terms.gradient_terms(model, *data))(*data)
    for percent in (50, 90):
        assert int(numbers[f"reach_{percent}"]) == int(table.reach(percent / 100))


@pytest.mark.slow
def test_a_few_losses_give_the_reach_of_their_rows():
    model, data, _, _ = problem_of("elman")
    norms = np.asarray(terms.gradient_terms(model, *data).norms)
    numbers = report.monitor(model, *data, samples=4)
    rows = [132, 132 - 33, 132 - 66, 132 - 99]
    assert _monitor._sampled(133, 4).tolist() == rows[::-1]
    profile = sum(np.pad(norms[t, : t + 1][::-1], (0, 132 - t)) for t in rows)
    cumulative = np.cumsum(profile) / profile.sum()
    assert [int(numbers[f"reach_{percent}"]) for percent in (50, 90)] == [
        int(np.argmax(cumulative >= percent / 100)) for percent in (50, 90)
    ]


@pytest.mark.sweep
@pytest.mark.parametrize("name", CHAINS)
def test_the_largest_singular_value_lies_within_its_error(name):
    _, _, chain, numbers = problem_of(name)
    truth = spectra.log_singular_values(chain)[0, 0]
    assert -1e-9 <= truth - numbers["log_sigma_max"] <= numbers["log_sigma_max_error"]
    assert numbers["log_sigma_max_error"] < 3.5


@pytest.mark.parametrize("name", ["elman", "chaotic elman", "lstm"])
def test_where_one_direction_leads_the_error_is_small(name):
    assert problem_of(name)[-1]["log_sigma_max_error"] < 0.2


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ["elman", "chaotic elman", "orthogonal", "growing", "lstm"])
def test_the_growth_rate_is_the_first_exponent(name):
    _, _, chain, numbers = problem_of(name)
    found = spectra.lyapunov_exponents(chain, k=1)
    spread = np.hypot(np.nan_to_num(found.standard_error[0]), numbers["lambda_1_error"])
    # Two vectors that turn into the first direction differ by a few nats in all.
    assert abs(found.exponents[0] - numbers["lambda_1"]) <= 3 * spread + 2 / len(chain)
    assert abs(numbers["lambda_1"]) > 0.01 or name == "orthogonal"


def test_without_growth_between_blocks_there_is_no_error():
    assert jnp.isnan(problem_of("one step")[-1]["lambda_1_error"])


def test_options():
    model, data, chain, numbers = problem_of("gru")
    norm = float(numbers["gradient_norm"])
    clipped = report.monitor(model, *data, clip=norm / 4, spectrum=True)
    np.testing.assert_allclose(clipped["clipped_share"], 0.75, rtol=1e-12)
    assert report.monitor(model, *data, clip=2 * norm)["clipped_share"] == 0
    log_sigma = spectra.log_singular_values(chain)[0]
    np.testing.assert_allclose(clipped["log_sigma_min"], log_sigma[-1], rtol=1e-9)
    np.testing.assert_allclose(clipped["log_condition"], log_sigma[0] - log_sigma[-1], rtol=1e-9)
    for wrong in ({"samples": 0}, {"clip": -1.0}):
        with pytest.raises(ValueError, match=r"samples|clip"):
            report.monitor(model, *data, **wrong)
    with pytest.raises(ValueError, match="targets"):
        report.monitor(model, data[0], data[1], data[2][:-1])


def test_a_given_initial_state_is_a_constant():
    model = model_of(cases.custom_cell())
    params, inputs, _, initial = cases.instance(model._replace(init=model.init), KEY)
    targets = jnp.zeros((len(inputs), 3))
    numbers = report.monitor(model, params, inputs, targets, initial=initial)
    expected = gradients.autodiff(model, params, inputs, targets, initial=initial)[1]
    np.testing.assert_allclose(numbers["gradient_norm"], norm_of(expected), rtol=1e-12)


def test_bad_numbers():
    model, (params, inputs, targets), _, _ = problem_of("gru")
    broken = targets.at[2].set(jnp.inf)
    with pytest.raises(ValueError, match="first at step t = 3"):
        report.monitor(model, params, inputs, broken)
    numbers = jax.jit(lambda *data: report.monitor(model, *data))(params, inputs, broken)
    assert not np.isfinite(numbers["loss"])


def test_a_dead_chain_says_so():
    cell = cells.elman(2, 3, activation=lambda a: 0 * a)
    model = model_of(cell)._replace(derivation=None)
    numbers = report.monitor(model, model.init(KEY), jnp.ones((20, 2)), jnp.ones((20, 3)))
    assert numbers["log_sigma_max"] == -jnp.inf
    assert numbers["lambda_1"] == -jnp.inf
    assert numbers["log_sigma_max_error"] == 0


class Batched(models.Model):
    single = model_of(cells.gru(2, 5))


@pytest.mark.slow
def test_of_a_batch_the_first_sequence_is_followed():
    single = Batched.single
    params = single.init(KEY)
    inputs, targets = jax.random.normal(KEY, (12, 3, 2)), jax.random.normal(KEY, (12, 3, 3))
    batch = Batched(*models.batched(single, 3))
    numbers = report.monitor(batch, params, inputs, targets)
    first = report.monitor(single, params, inputs[:, 0], targets[:, 0])
    loss, grads = gradients.bptt(batch, params, inputs, targets)
    np.testing.assert_allclose(numbers["loss"], loss, rtol=1e-12)
    np.testing.assert_allclose(numbers["gradient_norm"], norm_of(grads), rtol=1e-12)
    for name in ("lambda_1", "log_sigma_max", "reach_90"):
        np.testing.assert_allclose(numbers[name], first[name], rtol=1e-9)


@pytest.mark.slow
def test_in_a_scanned_training_loop_and_over_a_batch():
    model = model_of(cells.gru(2, 5))
    params, optimiser = model.init(KEY), optax.sgd(1e-2)
    inputs, targets = jax.random.normal(KEY, (3, 12, 2)), jax.random.normal(KEY, (3, 12, 3))

    def train(carry, data):
        params, state = carry
        _, grads = gradients.bptt(model, params, *data)
        updates, state = optimiser.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), report.monitor(model, params, *data)

    with jax.numpy_dtype_promotion("standard"):
        logged = jax.jit(lambda *carry: jax.lax.scan(train, carry, (inputs, targets))[1])(
            params, optimiser.init(params)
        )
    many = jax.jit(jax.vmap(lambda *data: report.monitor(model, params, *data)))(inputs, targets)
    one = report.monitor(model, params, inputs[0], targets[0])
    for name, value in one.items():
        assert value.shape == ()
        np.testing.assert_allclose(logged[name][0], value, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(many[name][0], value, rtol=1e-6, err_msg=name)


def test_dtype_follows_the_params():
    model, data, _, _ = problem_of("gru")
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), data)
    numbers = jax.eval_shape(lambda *data: report.monitor(model, *data, clip=1.0, spectrum=True), *halves)
    assert {value.dtype for name, value in numbers.items() if "reach" not in name} == {np.dtype(np.float32)}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_error_of_sigma_covers(dtype):
    """Chains of random nets of 1 to 40 steps, against all singular values."""
    model = model_of(cells.elman(2, 7))

    def both(key, length):
        gain = jax.random.uniform(key, (), jnp.float64, 0.3, 3.0)
        params = model.init(key)
        params = params._replace(cell=params.cell._replace(w_hh=gain * params.cell.w_hh))
        inputs, targets = jax.random.normal(key, (length, 2)), jax.random.normal(key, (length, 3))
        data = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, inputs, targets))
        chain = step_jacobians(model, data[0], unroll(model, *data[:2])).astype(jnp.float64)  # of the same trajectory
        return spectra.log_singular_values(chain)[0, 0], report.monitor(model, *data)

    outside, count = 0, 0
    for length in (1, 2, 4, 10, 40):
        keys = jax.random.split(jax.random.key(length), 100)
        truth, numbers = jax.jit(lambda keys, length=length: jax.lax.map(lambda key: both(key, length), keys))(keys)
        off, error = (np.asarray(numbers[f"log_sigma_max{part}"], np.float64) for part in ("", "_error"))
        outside += int(np.sum(np.abs(off - np.asarray(truth)) > error))
        count += len(keys)
    assert outside <= 0.02 * count, outside

"""Outputs that read x_t and h_{t−1}: λ_{t−1} has a term of its own, J_t is of the state alone."""

import functools

import jax
import jax.numpy as jnp
import pytest

import jaxbptt
from jaxbptt import derivations, gradients, jacobians, models, online, terms, trajectories, truncation
from jaxbptt.comparison import compare

T, N, M, O, KEY = 7, 3, 2, 2, jax.random.key(4)
CUTS = jnp.array([False, True, False, False, True, False, False])


def step(params, h, x):
    return jnp.tanh(params["w"] @ h + params["u"] @ x)


READOUTS = {
    "state, x": lambda params, h, x: params["v"] @ jnp.tanh(h) + params["u"][:O] @ x,
    "state, x, previous": lambda params, h, x, before: params["v"] @ (h * before) + jnp.sum(x) * params["v"] @ before,
}


def instance(reads, reduction="mean", gain=1.0):
    keys = jax.random.split(KEY, 6)
    params = {
        "w": gain * jax.random.normal(keys[0], (N, N)),
        "u": jax.random.normal(keys[1], (N, M)),
        "v": jax.random.normal(keys[2], (O, N)),
        "h_0": jax.random.normal(keys[3], (N,)),
    }
    model = models.make_model(step, lambda p: p["h_0"], READOUTS[reads], models.squared_error, reduction=reduction)
    assert model.reads == reads
    return model, params, jax.random.normal(keys[4], (T, M)), jax.random.normal(keys[5], (T, O))


def losses(reads, params, inputs, targets):
    """L_1 … L_T by a loop."""
    h, found = params["h_0"], []
    for x, target in zip(inputs, targets, strict=True):
        before, h = h, step(params, h, x)
        seen = (x, before)[: reads.count(",")]
        found.append(jnp.sum((READOUTS[reads](params, h, *seen) - target) ** 2) / 2)
    return jnp.stack(found)


@pytest.mark.sweep
@pytest.mark.parametrize("gain", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("reads", READOUTS)
def test_every_route_equals_the_loop(reads, gain):
    model, *data = instance(reads, gain=gain)
    total = lambda params: jnp.mean(losses(reads, params, *data[1:]))
    expected = jax.grad(total)(data[0])

    @jax.jit
    def found(*data):
        routes = [gradients.autodiff, gradients.bptt, gradients.forward_sensitivity, gradients.double_sum]
        routes += [functools.partial(gradients.bptt, block=3), functools.partial(truncation.windowed, window=T)]
        routes += [functools.partial(truncation.lag, num_lags=T)]
        return [route(model, *data)[1] for route in routes]

    for grads in found(*data):
        assert compare(expected, grads).relative < 1e-12


@pytest.mark.parametrize("reads", READOUTS)
def test_truncations_equal_their_tables(reads):
    model, *data = instance(reads)

    @jax.jit
    def pairs(*data):
        of_table = functools.partial(truncation.weighted_gradient, model, *data)
        return [
            (of_table(truncation.window_weights(T, 3)), truncation.windowed(model, *data, window=3)),
            (of_table(truncation.sliding_weights(T, 2, 3)), truncation.sliding(model, *data, stride=2, num_lags=3)),
            (of_table(truncation.random_weights(CUTS, 0.7)), truncation.randomised(model, *data, keep=0.7, cuts=CUTS)),
        ]

    for expected, found in pairs(*data):
        assert compare(expected, found).relative < 1e-12


@pytest.mark.parametrize("reads", READOUTS)
def test_windows_that_start_from_zero_state_equal_the_sum_of_windows(reads):
    model, params, inputs, targets = instance(reads, "sum")
    alone = [gradients.autodiff(model, params, inputs[a:b], targets[a:b])[1] for a, b in ((0, 3), (3, 6), (6, 7))]
    found = truncation.windowed(model, params, inputs, targets, window=3, carry_state=False)[1]
    assert compare(jax.tree.map(lambda *leaves: sum(leaves), *alone), found).relative < 1e-12


@pytest.mark.parametrize("rule", [online.rtrl, lambda: online.snap(N)])
def test_online_rules_equal_the_gradient(rule):
    model, *data = instance("state, x, previous", "sum")
    expected = gradients.bptt(model, *data)[1]
    assert compare(expected, online.run(rule(), model, *data)[1]).relative < 1e-12


@pytest.mark.parametrize("reads", READOUTS)
def test_tables_hold_the_terms_of_each_loss(reads):
    """Rows of the (t, k) table by single losses and each step's own params; saliency by the Jacobian by inputs."""
    model, params, inputs, targets = instance(reads, "sum")
    own = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (T, *leaf.shape)), params)

    def by_step(own, inputs):
        h, found = params["h_0"], []
        for t in range(T):
            before, h = h, step(jax.tree.map(lambda leaf, t=t: leaf[t], own), h, inputs[t])
            seen = (inputs[t], before)[: reads.count(",")]
            found.append(jnp.sum((READOUTS[reads](params, h, *seen) - targets[t]) ** 2) / 2)
        return jnp.stack(found)

    of_params, of_inputs = jax.jacrev(by_step, argnums=(0, 1))(own, inputs)
    norms = jnp.sqrt(sum(jnp.sum(leaf**2, axis=tuple(range(2, leaf.ndim))) for leaf in jax.tree.leaves(of_params)))
    table = terms.gradient_terms(model, params, inputs, targets).norms
    assert jnp.max(jnp.abs(table - norms)) < 1e-12
    saliency = jnp.exp(terms.input_saliency(model, params, inputs, targets).log_norms)
    assert jnp.max(jnp.abs(saliency - jnp.linalg.norm(of_inputs, axis=2))) < 1e-12
    profile = truncation.lag_profile(model, params, inputs, targets, initial=params["h_0"], num_lags=T)
    assert jnp.max(jnp.abs(profile.norms - terms.gradient_terms(model, params, inputs, targets).profile())) < 1e-12


def test_the_chain_is_of_the_state_alone():
    model, params, inputs, targets = instance("state, x, previous")
    steps = trajectories.unroll(model, params, inputs)
    assert jacobians.step_jacobians(model, params, steps).shape == (T, N, N)
    kick = jnp.zeros((T, N))

    def kicked(kick):
        h, total = params["h_0"], 0.0
        for t in range(T):
            before, h = h, step(params, h, inputs[t]) + kick[t]
            total = (
                total + jnp.sum((READOUTS["state, x, previous"](params, h, inputs[t], before) - targets[t]) ** 2) / 2
            )
        return total / T

    assert jnp.max(jnp.abs(gradients.adjoints(model, params, inputs, targets) - jax.grad(kicked)(kick))) < 1e-12


def test_a_lost_early_term_is_seen_by_the_check():
    model, *data = instance("state, x, previous")
    of = lambda gradient: derivations.check_gradient(
        model, gradient, key=KEY, params=data[0], inputs=data[1], targets=data[2]
    )
    cut = model._replace(readout=lambda p, h, x, before: model.readout(p, h, x, jax.lax.stop_gradient(before)))
    assert of(gradients.bptt).ok
    assert not of(lambda model, *rest: gradients.bptt(cut, *rest)).ok


def test_the_last_state_starts_the_next_window():
    model, params, inputs, targets = instance("state, x", "sum")
    for block in (None, 2):
        loss, grads, last = gradients.bptt(model, params, inputs, targets, block=block, return_state=True)
        steps = trajectories.unroll(model, params, inputs)
        assert jnp.max(jnp.abs(last - steps.states[-1])) < 1e-15
        expected = gradients.bptt(model, params, inputs, targets)
        assert abs(loss - expected[0]) < 1e-12
        assert compare(expected[1], grads).relative < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("reads", READOUTS)
def test_a_monitor_and_a_verdict_know_the_early_term(reads):
    model, *data = instance(reads, "mean")
    model = models.penalised(model, lambda params: jnp.sum(params["w"] ** 2))
    numbers = jaxbptt.monitor(model, *data, samples=T)
    loss, grads = gradients.autodiff(model, *data)
    norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(grads)))
    assert abs(numbers["loss"] - loss) < 1e-12
    assert abs(numbers["gradient_norm"] - norm) < 1e-12 * norm
    table = terms.gradient_terms(model, *data)
    assert (float(numbers["reach_50"]), float(numbers["reach_90"])) == (int(table.reach(0.5)), int(table.reach(0.9)))
    verdict = jaxbptt.verify(model, *data)
    assert verdict.ok, str(verdict)

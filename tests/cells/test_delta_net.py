"""DeltaNet: its equations, the spectrum of its step, what it recalls, and keys of zeros."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import cells, trajectories
from tests import cases
from tests.cells import matrix_cells
from tests.cells.matrix_cells import KEY

K, V = cases.N, 2
sigmoid = lambda a: 1 / (1 + np.exp(-a))


def gates(params, x):
    """(k, β, e^g) of one step, in NumPy."""
    p, x = jax.tree.map(np.asarray, params), np.asarray(x)
    k, beta = p.w_k @ x, sigmoid(p.w_beta @ x + p.b_beta)
    g = -np.exp(p.a_log) * np.log1p(np.exp(p.w_g @ x + p.b_g)) if hasattr(p, "a_log") else 0.0
    return k / np.linalg.norm(k), beta, np.exp(g)


@pytest.mark.parametrize("name", ["delta_net", "gated_delta_net"])
def test_it_computes_its_equations(name):
    cell = cases.MODERN[name]
    params, inputs, _, state = matrix_cells.instance(cell, KEY, 0.5)
    x, (k, beta, decay) = inputs[0], gates(params, inputs[0])
    expected = decay * (np.eye(K) - beta * np.outer(k, k)) @ state + beta * np.outer(k, params.w_v @ x)
    new = cell.step(params, state, x)
    np.testing.assert_allclose(new, expected, rtol=1e-13)
    q = params.w_q @ x
    np.testing.assert_allclose(cell.output(params, new, x), expected.T @ q / np.linalg.norm(q), rtol=1e-13)


@pytest.mark.parametrize("name", ["delta_net", "gated_delta_net"])
def test_the_steps_spectrum_is_known(name):
    """J = A ⊗ I_V, row-major; σ(A) = e^g (K − 1 times) and e^g |1 − β|."""
    cell = cases.MODERN[name]
    params, inputs, _, state = matrix_cells.instance(cell, KEY, 0.5)
    k, beta, decay = gates(params, inputs[0])
    jacobian = jax.jacfwd(lambda h: cell.step(params, h.reshape(K, V), inputs[0]).ravel())(state.ravel())
    np.testing.assert_allclose(jacobian, np.kron(decay * (np.eye(K) - beta * np.outer(k, k)), np.eye(V)), atol=1e-15)
    expected = decay * np.repeat([1.0] * (K - 1) + [1 - beta], V)
    np.testing.assert_allclose(np.linalg.svd(jacobian, compute_uv=False), expected, rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_what_a_key_held_is_overwritten(seed):
    """At β = 1 the last value written at a key is read there, whatever was written before, at it or at other keys.

    A transition that acts on the side of the values, as one library has composed it, recalls something else.
    """
    size = 4
    cell = cells.delta_net(2 * size, size, size)
    first, second = jnp.eye(size, 2 * size), jnp.eye(size, 2 * size, k=size)  # an input is a key and a value
    weights = jnp.zeros(2 * size)
    params = cells.DeltaNetParams(first, first, second, weights, jnp.asarray(50.0))  # β = 1 to the last digit
    drawn = jax.random.normal(jax.random.key(seed), (5, 2 * size))
    inputs = drawn.at[-1, :size].set(3 * drawn[1, :size])  # the key of the second step once more
    state = trajectories.unroll(cell, params, inputs).states[-1]
    np.testing.assert_allclose(cell.output(params, state, inputs[1]), inputs[-1, size:], rtol=1e-14, atol=1e-14)

    wrong = np.zeros((size, size))
    for x in np.asarray(inputs):
        key, value = x[:size] / np.linalg.norm(x[:size]), x[size:]
        wrong = wrong @ (np.eye(size) - np.outer(key, key)) + np.outer(key, value)
    recalled = wrong.T @ inputs[1, :size] / np.linalg.norm(inputs[1, :size])
    assert np.linalg.norm(recalled - inputs[-1, size:]) > 0.1


@pytest.mark.parametrize("name", ["delta_net", "gated_delta_net"])
def test_a_key_of_zeros_writes_nothing_and_has_no_derivative(name):
    cell = cases.MODERN[name]
    params, inputs, _, state = matrix_cells.instance(cell, KEY, 0.5)
    decay = gates(params, inputs[0])[2]
    params = params._replace(w_k=jnp.zeros_like(params.w_k))
    np.testing.assert_allclose(cell.step(params, state, inputs[0]), decay * state, rtol=1e-14)
    assert matrix_cells.step_errors(cell, [(params, state, inputs[0])]).max() < 1e-13
    assert not np.any(cell.derivation.pullback(params, state, inputs[0], state)[0].w_k)


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_a_key_of_any_length_is_made_one_of_length_one(scale):
    cell = cells.delta_net(2, 3, 2)
    params, state, x = cell.init(KEY), jnp.ones((3, 2)), jnp.ones(2)
    scaled = params._replace(w_k=scale * params.w_k, w_q=scale * params.w_q)
    for function in (cell.step, cell.output):
        np.testing.assert_allclose(function(scaled, state, x), function(params, state, x), rtol=1e-14)

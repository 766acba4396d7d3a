"""What every function must do with every cell: jit, vmap, one trace for equal shapes, the dtype of what came in."""

import functools
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import gradients, models, partials
from jaxbptt.jacobians import prefix_products, step_jacobians
from jaxbptt.trajectories import unroll
from tests import cases, conformance

KEY = jax.random.key(8)
MAPPED = (
    "trajectories.unroll jacobians.step_jacobians jacobians.product jacobians.prefix_products gradients.autodiff"
    " gradients.bptt gradients.forward_sensitivity gradients.double_sum gradients.adjoints terms.gradient_terms"
    " spectra.log_singular_values"
)


def model_of(name):
    cell = cases.CELLS["elman"] if name == "step alone" else cases.CELLS[name]
    model = models.sequence_model(cell, cases.O)
    return model._replace(derivation=None, num_inputs=None, init=None) if name == "step alone" else model


def data_of(model, key=KEY):
    known = model if model.init else model._replace(init=model_of("elman").init, num_inputs=cases.M)
    return cases.instance(known, key)


def test_every_public_function_is_here():
    covered = {name.split(" ")[0] for name in conformance.FUNCTIONS}
    assert conformance.public_functions() == covered


NAMES = [*cases.CELLS, "step alone"]


def assert_numbers(tree):
    for leaf in map(np.asarray, jax.tree.leaves(tree)):
        assert leaf.dtype in (np.float64, np.complex128) or leaf.dtype.kind in "iub"
        assert not np.isnan(leaf).any()


@functools.cache
def chain_of(name):
    model = model_of(name)
    return jax.jit(lambda *data: conformance.chain_of(model, *data))(*data_of(model))


@functools.cache
def compiled(function):
    """One function for all chains: cells with states of one size share what is compiled."""
    return jax.jit(conformance.CHAIN[function])


@pytest.mark.sweep
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("function", conformance.CHAIN)
def test_every_function_of_jacobians_takes_every_cells(function, name):
    assert_numbers(compiled(function)(chain_of(name)))


PAIRS = [
    (function, name)
    for function in (*conformance.TRACED, *conformance.EAGER)
    for name in (NAMES if function not in conformance.LONG else ["lstm", "step alone"])
]


@pytest.mark.sweep(10)
@pytest.mark.parametrize(("function", "name"), PAIRS)
def test_every_function_takes_every_cell(function, name):
    model = model_of(name)
    if function in conformance.NEEDS_FACTORED and partials.step_partials(model).factored is None:
        with pytest.raises(ValueError, match="expected"):
            conformance.run(function, model, data_of(model))
        return
    assert_numbers(conformance.run(function, model, data_of(model)))


# One cell of each structure that CELLS do not have. An mLSTM's J_t is singular where ĩ sets m'.
STRUCTURED = ["lru", "delta_net", "mlstm"]
NEEDS_INVERSE = {"gradients.forward_adjoint", "gradients.propagate_errors"}
NEEDS_ONE_PRODUCT = {"online.run kf_rtrl"}  # of all that the step reads with one matrix


@pytest.mark.slow
@pytest.mark.parametrize("name", STRUCTURED)
@pytest.mark.parametrize("function", sorted({*conformance.TRACED, *conformance.EAGER} - conformance.LONG))
def test_every_function_takes_cells_that_know_their_blocks(function, name):
    model = models.sequence_model(cases.MODERN[name], cases.O)
    if function in NEEDS_ONE_PRODUCT and name != "lru":
        with pytest.raises(ValueError, match="kf_rtrl: got a model without"):
            conformance.run(function, model, cases.instance(model, KEY))
        return
    found = conformance.run(function, model, cases.instance(model, KEY))
    if name != "mlstm" or function not in NEEDS_INVERSE:
        assert_numbers(found)


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["elman", "lstm", "custom"])
@pytest.mark.parametrize("function", MAPPED.split())
def test_jit_vmap_one_trace_and_dtype(function, name):
    model = model_of(name)

    def call(*data):
        if function in conformance.CHAIN:
            return conformance.CHAIN[function](conformance.chain_of(model, *data))
        return conformance.TRACED[function](model, *data)

    chex.clear_trace_counter()
    compiled = jax.jit(chex.assert_max_traces(call, n=1))
    batch = [data_of(model, key) for key in jax.random.split(KEY, 2)]
    singles = [compiled(*data) for data in batch]
    stacked = jax.vmap(call)(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *batch))
    for i, single in enumerate(singles):
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, i=i: leaf[i], stacked), single, rtol=1e-9, atol=1e-9)
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), batch[0])
    for leaf in jax.tree.leaves(jax.eval_shape(call, *halves)):
        assert leaf.dtype == jnp.float32 or jnp.issubdtype(leaf.dtype, jnp.integer)


def test_functions_are_differentiable_where_the_mathematics_is():
    """d/dW of ‖λ‖² and of ‖dh_T/dh_0‖², against a central difference along a random direction."""
    model = models.sequence_model(cases.CELLS["gru"], cases.O)
    params, inputs, targets, initial = cases.instance(model, KEY)

    def scalar(params):
        chain = step_jacobians(model, params, unroll(model, params, inputs, initial=initial))
        adjoint = gradients.adjoints(model, params, inputs, targets, initial=initial)
        return jnp.sum(prefix_products(chain)[-1] ** 2) + jnp.sum(adjoint**2)

    direction = jax.tree.map(lambda leaf: jax.random.normal(KEY, leaf.shape), params)
    slope = sum(
        jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (jax.grad(scalar)(params), direction)), strict=True)
    )
    ahead, behind = (scalar(jax.tree.map(lambda p, d, s=s: p + s * d, params, direction)) for s in (1e-6, -1e-6))
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-7)


@pytest.mark.slow
def test_without_x64():
    """One short run as most users have it: float32 by default, nothing promoted, nothing warned."""
    code = """
import warnings; warnings.simplefilter("error")
import jax, jax.numpy as jnp, numpy as np
from jaxbptt import cells, gradients, jacobians, models, spectra, terms, trajectories
from jaxbptt.comparison import compare
model = models.sequence_model(cells.lstm(3, 5), 4, loss=models.softmax_cross_entropy, reduction="mean")
key = jax.random.key(0)
params, inputs, targets = model.init(key), jax.random.normal(key, (12, 3)), jnp.arange(12) % 4
loss, expected = gradients.autodiff(model, params, inputs, targets)
for route in (gradients.bptt, gradients.forward_sensitivity, gradients.double_sum):
    _, grads = route(model, params, inputs, targets)
    assert compare(expected, grads).relative < 1e-5
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))
chain = jacobians.step_jacobians(model, params, trajectories.unroll(model, params, inputs))
values = spectra.log_singular_values(chain)
assert values.dtype == jnp.float32
np.testing.assert_allclose(values[0].sum(), jnp.linalg.slogdet(chain)[1].sum(), rtol=1e-5)
assert terms.gradient_terms(model, params, inputs, targets).norms.dtype == jnp.float32
"""
    subprocess.run([sys.executable, "-c", code], check=True)

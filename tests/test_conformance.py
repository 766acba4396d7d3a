"""What every cell must do with every function: jit, vmap, one trace for equal shapes, the dtype of what came in."""

import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import gradients, models, spectra, terms
from jaxbptt.jacobians import prefix_products, product, step_jacobians
from jaxbptt.trajectories import unroll
from tests import cases

KEY = jax.random.key(8)


def functions_of(model):
    def jacobians(params, inputs, targets, initial):
        return step_jacobians(model, params, unroll(model, params, inputs, initial=initial))

    def of_jacobians(function):
        return lambda *data: function(jacobians(*data))

    def route(function):
        return lambda params, inputs, targets, h_0: function(model, params, inputs, targets, initial=h_0)

    return {
        "unroll": lambda params, inputs, targets, h_0: unroll(model, params, inputs, initial=h_0).states,
        "step_jacobians": jacobians,
        "product": of_jacobians(lambda chain: product(chain, 1, 3)),
        "prefix_products": of_jacobians(prefix_products),
        "log_singular_values": of_jacobians(lambda chain: spectra.log_singular_values(chain, every=2)),
        **{name: route(getattr(gradients, name)) for name in ("autodiff", "bptt", "forward_sensitivity", "double_sum")},
        "adjoints": route(gradients.adjoints),
        "gradient_terms": route(
            lambda *a, **k: (lambda t: (t, t.profile(), t.reach(0.9)))(terms.gradient_terms(*a, **k))
        ),
    }


@pytest.mark.parametrize("name", ["elman", "lstm", "custom"])
@pytest.mark.parametrize("function", functions_of(None))
def test_jit_vmap_one_trace_and_dtype(function, name):
    model = models.sequence_model(cases.CELLS[name], cases.O)
    call = functions_of(model)[function]
    chex.clear_trace_counter()
    compiled = jax.jit(chex.assert_max_traces(call, n=1))
    batch = [cases.instance(model, key) for key in jax.random.split(KEY, 2)]
    singles = [compiled(*data) for data in batch]
    stacked = jax.vmap(call)(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *batch))
    for i, single in enumerate(singles):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-9, atol=1e-9), stacked, single)
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

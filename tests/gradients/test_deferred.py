"""Products of weights with data are found in a step's own program, and their gradients taken out of the loop."""

import jax
import jax.numpy as jnp
import pytest

from jaxbptt import cells, gradients, models
from jaxbptt.comparison import compare
from jaxbptt.gradients import deferred
from tests.gradients.problems import BATCH, batch_of
from tests.mutation import mutate_package

SHAPES = {"w": (3, 3), "u": (3,), "v": (3,), "m": (2, 3), "scale": (), "unused": (4,)}


def masked_step(params, state, x):
    """Two products with one weight, a weight made of others, one on the right, a weight used without a product."""
    w = params["w"] * jnp.tril(jnp.ones_like(params["w"])) + jnp.outer(params["u"], params["v"])
    a = w @ state["h"] + x @ params["m"] + w.T @ jnp.sin(state["h"]) * params["scale"]
    a = jax.nn.relu(a) + jax.lax.cond(x[0] > 0, lambda h: params["w"] @ h, lambda h: h, state["h"])
    h = jnp.tanh(a + jnp.diag(params["w"]) + params["w"][0] * state["n"])
    return {"h": h, "n": jax.nn.sigmoid(params["scale"]) * state["n"]}


def init(key):
    return {k: jax.random.normal(jax.random.fold_in(key, i), s) for i, (k, s) in enumerate(SHAPES.items())}


@pytest.fixture(scope="module", params=[None, BATCH], ids=["one", "batch"])
def problem(request):
    """(model, data, dC/dθ)."""
    cell = cells.from_step(masked_step, lambda params: {"h": jnp.sin(params["u"]), "n": jnp.ones(3)}, init=init)
    model = models.sequence_model(cell._replace(num_inputs=2), 4)
    params, inputs, targets, _ = batch_of(model)
    if request.param is None:
        data = params, inputs[:, 0], targets[:, 0]
    else:
        model, data = models.batched(model, BATCH), (params, inputs, targets)
    return model, data, jax.jit(lambda *data: gradients.autodiff(model, *data)[1])(*data)


def bptt(module, model, data):
    return jax.jit(lambda *data: module.bptt(model, *data, block=2)[1])(*data)


def test_products_found_in_a_step_are_differentiated_as_they_are(problem):
    model, data, expected = problem
    form = deferred.read_step(model.step, data[0], model.initial_state(data[0]), data[1][0])
    assert len(form.products) == 3  # not the one inside the cond
    assert compare(expected, bptt(gradients, model, data)).relative < 1e-12


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[0] + kicks[i]]", "[0] + 0 * kicks[i]]"),
        ("pull_fixed((gradients, others_gradient))",
         "pull_fixed((gradients, jax.tree.map(jnp.zeros_like, others_gradient)))"),
        ("[1](z)[0])", "[1](z[::-1])[0])"),
        ("vectors.append(vector)", "vectors.append(jnp.sin(vector))"),
    ],
)  # fmt: skip
def test_a_broken_line_is_seen(old, new, problem):
    """By other numbers: a line that raised would only send everything the plain way."""
    model, data, expected = problem
    assert compare(expected, bptt(mutate_package(gradients, old, new), model, data)).relative > 1e-3


def test_a_program_that_cannot_be_run_in_parts_goes_the_plain_way(problem):
    model, data, expected = problem
    run_nothing = mutate_package(gradients, "form = read_step(", "raise ValueError; form = read_step(")
    assert compare(expected, bptt(run_nothing, model, data)).relative < 1e-12

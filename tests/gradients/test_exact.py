import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import cells, gradients, models
from jaxbptt.comparison import compare
from jaxbptt.gradients import deferred
from tests import cases
from tests.mutation import mutate_package

KEY = jax.random.key(5)
LOSSES = {"squared": models.squared_error, "cross_entropy": models.softmax_cross_entropy}
HAND = ("bptt", "forward_sensitivity", "double_sum")


@functools.cache
def model_of(name, loss, reduction, plain=False):
    cell = cases.CELLS[name]
    if plain:  # the same derivation as a user writes it: an ordinary pullback, not a factored one
        factored = cell.derivation.pullback
        cell = cell._replace(derivation=cell.derivation._replace(pullback=lambda *arguments: factored(*arguments)))
    return models.sequence_model(cell, cases.O, loss=LOSSES[loss], reduction=reduction)


@functools.cache
def jitted(route, model, own_initial=False, module=gradients):
    function = getattr(module, route)
    if own_initial:
        return jax.jit(lambda params, inputs, targets, _: function(model, params, inputs, targets))
    return jax.jit(lambda params, inputs, targets, h_0: function(model, params, inputs, targets, initial=h_0))


def errors_of(model, data, **options):
    """Worst relative error of each hand route against autodiff, and whether some leaf differs in some bit."""
    loss, expected = jitted("autodiff", model, **options)(*data)
    for route in HAND:
        other_loss, actual = jitted(route, model, **options)(*data)
        np.testing.assert_allclose(other_loss, loss, rtol=1e-13)
        different = any(
            not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (expected, actual)), strict=True)
        )
        yield route, compare(expected, actual).relative, different


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["linear", "elman", "lstm", "gru"])
def test_four_routes_agree(name, loss, reduction):
    model = model_of(name, loss, reduction)
    differing = set()
    for gain in cases.GAINS:
        data = cases.instance(model, KEY, gain=gain, classes=loss == "cross_entropy")
        for route, error, different in errors_of(model, data):
            assert error < 1e-12, (route, gain)
            differing |= {route} if different else set()
    assert differing == set(HAND), "routes that agree to the last bit everywhere would be the same code"


@pytest.mark.parametrize("own_initial", [False, True])
@pytest.mark.parametrize("kind", ["shared", "custom", "plain pullback"])
def test_four_routes_agree_for_other_models(kind, own_initial):
    if kind == "shared":
        model, outputs = cases.shared_model(), cases.N
    else:
        model, outputs = (
            model_of("custom" if kind == "custom" else "lstm", "squared", "mean", kind != "custom"),
            cases.O,
        )
    data = cases.instance(model, KEY, num_outputs=outputs, gain=1.5)
    for route, error, _ in errors_of(model, data, own_initial=own_initial):
        assert error < 1e-12, route


def loop_loss(model, params, inputs, targets, initial):
    """C by a plain Python loop: the reference that shares nothing with the library."""
    state = model.initial_state(params) if initial is None else initial
    total = 0.0
    for x, target in zip(inputs, targets, strict=True):
        state = model.step(params, state, x)
        total = total + model.loss(model.readout(params, state), target)
    return total / len(inputs) if model.reduction == "mean" else total


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("kind", ["shared", "custom"])
def test_autodiff_against_a_python_loop(kind, given):
    model = cases.shared_model() if kind == "shared" else model_of("custom", "squared", "sum")
    params, inputs, targets, initial = cases.instance(model, KEY, num_outputs=cases.N if kind == "shared" else cases.O)
    initial = initial if given else None
    loss, expected = jax.value_and_grad(lambda p: loop_loss(model, p, inputs, targets, initial))(params)
    actual_loss, actual = gradients.autodiff(model, params, inputs, targets, initial=initial)
    np.testing.assert_allclose(actual_loss, loss, rtol=1e-13)
    assert compare(expected, actual).relative < 1e-12


@pytest.mark.parametrize("name", ["elman", "lstm", "custom"])
def test_adjoints_are_gradients_of_a_kick_to_each_state(name):
    model = model_of(name, "squared", "mean")
    params, inputs, targets, initial = cases.instance(model, KEY)
    flat, unravel = ravel_pytree(initial)

    def kicked(kicks):
        state, total = initial, 0.0
        for x, target, kick in zip(inputs, targets, kicks, strict=True):
            state = unravel(ravel_pytree(model.step(params, state, x))[0] + kick)
            total = total + model.loss(model.readout(params, state), target)
        return total / len(inputs)

    expected = jax.grad(kicked)(jnp.zeros((cases.T, flat.size)))
    actual = gradients.adjoints(model, params, inputs, targets, initial=initial)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)


def test_the_unit_problem():
    """h_t = θ h_{t−1}, o_t = θ h_t, L_t = o_t, θ = 2, T = 3: C = 28, dC/dθ = 48 = 34 + 14, λ = 14, 6, 2."""
    model = models.Model(
        init=lambda key: jnp.ones(()),
        initial_state=lambda theta: jnp.ones(()),
        step=lambda theta, h, x: theta * h,
        readout=lambda theta, h: theta * h,
        loss=lambda o, y: o,
    )
    arguments = (model, jnp.array(2.0), jnp.zeros((3, 0)), jnp.zeros((3, 0)))
    for route in ("autodiff", *HAND):
        assert tuple(map(float, getattr(gradients, route)(*arguments))) == (28, 48)
    np.testing.assert_array_equal(gradients.adjoints(*arguments)[:, 0], [14, 6, 2])
    _, _, _, direct = gradients.run_forward(*arguments, None)
    assert float(direct) == 14


MUTANTS = [
    ("bptt", "jax.tree.map(jnp.add, local, from_later)", "local"),
    ("bptt", "body, later, (factors, local), reverse=True", "body, later, (factors, local), reverse=False"),
    ("bptt", "jax.tree.map(jnp.add, direct, recurrent)", "recurrent"),
    ("bptt", "return pullback.state(params, factors, cotangent, delta), delta", "return cotangent, delta"),
    ("bptt", "previous = Trajectory(saved.initial, inputs, saved.states).previous", "previous = saved.states"),
    ("bptt", "losses = losses * reduction_weight(model, length, losses.dtype)", "pass"),
    ("bptt", "return jax.tree.map(jnp.add, grads, pull(initial_adjoint)[0])", "return grads"),
    ("forward_sensitivity", "direct + jacobian @ sensitivity", "direct + sensitivity"),
    ("forward_sensitivity", "direct + jacobian @ sensitivity", "direct + jacobian.T @ sensitivity"),
    ("forward_sensitivity", "direct + jacobian @ sensitivity", "jacobian @ sensitivity"),
    ("forward_sensitivity", "gradient + readout_gradient + local", "gradient + local"),
    ("forward_sensitivity", "return weight * model.loss", "return model.loss"),
    ("forward_sensitivity", "sensitivity = jax.jacrev(lambda theta:", "sensitivity = 0 * jax.jacrev(lambda theta:"),
    ("double_sum", "cotangents @ jacobian)", "cotangents @ jacobian.T)"),
    ("double_sum", "cotangents @ jacobian)", "cotangents)"),
    ("double_sum", "(jnp.arange(len(local)), trajectory.previous,", "(jnp.arange(len(local)), trajectory.states,"),
    ("double_sum", "initial_adjoint = unravel(jnp.sum(carried, axis=0))", "initial_adjoint = unravel(carried[0])"),
]  # fmt: skip


@pytest.mark.parametrize(("route", "old", "new"), MUTANTS)
def test_a_broken_route_is_seen(route, old, new):
    """Dropped factors, swapped orders, h_t for h_{t−1}, a lost 1/T, a lost direct or initial part: all far off."""
    model = cases.shared_model()
    model = model._replace(initial_state=lambda params: jnp.sin(params.b_h))
    data = cases.instance(model, KEY, num_outputs=cases.N, gain=1.5)
    _, expected = jitted("autodiff", model, True)(*data)
    _, broken = jax.jit(lambda *data: getattr(mutate_package(gradients, old, new), route)(model, *data[:3]))(*data)
    assert compare(expected, broken).relative > 1e-3


BATCH = 3


def batch_of(model, length=cases.T):
    """Params and inputs [T, B, M], targets [T, B, O], h_0 [B, ...]."""
    drawn = [cases.instance(model, jax.random.fold_in(KEY, i), gain=1.5, length=length) for i in range(BATCH)]
    stack = lambda axis: lambda *leaves: jnp.stack(leaves, axis)  # noqa: E731
    inputs, targets = (jax.tree.map(stack(1), *(one[i] for one in drawn)) for i in (1, 2))
    return drawn[0][0], inputs, targets, jax.tree.map(stack(0), *(one[3] for one in drawn))


@pytest.mark.parametrize("own_initial", [False, True])
@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "custom", "plain"])
def test_a_batch_is_the_sum_of_its_sequences(name, own_initial):
    model = model_of("lstm" if name == "plain" else name, "squared", "mean", name == "plain")
    params, inputs, targets, initial = batch_of(model)
    batch = models.batched(model, BATCH)

    def total(params):
        each = jax.vmap(lambda x, y, h: loop_loss(model, params, x, y, None if own_initial else h), (1, 1, 0))
        return jnp.sum(each(inputs, targets, initial))

    loss, expected = jax.jit(jax.value_and_grad(total))(params)
    for route in ("bptt", "double_sum", "autodiff"):
        actual_loss, actual = jitted(route, batch, own_initial)(params, inputs, targets, initial)
        np.testing.assert_allclose(actual_loss, loss, rtol=1e-13)
        assert compare(expected, actual).relative < 1e-12, route


@pytest.mark.parametrize("options", [{"block": 1}, {"block": 3}, {"block": 4}, {"block": 99}, {"adjoint": "parallel"}],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "custom", "plain", "batch"])
def test_blocks_and_the_parallel_adjoint_change_nothing(name, options):
    model = model_of({"plain": "lstm", "batch": "gru"}.get(name, name), "squared", "mean", name == "plain")
    data = batch_of(model, 11) if name == "batch" else cases.instance(model, KEY, gain=1.5, length=11)
    model = models.batched(model, BATCH) if name == "batch" else model
    run = lambda route, **options: jax.jit(lambda *data: route(model, *data[:3], **options))(*data)  # noqa: E731
    loss, expected = run(gradients.autodiff)
    actual_loss, actual = run(gradients.bptt, **options)
    np.testing.assert_allclose(actual_loss, loss, rtol=1e-13)
    assert compare(expected, actual).relative < 1e-12
    if "adjoint" in options:
        sequential = run(gradients.adjoints)
        np.testing.assert_allclose(run(gradients.adjoints, **options), sequential, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("later, (jax.vmap(unit_maps)(blocks[0]), own), reverse=True", "later, (jax.vmap(unit_maps)(blocks[0]), own)"),
        ("jax.tree.map(jnp.add, own, _apply(maps, after, batch)), after", "own, after"),
        ("leaf[length - whole :]", "leaf[:whole]"),
        ("saved_head, head), reverse=True", "saved_head, head)"),
        ("start, size = index * block,", "start, size = 0 * index * block,"),
        ("(jax.tree.map(jnp.add, grads, block_grads), earlier), losses", "(block_grads, earlier), losses"),
        ("(jax.tree.map(jnp.add, grads, block_grads), earlier), losses",
         "(jax.tree.map(jnp.add, grads, block_grads), jax.tree.map(jnp.zeros_like, earlier)), losses"),
    ],
)  # fmt: skip
def test_a_broken_block_is_seen(old, new):
    model = model_of("lstm", "squared", "sum")
    data = cases.instance(model, KEY, gain=1.5, length=11)
    options = {"block": 3} if "earlier" in new or "head" in new or "start" in new else {"adjoint": "parallel"}
    run = lambda module: jax.jit(lambda *data: module.bptt(model, *data[:3], **options)[1])(*data)  # noqa: E731
    assert compare(run(gradients), run(mutate_package(gradients, old, new))).relative > 1e-3


def masked_step(params, state, x):
    """Two products with one weight, a weight made of others, one on the right, a weight used without a product."""
    w = params["w"] * jnp.tril(jnp.ones_like(params["w"])) + jnp.outer(params["u"], params["v"])
    a = w @ state["h"] + x @ params["m"] + w.T @ jnp.sin(state["h"]) * params["scale"]
    a = jax.nn.relu(a) + jax.lax.cond(x[0] > 0, lambda h: params["w"] @ h, lambda h: h, state["h"])
    h = jnp.tanh(a + jnp.diag(params["w"]) + params["w"][0] * state["n"])
    return {"h": h, "n": jax.nn.sigmoid(params["scale"]) * state["n"]}


@pytest.mark.parametrize("batch", [None, BATCH])
def test_products_found_in_a_step_are_differentiated_as_they_are(batch):
    shapes = {"w": (3, 3), "u": (3,), "v": (3,), "m": (2, 3), "scale": (), "unused": (4,)}

    def init(key):
        return {k: jax.random.normal(jax.random.fold_in(key, i), s) for i, (k, s) in enumerate(shapes.items())}

    cell = cells.from_step(masked_step, lambda params: {"h": jnp.sin(params["u"]), "n": jnp.ones(3)}, init=init)
    model = models.sequence_model(cell._replace(num_inputs=2), 4)
    params, inputs, targets, _ = batch_of(model)
    model = model if batch is None else models.batched(model, batch)
    data = (params, inputs, targets) if batch else (params, inputs[:, 0], targets[:, 0])
    form = deferred.read_step(model.step, params, model.initial_state(params), data[1][0])
    assert len(form.products) == 3  # not the one inside the cond
    _, expected = jax.jit(lambda *data: gradients.autodiff(model, *data))(*data)
    _, actual = jax.jit(lambda *data: gradients.bptt(model, *data, block=2))(*data)
    assert compare(expected, actual).relative < 1e-12


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"block": 0}, ValueError, "block: got 0, expected at least 1"),
        ({"block": 2.0}, TypeError, "block: got float, expected an int"),
        ({"adjoint": "fast"}, ValueError, "adjoint: got 'fast', expected one of"),
    ],
)
def test_options_not_as_stated_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        gradients.bptt(ELMAN, PARAMS, X, Y, **options)


def test_a_state_that_overflows_is_named_in_blocks_too():
    model = model_of("linear", "squared", "sum")
    params, inputs, targets, initial = cases.instance(model, KEY)
    params = params._replace(cell=params.cell._replace(w_hh=1e200 * jnp.eye(cases.N)))
    with pytest.raises(ValueError, match=r"states.*t = 2"):
        gradients.bptt(model, params, inputs, targets, initial=initial, block=2)


def test_bptt_is_differentiable_and_maps():
    model = model_of("lstm", "squared", "sum")
    params, inputs, targets, initial = cases.instance(model, KEY)

    def norm(route):
        grads = lambda params: route(model, params, inputs, targets, initial=initial)[1]  # noqa: E731
        return lambda params: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(grads(params)))

    expected = jax.jit(jax.grad(norm(gradients.autodiff)))(params)
    assert compare(expected, jax.jit(jax.grad(norm(gradients.bptt)))(params)).relative < 1e-12
    several = jax.vmap(lambda x: gradients.bptt(model, params, x, targets)[0])(jnp.stack((inputs, 2 * inputs)))
    np.testing.assert_allclose(several[1], gradients.bptt(model, params, 2 * inputs, targets)[0], rtol=1e-13)


ELMAN = model_of("elman", "squared", "sum")
PARAMS, X, Y, _ = cases.instance(ELMAN, KEY)


@pytest.mark.parametrize("route", ["autodiff", "adjoints", *HAND])
@pytest.mark.parametrize(
    ("inputs", "targets", "initial", "error", "message"),
    [
        (X, Y[:-1], None, ValueError, "targets: got 4 steps, expected 5"),
        (X, Y[:, :-1], None, ValueError, r"target: got shape \[3\], expected \[4\]"),
        (X, Y.astype(jnp.float32), None, TypeError, "target: got float32, expected float64"),
        (X, Y.at[1].set(jnp.nan), None, ValueError, "targets: got NaN or inf.*t = 2"),
        (X, Y, jnp.ones(9), ValueError, r"initial: got shape \[9\], expected \[3\]"),
        (X[:0], Y[:0], None, ValueError, "inputs: got T = 0"),
    ],
)
def test_bad_input_gets_one_line(route, inputs, targets, initial, error, message):
    with pytest.raises(error, match=message) as caught:
        getattr(gradients, route)(ELMAN, PARAMS, inputs, targets, initial=initial)
    assert "\n" not in str(caught.value)


def test_a_label_outside_is_named_by_its_step():
    model = model_of("gru", "cross_entropy", "sum")
    params, inputs, targets, _ = cases.instance(model, KEY, classes=True)
    for route in ("autodiff", *HAND):
        with pytest.raises(ValueError, match=r"losses: got NaN or inf.*t = 4"):
            getattr(gradients, route)(model, params, inputs, targets.at[3].set(cases.O))


def test_a_cell_is_free_to_have_no_gradient_in_a_leaf():
    cell = cells.from_step(lambda p, s, x: s * p["used"], lambda p: jnp.ones(2), init=None)
    model = models.Model(lambda key: None, cell.initial_state, cell.step, lambda p, s: s, models.squared_error)
    params = {"used": jnp.array(0.5), "unused": jnp.ones(3)}
    for route in (gradients.bptt, gradients.double_sum, gradients.forward_sensitivity):
        model_ = model._replace(init=cell.init)
        _, grads = route(model_, params, jnp.zeros((4, 0)), jnp.zeros((4, 2)))
        np.testing.assert_array_equal(grads["unused"], 0)

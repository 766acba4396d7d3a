"""λ clipped at every step: what autodiff gives of a loop whose carried state has a clip as its backward rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import assessment, cells, gradients, models, truncation
from jaxbptt.comparison import compare
from jaxbptt.gradients import clipping
from tests import cases
from tests.gradients.problems import BATCH, KEY, batch_of, model_of
from tests.mutation import mutate_package

LENGTH, BOUND = 6, 0.05
KINDS = [("norm", "carried"), ("value", "carried"), ("norm", "whole"), ("value", "whole")]


def clip(tree, bound, by_value):
    """A state's cotangent, by entry or by norm."""
    flat, unravel = ravel_pytree(tree)
    norm = jnp.linalg.norm(flat)
    shorter = flat * jnp.minimum(1, bound / jnp.where(norm > 0, norm, 1))
    return unravel(jnp.where(by_value, jnp.clip(flat, -bound, bound), shorter))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def hooked(batched, state, options):
    return state


def pull_hooked(batched, options, cotangent):
    bound, by_value, active = options
    one = lambda tree: jax.tree.map(lambda a, b: jnp.where(active, a, b), clip(tree, bound, by_value), tree)
    return (jax.vmap(one) if batched else one)(cotangent), jax.tree.map(jnp.zeros_like, options)


hooked.defvjp(lambda batched, state, options: (state, options), pull_hooked)


@functools.cache
def loop(model):
    """(params, inputs, targets, h_0, (c, by value?, of whole λ?)) -> (C, what the hooks leave of dC/dθ)."""

    def run(params, inputs, targets, initial, options):
        bound, by_value, whole = options

        def total(params):
            state = model.initial_state(params) if initial is None else initial
            loss = 0.0
            for x, target in zip(inputs, targets, strict=True):
                previous = state
                state = hooked(model.batch is not None, state, (bound, by_value, 1.0 - whole))
                state = model.step(params, state, x)
                state = hooked(model.batch is not None, state, (bound, by_value, whole))
                loss = loss + model.loss(models.read(model, params, state, x, previous), target)
            return loss / len(inputs) if model.reduction == "mean" else loss

        return jax.value_and_grad(total)(params)

    return jax.jit(run)


@functools.cache
def problem(name):
    """(model, (params, inputs, targets, h_0)); "custom": known by its step, h_0 a function of θ."""
    kind = {"batch": "gru", "custom batch": "custom", "previous": "elman"}.get(name, name)
    one = model = model_of(kind, "squared", "mean")
    if "batch" in name:
        return models.batched(model, BATCH), batch_of(model, LENGTH)
    data = cases.instance(model, KEY, gain=1.5, length=LENGTH)
    if name == "previous":
        model = models.make_model(
            model.step,
            model.initial_state,
            lambda params, state, x, before: one.readout(params, jnp.sin(state) * before),
            model.loss,
        )
    return model, (*data[:3], None) if name == "custom" else data


def given(name, by, of, module=gradients, route="bptt", **options):
    model, _ = problem(name)
    function = getattr(module, route)
    return jax.jit(
        lambda *data, bound: function(
            model, *data[:3], initial=data[3], clip_adjoint=bound, clip_by=by, clip_of=of, **options
        )
    )


def reference(name, by, of, bound=BOUND):
    model, data = problem(name)
    return loop(model)(*data, (bound, float(by == "value"), float(of == "whole")))


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("name", "kinds", "options"),
    [
        ("lstm", KINDS, {}),
        ("elman", KINDS[:1], {"block": 4}),
        ("gru", KINDS[:1], {"memory": 1}),
        ("plain", KINDS[:2], {}),
        ("custom", KINDS, {}),
        ("custom", KINDS[2:3], {"block": 4}),
        ("previous", KINDS[:1] + KINDS[3:], {"block": 4}),
        ("batch", KINDS[::2], {}),
        ("custom batch", KINDS[::2], {"block": 4}),
    ],
)
def test_clipping_is_that_of_a_hook_on_the_state(name, kinds, options):
    model, data = problem(name)
    exact = jax.jit(lambda *data: gradients.bptt(model, *data[:3], initial=data[3]))(*data)[1]
    for by, of in kinds:
        loss, expected = reference(name, by, of)
        actual_loss, actual = given(name, by, of, **options)(*data, bound=BOUND)
        np.testing.assert_allclose(actual_loss, loss, rtol=1e-13)
        assert compare(expected, actual).relative < 1e-12, (by, of)
        assert compare(exact, actual).relative > 0.1, (by, of)  # far from the gradient


def test_a_hook_of_pytorch_is_a_clip_of_the_whole():
    torch = pytest.importorskip("torch")
    model, (params, inputs, targets, _) = problem("gru")
    tensor = lambda leaf: torch.tensor(np.asarray(leaf))
    theta, cell = params.cell, torch.nn.GRUCell(cases.M, cases.N).double()
    leaves = {"weight_ih": theta.w_hx, "weight_hh": theta.w_hh, "bias_ih": theta.b_x, "bias_hh": theta.b_h}
    cell.load_state_dict({name: tensor(leaf) for name, leaf in leaves.items()})
    h, total = torch.zeros(1, cases.N, dtype=torch.float64), 0.0
    for x, y in zip(inputs, targets, strict=True):
        h = cell(tensor(x)[None], h)
        h.register_hook(lambda gradient: gradient.clamp(-BOUND, BOUND))
        output = tensor(params.readout.w_yh) @ h[0] + tensor(params.readout.b_y)
        total = total + ((output - tensor(y)) ** 2).sum() / 2 / LENGTH
    total.backward()
    expected = [getattr(cell, name).grad.numpy() for name in leaves]
    actual = gradients.bptt(model, params, inputs, targets, clip_adjoint=BOUND, clip_by="value", clip_of="whole")[1]
    for theirs, ours in zip(expected, jax.tree.leaves(actual.cell), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-14)


MUTANTS = [
    ("lstm", KINDS[0], "return clip.of_carried(earlier), kept", "return earlier, kept"),
    ("lstm", KINDS[2], "pull(residuals, clip.of_whole(cotangent))", "pull(residuals, cotangent)"),
    ("lstm", KINDS[0], "square = sum(jnp.sum(unit**2) for", "square = 0.5 * sum(jnp.sum(unit**2) for"),
    ("lstm", KINDS[1], "jnp.clip(leaf, -bound, bound)", "jnp.minimum(leaf, bound)"),
    ("batch", KINDS[0], "clip(cotangent) if self.batch is None else jax.vmap(clip)(cotangent)", "clip(cotangent)"),
    ("custom", KINDS[0], "found.state if clip is None else clip.of_carried(found.state)", "found.state"),
    ("custom", KINDS[2], "adjoint if clip is None else clip.of_whole(adjoint)", "adjoint"),
]


@pytest.mark.sweep
@pytest.mark.parametrize(("name", "kind", "old", "new"), MUTANTS)
def test_a_broken_clip_is_seen(name, kind, old, new):
    _, expected = reference(name, *kind)
    broken = given(name, *kind, mutate_package(gradients, old, new))(*problem(name)[1], bound=BOUND)[1]
    assert compare(expected, broken).relative > 1e-6


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["lstm", "custom", "batch"])
def test_no_bound_and_a_bound_of_zero(name):
    """inf: the gradient, bit for bit where the bound is static. 0: windows of one step, with h_0 a constant."""
    model, (params, inputs, targets, initial) = problem(name)
    start = model.initial_state(params) if initial is None else initial
    data = params, inputs, targets, initial
    exact = jax.jit(lambda *data: gradients.bptt(model, *data[:3], initial=data[3]))(*data)
    unclipped = jax.jit(lambda *data: gradients.bptt(model, *data[:3], initial=data[3], clip_adjoint=jnp.inf))(*data)
    assert jax.tree.all(jax.tree.map(np.array_equal, exact, unclipped))
    short = jax.jit(lambda *data: truncation.windowed(model, *data[:3], initial=data[3], window=1))
    for by in ("norm", "value"):
        clipped = given(name, by, "carried")
        assert compare(exact[1], clipped(*data, bound=jnp.inf)[1]).relative < 1e-14
        assert compare(short(params, inputs, targets, start)[1], clipped(*data, bound=0.0)[1]).relative < 1e-12


@pytest.mark.parametrize(("by", "held"), [("norm", [0.6, 0.8]), ("value", [1.0, 1.0])])
def test_what_would_explode_is_held(by, held):
    """λ grows tenfold a step, 200 times; clipped, it stays. The squares of what is clipped need not be floats."""
    model = models.make_model(lambda w, h, x: w @ h, lambda w: w[0], lambda w, h: h, models.squared_error)
    w, inputs, targets = 10 * jnp.eye(2), jnp.zeros((200, 1)), jnp.zeros((200, 2))
    initial = 1e-200 * jnp.array([3.0, 4.0])  # h_200 = (3, 4)
    found = gradients.adjoints(model, w, inputs, targets, initial=initial, clip_adjoint=1.0, clip_by=by)
    np.testing.assert_allclose(found[:150], np.tile(held, (150, 1)), rtol=1e-13)
    at_once = {"norm": clipping.clip_by_norm, "value": clipping.clip_by_value}[by]
    np.testing.assert_allclose(at_once(1e300 * jnp.array([3.0, 4.0]), 1.0), held, rtol=1e-14)
    assert np.isnan(at_once(jnp.array([jnp.inf, 1.0]), 1.0)).any()
    assert np.array_equal(at_once(jnp.zeros(2), 0.0), jnp.zeros(2))


def test_the_parts_of_a_pytree_are_one_vector():
    parts = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    assert jax.tree.map(lambda leaf: leaf.item(), clipping.clip_by_norm(parts, 1.0)) == pytest.approx(
        {"a": 0.6, "b": 0.8}, rel=1e-15
    )


def test_many_bounds_at_once_and_their_bias():
    """One program for all bounds; the bias falls to zero, the loss and the readout's part are not touched."""
    model, data = problem("lstm")
    bounds = jnp.array([0.0, 0.02, 0.1, jnp.inf])

    def assess(bound):
        estimator = functools.partial(gradients.bptt, clip_adjoint=bound)
        found = assessment.assess(model, estimator, *data[:3], initial=data[3])
        return found.whole.bias, found.by_leaf.readout.w_yh.bias

    bias, of_readout = jax.jit(jax.vmap(assess))(bounds)
    assert np.all(np.diff(bias) < 0)
    assert bias[0] > 0.1
    assert bias[-1] < 1e-15
    np.testing.assert_allclose(of_readout, 0, atol=1e-14)
    _, grads = given("lstm", "norm", "carried")(*data, bound=-1.0)  # traced: it cannot be refused
    assert np.isnan(ravel_pytree(grads.cell)[0]).any()


@pytest.mark.parametrize("by", ["norm", "value"])
def test_what_a_clip_costs(by):
    """A few operations an entry of the state and step, beside the products with N² weights."""
    model = models.sequence_model(cells.elman(4, 64), 1)
    data = model.init(KEY), jnp.zeros((50, 4)), jnp.zeros((50, 1))
    cost = lambda **options: assessment.cost_per_step(model, functools.partial(gradients.bptt, **options), *data).flops
    assert 2 * 64 < cost(clip_adjoint=1.0, clip_by=by) - cost() < 7 * 64


def test_both_directions_are_clipped_each_in_its_own_time():
    """With a readout of one direction alone, it is the clip of that direction's model."""
    cell = cells.elman(2, 3)
    loss, read = models.squared_error, lambda params, forward, backward: params.readout @ forward
    model = models.bidirectional([(cell, cell)], read, loss)
    alone = models.make_model(
        lambda p, h, x: cell.step(p[0], h, x), lambda p: cell.initial_state(p[0]), lambda p, h: p[1] @ h, loss
    )
    keys = jax.random.split(KEY, 4)
    own, other, read_by = cell.init(keys[0]), cell.init(keys[1]), jax.random.normal(keys[2], (1, 3))
    inputs, targets = jax.random.normal(keys[3], (LENGTH, 2)), jnp.ones((LENGTH, 1))
    params = models.BidirectionalParams(((own, other),), read_by)
    both = gradients.bptt(model, params, inputs, targets, clip_adjoint=BOUND)[1]
    expected = gradients.bptt(alone, (own, read_by), inputs, targets, clip_adjoint=BOUND)[1]
    assert compare(expected, (both.layers[0][0], both.readout)).relative < 1e-12
    assert compare(gradients.bptt(model, params, inputs, targets)[1], both).relative > 0.1


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"clip_adjoint": -1.0}, ValueError, r"clip_adjoint: got -1.0, expected a number ≥ 0"),
        ({"clip_adjoint": float("nan")}, ValueError, r"clip_adjoint: got nan"),
        ({"clip_adjoint": jnp.ones(2)}, ValueError, r"clip_adjoint: got shape \[2\], expected a scalar"),
        ({"clip_adjoint": True}, TypeError, r"clip_adjoint: got bool, expected a number"),
        ({"clip_adjoint": "1"}, TypeError, r"clip_adjoint: got str, expected a number"),
        (
            {"clip_adjoint": 1.0, "clip_by": "entry"},
            ValueError,
            r"clip_by: got 'entry', expected one of 'norm'",
        ),
        ({"clip_adjoint": 1.0, "clip_of": "h"}, ValueError, r"clip_of: got 'h', expected one of 'carried', 'whole'"),
        ({"clip_adjoint": 1.0, "adjoint": "parallel"}, ValueError, r"adjoint: got 'parallel' beside clip_adjoint"),
    ],
)
@pytest.mark.parametrize("route", [gradients.bptt, gradients.adjoints])
def test_bad_options_are_refused_in_one_line(route, options, error, said):
    model, data = problem("lstm")
    with pytest.raises(error, match=said) as raised:
        route(model, *data[:3], initial=data[3], **options)
    assert "\n" not in str(raised.value)

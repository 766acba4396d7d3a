import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import cells, gradients, models, online
from jaxbptt.comparison import compare
from jaxbptt.online import exact, kronecker, patterns, preactivations, rank_one, rule, sparse
from jaxbptt.trajectories import unroll
from tests import cases
from tests.mutation import mutate

KEY = jax.random.key(11)


@functools.cache
def model_of(name):
    if name == "shared":
        return cases.shared_model()._replace(reduction="sum")
    if name == "moving start":  # a factored derivation, and an h_0 that depends on params
        return model_of("elman")._replace(initial_state=lambda params: jnp.sin(params.cell.b_h))
    return models.sequence_model(cases.CELLS[name], cases.O)


@functools.cache
def instance_of(name, gain=1.2, length=cases.T):
    return cases.instance(
        model_of(name), KEY, gain=gain, length=length, num_outputs=cases.N if name == "shared" else cases.O
    )


def online_of(rule_, model, data, *, own=True, key=None):
    """`run`, compiled, at params that stay concrete: a sparse rule reads their zeros."""
    params, inputs, targets, initial = data
    initial = None if own else initial
    return jax.jit(lambda x, y: online.run(rule_, model, params, x, y, key=key, initial=initial))(inputs, targets)


def exact_of(model, data, *, own=True):
    params, inputs, targets, initial = data
    initial = None if own else initial
    return jax.jit(lambda p, x, y: gradients.bptt(model, p, x, y, initial=initial))(params, inputs, targets)


@functools.cache
def truth_of(name, own=True):
    return exact_of(model_of(name), instance_of(name), own=own)


# --- exact


@pytest.mark.parametrize(
    ("name", "own"),
    [*((name, True) for name in cases.CELLS), ("shared", True), ("moving start", True), ("moving start", False),
     ("custom", False), ("lstm", False)],
)  # fmt: skip
def test_rtrl_is_bptt(name, own):
    model, data = model_of(name), instance_of(name)
    expected_loss, expected = truth_of(name, own)
    loss, actual = online_of(online.rtrl(), model, data, own=own)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-13)
    assert compare(expected, actual).relative < 1e-12


@pytest.mark.parametrize("name", ["lstm", "custom"])
def test_windows_of_rtrl_are_exact_and_without_memory_they_are_not(name):
    """Each window's gradient is that of its own losses alone; with Â reset at its start only the first is.

    The custom cell's first is not either: its Â_0 = ∂h_0/∂θ is lost.
    """
    model, (params, inputs, targets, _) = model_of(name), instance_of(name, length=6)
    rule_ = online.rtrl()
    windows = jax.tree.map(lambda leaf: leaf.reshape(3, 2, *leaf.shape[1:]), (inputs, targets))

    def losses(params):
        states = unroll(model, params, inputs).states
        return models.step_losses(model, params, states, targets).reshape(3, 2).sum(axis=1)

    @jax.jit
    def summed(state, window):
        def body(carry, step):
            state, total = carry
            state, _, grads = rule_.update(state, params, *step)
            return (state, jax.tree.map(jnp.add, total, grads)), None

        return jax.lax.scan(body, (state, jax.tree.map(jnp.zeros_like, params)), window)[0]

    expected, kept = jax.jit(jax.jacrev(losses))(params), rule_.init(model, params, KEY)
    reset = kept
    for i in range(3):
        pick = lambda leaf, i=i: leaf[i]  # noqa: E731
        reset = dataclasses.replace(reset, sensitivity=jnp.zeros_like(reset.sensitivity))
        (kept, right), (reset, wrong) = (summed(state, jax.tree.map(pick, windows)) for state in (kept, reset))
        assert compare(jax.tree.map(pick, expected), right).relative < 1e-12
        assert (compare(jax.tree.map(pick, expected), wrong).relative > 1e-2) == (i > 0 or name == "custom")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("elman", "left[np.array(chosen)][:, None] * v[None, :]", "0 * left[np.array(chosen)][:, None] * v[None, :]"),
        ("elman", ".state_jacobian(params, hidden, x) @", ".state_jacobian(params, hidden, x).T @"),
        ("gru", "start += len(block.rows) * v.size", "start += 0"),
        ("lstm", "position[z] * v.size", "position[z - z % 2] * v.size"),
        ("custom", "jacobian @ sensitivity + direct", "jacobian @ (sensitivity + direct)"),
        ("custom", "return jax.jacrev(lambda theta:", "return 0 * jax.jacrev(lambda theta:"),
    ],
)
def test_a_broken_rtrl_is_seen(name, old, new):
    model, data = model_of(name), instance_of(name)
    _, expected = truth_of(name)
    _, broken = online_of(mutate(exact, old, new).rtrl(), model, data)
    assert compare(expected, broken).relative > 1e-3


def test_structure_is_not_read_from_params():
    """Units that are dead at these params, and weights that are zero, come alive later with their direct term."""
    cell = cells.elman(cases.M, cases.N, activation=jax.nn.relu, recurrent=cells.identity(1.0))
    model = models.sequence_model(cell, cases.O)
    params, inputs, targets, _ = cases.instance(model, KEY, length=6)
    dead = params._replace(cell=params.cell._replace(b_h=params.cell.b_h - 50.0))
    state = online.rtrl().init(model, dead, KEY)
    total = jax.tree.map(jnp.zeros_like, params)
    update = jax.jit(online.rtrl().update)
    for x, y in zip(inputs, targets, strict=True):
        state, _, grads = update(state, params, x, y)
        total = jax.tree.map(jnp.add, total, grads)
    assert compare(gradients.bptt(model, params, inputs, targets)[1], total).relative < 1e-12


# --- which pre-activations a cell has


@pytest.mark.parametrize(("name", "rows", "colours"), [("elman", 3, 1), ("lstm", 12, 2), ("gru", 12, 1)])
def test_preactivations_of_the_built_in_cells(name, rows, colours):
    params, inputs, *_ = instance_of(name)
    form = preactivations.find(model_of(name), params, inputs[0])
    assert (form.num_rows, form.lengths, max(form.colours) + 1) == (rows, (cases.M, cases.N, 1), colours)


def test_models_without_preactivations_say_why():
    elman, x = model_of("elman"), jnp.zeros(cases.M)
    params = instance_of("elman")[0]
    pullback = elman.derivation.pullback

    def find(**changes):
        return preactivations.find(elman._replace(derivation=elman.derivation._replace(**changes)), params, x)

    assert find(pullback=lambda *a: pullback(*a)) == "this cell's pullback is not factored"
    swapped = lambda *a: jax.tree.map(lambda o: o, pullback.params(*a))._replace(  # noqa: E731
        cell=pullback.params(*a).cell._replace(
            w_hh=type(pullback.params(*a).cell.w_hh)(*pullback.params(*a).cell.w_hh[::-1])
        )
    )
    assert "right factor depends" in find(pullback=pullback._replace(params=swapped))
    doubled = lambda *a: jax.tree.map(lambda leaf: 2 * leaf, pullback.params(*a))  # noqa: E731
    assert "are not those of its step" in find(pullback=pullback._replace(params=doubled))
    assert "known by its step alone" in preactivations.find(elman._replace(derivation=None), params, x)


# --- sparse


def dense_masked(model, data, kept, transition):
    """Σ_t g_t of A_t = kept ⊙ (K_t A_{t−1} + D_t), A_0 = ∂h_0/∂θ, on dense arrays by autodiff and plain loops."""
    params, inputs, targets, _ = data
    theta, unravel = ravel_pytree(params)
    state = model.initial_state(params)
    flat, unravel_state = ravel_pytree(state)
    flatten = lambda tree: ravel_pytree(tree)[0]  # noqa: E731
    sensitivity = jax.jacfwd(lambda theta: flatten(model.initial_state(unravel(theta))))(theta)

    @jax.jit
    def advance(flat, sensitivity, x, y):
        state = unravel_state(flat)
        direct = jax.jacfwd(lambda theta: flatten(model.step(unravel(theta), state, x)))(theta)
        sensitivity = kept * (transition(params, state, x) @ sensitivity + direct)
        state = model.step(params, state, x)
        loss = lambda theta, h: model.loss(model.readout(unravel(theta), unravel_state(h)), y)  # noqa: E731
        own, local = jax.grad(loss, argnums=(0, 1))(theta, flatten(state))
        return flatten(state), sensitivity, own + local @ sensitivity

    total = jnp.zeros_like(theta)
    for x, y in zip(inputs, targets, strict=True):
        flat, sensitivity, grads = advance(flat, sensitivity, x, y)
        total = total + grads
    return unravel(total)


def partials(model):
    """(∂⁺h/∂⁺h_{t−1}, ∂⁺h/∂⁺θ, ∂h_0/∂θ) of a model by autodiff, dense."""
    flatten = lambda tree: ravel_pytree(tree)[0]  # noqa: E731

    def jacobian(params, state, x):
        flat, unravel = ravel_pytree(state)
        return jax.jacfwd(lambda h: flatten(model.step(params, unravel(h), x)))(flat)

    def direct(params, state, x):
        theta, unravel = ravel_pytree(params)
        return jax.jacfwd(lambda theta: flatten(model.step(unravel(theta), state, x)))(theta)

    def start(params):
        theta, unravel = ravel_pytree(params)
        return jax.jacfwd(lambda theta: flatten(model.initial_state(unravel(theta))))(theta)

    return jacobian, direct, start


@pytest.mark.parametrize(
    ("name", "order"), [("elman", 1), ("elman", 2), ("lstm", 1), ("gru", 1), ("custom", 1), ("custom", 2)]
)
def test_snap_against_its_definition(name, order):
    model, data = model_of(name), instance_of(name)
    params, inputs, _, initial = data
    jacobian, direct, start = partials(model)
    kept = np.asarray((direct(params, initial, inputs[0]) != 0) | (start(params) != 0))
    for _ in range(order - 1):
        kept = kept | ((np.asarray(jacobian(params, initial, inputs[0])) != 0) @ kept)
    expected = dense_masked(model, data, kept.astype(float), jacobian)
    _, actual = online_of(online.snap(order), model, data)
    assert compare(expected, actual).relative < 1e-12
    _, truth = truth_of(name)
    assert (compare(truth, actual).relative < 1e-12) == (order == 2), "dense: SnAp-2 is exact, SnAp-1 is not"
    assert order == 2 or compare(truth, actual).relative > 0.05


def ring_model(kind, size=5):
    """A directed ring (diameter size − 1): by zeros in w_hh, or by a mask in the step of a cell without derivation."""
    mask = jnp.roll(jnp.eye(size), 1, axis=0)
    ring = lambda key, shape, dtype: mask.astype(dtype) * (1.0 + jax.random.uniform(key, shape, dtype))  # noqa: E731
    cell = cells.elman(1, size, recurrent=ring)
    if kind == "mask":
        dense = cells.elman(1, size, recurrent=cells.gaussian(3.0))
        step = lambda p, h, x: dense.step(p._replace(w_hh=mask * p.w_hh), h, x)  # noqa: E731
        cell = cells.from_step(step, dense.initial_state, init=dense.init, num_inputs=1)
    return models.sequence_model(cell, 2)


@pytest.mark.parametrize(("kind", "orders", "columns"), [("zeros", (1, 4, 5), 7), ("mask", (4, 5), 3)])
def test_snap_n_is_exact_from_the_diameter_plus_one_on(kind, orders, columns):
    model = ring_model(kind)
    params = model.init(KEY)
    data = (params, jax.random.normal(KEY, (8, 1)), jax.random.normal(KEY, (8, 2)), None)
    _, truth = exact_of(model, data)
    for order in orders:
        error = compare(truth, online_of(online.snap(order), model, data)[1]).relative
        assert error < 1e-12 if order >= 5 else error > 1e-6, order
        # each unit's own weights (masked: one recurrent, one input, one bias), kept for `order` units down the ring
        assert online.snap(order).cost(model, params).state_floats == 5 + 5 * columns * min(order, 5)


def test_a_wrong_reach_is_seen():
    """One hop too few in the pattern: SnAp-2 of a dense net is no longer exact."""
    model, data = model_of("elman"), instance_of("elman")
    broken = mutate(sparse, "_jacobian, order - 1", "_jacobian, order - 2")
    assert compare(truth_of("elman")[1], online_of(broken.snap(2), model, data)[1]).relative > 1e-2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("jnp.zeros_like(leaf) if leaf.ndim > 1 else leaf", "leaf"),  # the recurrent weights left in
        ("transition[rows[:, :, None], rows[:, None, :]]", "transition[rows[:, None, :], rows[:, :, None]]"),
        ("colours[rows][:, :, None]", "0 * colours[rows][:, :, None]"),
    ],
)
def test_a_broken_trace_is_seen(old, new):
    model, data = model_of("lstm"), instance_of("lstm")
    expected = dense_masked(model, data, 1.0, published_trace("lstm"))
    assert compare(expected, online_of(mutate(sparse, old, new).rflo(), model, data)[1]).relative > 1e-2


def test_reach_and_groups_on_a_chain():
    chain = np.eye(4, k=-1, dtype=bool)  # 0 → 1 → 2 → 3
    direct = np.repeat(np.eye(4, dtype=bool), 2, axis=1)
    for steps in range(5):
        expected = sum(np.linalg.matrix_power(chain.astype(int), k) for k in range(steps + 1)) > 0
        np.testing.assert_array_equal(patterns.reach(chain, direct, steps), np.repeat(expected, 2, axis=1))
    groups = patterns.group_columns(patterns.reach(chain, direct, 1))
    np.testing.assert_array_equal(np.sort(groups.columns, axis=None), np.arange(8))
    assert sorted(map(tuple, groups.rows)) == [(0, 1), (1, 2), (2, 3), (3, -1)]


def published_trace(name):
    """K_t by hand: the paths past the recurrent weights."""
    if name == "lstm":

        def carry(params, state, x):
            through = lambda c: ravel_pytree(CELL.step(params.cell, state._replace(cell=c), x))[0]  # noqa: E731
            return jnp.concatenate((jax.jacfwd(through)(state.cell), jnp.zeros((2 * cases.N, cases.N))), axis=1)

        CELL = cases.CELLS["lstm"]
        return carry
    if name == "gru":

        def update_gate(params, state, x):
            p, part = params.cell, slice(cases.N, 2 * cases.N)
            z = jax.nn.sigmoid((p.w_hx @ x + p.b_x + p.w_hh @ state + p.b_h)[part])
            return jnp.diag(z)

        return update_gate
    return lambda params, state, x: (0.8 if name == "leaky" else 0.0) * jnp.eye(cases.N)


def leaky_model():
    step = lambda p, h, x: 0.8 * h + 0.2 * jnp.tanh(p.w_hx @ x + p.w_hh @ h + p.b_h)  # noqa: E731
    elman = cases.CELLS["elman"]
    cell = cells.from_step(step, elman.initial_state, init=elman.init, num_inputs=cases.M)
    return models.sequence_model(cell, cases.O)


@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "leaky"])
def test_rflo_against_its_definition(name):
    leaky = name == "leaky"
    model = leaky_model() if leaky else model_of(name)
    data = cases.instance(model, KEY, gain=1.2)
    expected = dense_masked(model, data, 1.0, published_trace(name))
    _, actual = online_of(online.rflo(leak=0.8 if leaky else None), model, data)
    assert compare(expected, actual).relative < 1e-12
    assert compare(exact_of(model, data)[1], actual).relative > 0.02


# --- stochastic


def small_model(name):
    """N = 2 entries of state: every sign pattern can be tried."""
    make, size = {"elman": (cells.elman, 2), "lstm": (cells.lstm, 1), "gru": (cells.gru, 2)}[name.split()[0]]
    model = models.sequence_model(make(1, size), 2)
    if "start" in name:
        model = model._replace(initial_state=lambda params: jnp.sin(params.cell.b_h))
    return model


def mean_over_all_signs(module, name):
    """(exact dC/dθ, the mean of the estimate over every sign pattern), T = 4."""
    model = small_model(name)
    params, inputs, targets, _ = cases.instance(model, KEY, length=4, num_outputs=2)
    plan = module._plan(model, params, inputs[0], False)
    width = module.METHOD.num_signs(plan)
    steps = 5 if "start" in name else 4
    every = np.array(list(itertools.product((-1.0, 1.0), repeat=width * steps))).reshape(-1, steps, width)
    if steps == 4:  # nothing is drawn for an h_0 that does not depend on params: any signs do
        every = np.concatenate((np.ones((len(every), 1, width)), every), axis=1)

    def estimate(signs):
        def body(state, step):
            state, _, grads = rule.update_with(state, params, *step)
            return state, grads

        state = rule.start_with(module.METHOD, plan, model, params, signs[0])
        grads = jax.lax.scan(body, state, (inputs, targets, signs[1:]))[1]
        return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), grads)

    means = jax.jit(lambda every: jax.tree.map(lambda g: jnp.mean(g, axis=0), jax.vmap(estimate)(every)))(every)
    return gradients.bptt(model, params, inputs, targets)[1], means


@pytest.mark.parametrize(
    ("module", "name"),
    [(rank_one, "elman"), (rank_one, "elman start"), (rank_one, "lstm"), (kronecker, "elman"), (kronecker, "lstm"),
     (kronecker, "gru")],
)  # fmt: skip
def test_unbiased_over_all_signs(module, name):
    assert compare(*mean_over_all_signs(module, name)).relative < 1e-12


@pytest.mark.parametrize(
    ("module", "name", "old"),
    [
        (rank_one, "elman", "rho_0 * carried"),
        (rank_one, "elman", "rho_1 * signs"),
        (rank_one, "elman", "inverse_0 * sensitivity.theta"),
        (rank_one, "elman", "inverse_1 * direct"),
        (rank_one, "elman start", "inverse * theta"),
        (kronecker, "elman", "p_1 * sensitivity.vector"),
        (kronecker, "elman", "p_2 * v"),
        (kronecker, "elman", "inverse_1 * carried"),
        (kronecker, "elman", "inverse_2 * direct"),
    ],
)
def test_a_slip_of_five_percent_is_biased(module, name, old):
    expected, mean = mean_over_all_signs(mutate(module, old, "1.05 * " + old), name)
    assert compare(expected, mean).relative > 1e-3


@pytest.mark.parametrize(("make", "name"), [("uoro", "elman"), ("kf_rtrl", "elman"), ("kf_rtrl", "gru")])
def test_z_scores_over_ten_thousand_keys(make, name):
    """s = ⟨ĝ, g⟩/‖g‖² per leaf has mean one. Power: a bias of 20 % would stand at 5 standard errors or more."""
    model, count = model_of(name), 10_000
    params, inputs, targets, _ = instance_of(name, gain=0.7)
    _, truth = gradients.bptt(model, params, inputs, targets)
    rule_ = getattr(online, make)()
    estimate = jax.jit(jax.vmap(lambda key: online.run(rule_, model, params, inputs, targets, key=key)[1]))
    for leaf, expected in zip(
        *map(jax.tree.leaves, (estimate(jax.random.split(KEY, count)).cell, truth.cell)), strict=True
    ):
        scores = np.asarray(leaf).reshape(count, -1) @ np.ravel(expected) / np.sum(np.square(expected))
        error = np.std(scores, ddof=1) / count**0.5
        assert abs(scores.mean() - 1) < 4 * error
        assert 0.2 / error > 5
        assert np.std(scores) > 1e-3, "a rule that draws must spread"


# --- every rule


RULES = {
    "rtrl": online.rtrl,
    "snap": lambda: online.snap(1),
    "uoro": online.uoro,
    "kf_rtrl": online.kf_rtrl,
    "rflo": online.rflo,
}


@pytest.mark.parametrize(("make", "dtype"), [("rtrl", jnp.float64), *((make, jnp.float32) for make in RULES)])
def test_online_training_in_a_scan(make, dtype):
    """init and update as written, beside optax.sgd, in one scan, traced once: it learns, in the dtype that came."""
    model = model_of("lstm")
    params, inputs, targets, _ = jax.tree.map(lambda leaf: leaf.astype(dtype), instance_of("lstm"))
    rule_, optimizer, traces = RULES[make](), optax.sgd(0.05), []

    def body(carry, step):
        traces.append(1)
        state, params, memory = carry
        state, loss, grads = rule_.update(state, params, *step)
        updates, memory = optimizer.update(grads, memory, params)
        return (state, optax.apply_updates(params, updates), memory), loss

    start = (rule_.init(model, params, KEY), params, optimizer.init(params))
    train = jax.jit(lambda start, inputs, targets: jax.lax.scan(body, start, (inputs, targets)))
    (state, moved, _), losses = train(start, inputs, targets)
    before = len(traces)
    again = (RULES[make]().init(model, moved, KEY), moved, optimizer.init(params))
    train(again, inputs, targets)
    assert len(traces) == before, "a state made anew must not trace anew"
    assert {leaf.dtype for leaf in jax.tree.leaves((state.hidden, state.sensitivity, moved, losses))} == {
        jnp.dtype(dtype)
    }
    assert np.isfinite(losses).all()
    assert compare(params, moved).relative > 1e-4


def test_a_scan_is_its_updates_one_by_one():
    """The key moves with the state: `run` draws what single updates draw, and another key draws otherwise."""
    model, (params, inputs, targets, _) = model_of("elman"), instance_of("elman")
    rule_ = online.uoro()
    whole = jax.jit(lambda key: online.run(rule_, model, params, inputs, targets, key=key)[1])
    state, total, update = rule_.init(model, params, KEY), jax.tree.map(jnp.zeros_like, params), jax.jit(rule_.update)
    for x, y in zip(inputs, targets, strict=True):
        state, _, grads = update(state, params, x, y)
        total = jax.tree.map(jnp.add, total, grads)
    assert compare(total, whole(KEY)).relative < 1e-12
    assert compare(total, whole(jax.random.key(0))).relative > 1e-2


@pytest.mark.parametrize("make", RULES)
def test_vmap_nan_and_cost(make):
    model, rule_ = model_of("gru"), RULES[make]()
    params, inputs, targets, _ = instance_of("gru")
    call = jax.jit(jax.vmap(lambda x: online.run(rule_, model, params, x, targets, key=KEY)))
    sequences = jnp.stack((inputs, inputs[::-1], inputs.at[1, 0].set(jnp.nan)))
    (losses, grads), (again, swapped) = call(sequences), call(sequences[::-1])
    np.testing.assert_array_equal(np.isnan(losses), [False, False, True])
    np.testing.assert_allclose(losses, again[::-1], rtol=1e-12)
    for leaf, other in zip(*map(jax.tree.leaves, (grads, swapped)), strict=True):
        np.testing.assert_allclose(leaf[:2], other[:0:-1], rtol=1e-9, atol=1e-12)
        assert np.isnan(leaf[2]).all(), "a bad number is bad in every gradient"
    state = rule_.init(model, params, KEY)
    floats = sum(leaf.size for leaf in jax.tree.leaves((state.hidden, state.sensitivity)))
    cost = rule_.cost(model, params)
    h, m = cases.N, cases.M
    entries = {"rtrl": h * (3 * h * (m + h) + 4 * h), "uoro": h + 3 * h * (m + h + 2),
               "kf_rtrl": 4 * h * h + m + h + 1, "snap": 3 * h * (m + h + 2), "rflo": 3 * h * (m + h + 2)}  # fmt: skip
    assert cost.state_floats == floats == entries[make] + h
    assert cost.flops > 0


def test_stale_sensitivities_cost_what_the_params_move():
    """RTRL against a replay at the params of each time: zero for fixed params, of first order in the learning rate."""
    model, data = model_of("elman"), instance_of("elman", gain=1.2, length=8)

    @jax.jit
    def of(rate):
        return online.staleness(online.rtrl(), model, *data[:3], optimizer=optax.sgd(rate))

    fixed, small, large = of(0.0), of(1e-5), of(1e-4)
    assert fixed.error.max() < 1e-12
    assert fixed.cosine.min() > 1 - 1e-12
    assert large.error[0] < 1e-12
    assert large.error[1:].min() > 1e-7
    np.testing.assert_allclose(large.error[1:] / small.error[1:], 10, rtol=0.1)
    assert compare(data[0], fixed.params).relative == 0


# --- the door

ELMAN, CUSTOM = model_of("elman"), model_of("custom")
DATA, CUSTOM_DATA = instance_of("elman"), instance_of("custom")


def no_inputs_known(name):
    return model_of(name)._replace(num_inputs=None)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: online.rtrl().init(ELMAN._replace(reduction="mean"), DATA[0], KEY), ValueError,
         "model.reduction: got 'mean', expected 'sum'"),
        (lambda: online.uoro().init(ELMAN, DATA[0], None), TypeError, "key: got NoneType, expected a typed key"),
        (lambda: online.kf_rtrl().init(CUSTOM, CUSTOM_DATA[0], KEY), ValueError, "known by its step alone"),
        (lambda: online.kf_rtrl().init(model_of("moving start"), DATA[0], KEY), ValueError, "h_0 that depends on"),
        (lambda: online.rflo().init(CUSTOM, CUSTOM_DATA[0], KEY), ValueError, "rflo: got a cell without factored"),
        (lambda: online.rflo(leak="a"), TypeError, "leak: got str, expected a number"),
        (lambda: online.snap(0), ValueError, "order: got 0, expected at least 1"),
        (lambda: online.snap(1.0), TypeError, "order: got float, expected an int"),
        (lambda: online.snap(1).init(no_inputs_known("elman"), DATA[0], KEY), ValueError, "x: got None, expected an"),
        (lambda: jax.jit(lambda p: online.snap(1).init(ELMAN, p, KEY))(DATA[0]), TypeError, "params: got tracers"),
        (lambda: online.rtrl().init(ELMAN, DATA[0], KEY, initial=jnp.ones(9)), ValueError, r"initial: got shape \[9\]"),
        (lambda: online.rtrl().init(ELMAN, DATA[0].cell, KEY), ValueError, "params: got structure"),
        (lambda: update_elman(x=jnp.ones(3)), ValueError, r"x: got shape \[3\], expected \[2\]"),
        (lambda: update_elman(x=jnp.array([0.0, jnp.inf])), ValueError, "x: got NaN or inf"),
        (lambda: update_elman(target=jnp.full(cases.O, jnp.nan)), ValueError, "loss: got NaN or inf"),
        (lambda: update_elman(target=jnp.ones(9)), ValueError, r"target: got shape \[9\]"),
        (lambda: update_elman(params=CUSTOM_DATA[0]), ValueError, "params: got structure"),
        (lambda: online.run(online.rtrl(), ELMAN, DATA[0], DATA[1], DATA[2][:-1]), ValueError, "targets: got 4 steps"),
        (lambda: online.run(online.rtrl(), ELMAN, DATA[0], DATA[1][:0], DATA[2][:0]), ValueError, "inputs: got T = 0"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def update_elman(params=DATA[0], x=DATA[1][0], target=DATA[2][0]):
    rule_ = online.rtrl()
    return rule_.update(rule_.init(ELMAN, DATA[0], None), params, x, target)


def test_inputs_of_any_form():
    """A model whose inputs are a pytree, integers among them: exact, and the leaves that a step reads found from x."""
    cell = cells.from_step(lambda p, h, x: jnp.tanh(p["e"][x["i"]] + p["w"] @ h), lambda p: jnp.zeros(cases.N))
    model = models.Model(cell.init, cell.initial_state, cell.step, lambda p, h: p["o"] @ h, models.squared_error)
    keys = jax.random.split(KEY, 3)
    params = {name: jax.random.normal(k, (cases.N, cases.N)) for name, k in zip("ewo", keys, strict=True)}
    data = (params, {"i": jnp.array([0, 2, 1, 2])}, jnp.ones((4, cases.N)), None)
    assert compare(exact_of(model, data)[1], online_of(online.rtrl(), model, data)[1]).relative < 1e-12
    x = {"i": jnp.array(0)}
    assert online.rtrl().cost(model, params, x=x).state_floats == cases.N + cases.N * 2 * cases.N**2
    assert online.rtrl().cost(model, params).state_floats == cases.N + cases.N * 3 * cases.N**2
    with pytest.raises(TypeError, match="x: got int"):
        online.snap(1).init(model, params, KEY, x=x)


def test_a_batch_is_exact_by_rtrl_and_refused_where_it_has_no_such_form():
    model = models.sequence_model(cases.CELLS["gru"], cases.O)
    drawn = [cases.instance(model, jax.random.key(i)) for i in range(2)]
    inputs, targets = (jnp.stack([one[i] for one in drawn], axis=1) for i in (1, 2))
    batch = models.batched(model, 2)
    expected = jax.jit(functools.partial(gradients.bptt, batch))(drawn[0][0], inputs, targets)[1]
    actual = jax.jit(functools.partial(online.run, online.rtrl(), batch))(drawn[0][0], inputs, targets)[1]
    assert compare(expected, actual).relative < 1e-12
    with pytest.raises(ValueError, match="it is a batch of sequences"):
        online.run(online.kf_rtrl(), batch, drawn[0][0], inputs, targets, key=jax.random.key(0))

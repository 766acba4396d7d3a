"""What every rule does: train in a scan, map over sequences, cost what it says, and refuse in one line."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import cells, models, online
from jaxbptt._jaxprs.operations import count_operations
from jaxbptt.comparison import compare
from jaxbptt.online import kronecker_sum, sparse
from jaxbptt.partials import step_partials
from tests import cases
from tests.online.problems import KEY, RULES, instance_of, model_of


@pytest.mark.sweep
@pytest.mark.parametrize(("make", "dtype"), [("rtrl", jnp.float64), *((make, jnp.float32) for make in RULES)])
def test_online_training_in_a_scan(make, dtype):
    """init and update as written, beside optax.sgd, in one scan, traced once: it learns, in the dtype that came."""
    model = model_of("lstm")
    params, inputs, targets, _ = jax.tree.map(lambda leaf: leaf.astype(dtype), instance_of("lstm"))
    rule_, optimizer = RULES[make](), optax.sgd(0.05)

    @jax.jit
    @chex.assert_max_traces(n=1)  # a state made anew must not trace anew
    def train(start, inputs, targets):
        def body(carry, step):
            state, params, memory = carry
            state, loss, grads = rule_.update(params, state, *step)
            updates, memory = optimizer.update(grads, memory, params)
            return (state, optax.apply_updates(params, updates), memory), loss

        return jax.lax.scan(body, start, (inputs, targets))

    chex.clear_trace_counter()
    start = (rule_.init(model, params, key=KEY), params, optimizer.init(params))
    (state, moved, _), losses = train(start, inputs, targets)
    train((RULES[make]().init(model, moved, key=KEY), moved, optimizer.init(params)), inputs, targets)
    chex.assert_trees_all_equal_structs(start[0], state)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.model_state, state.sensitivity, moved, losses))} == {
        jnp.dtype(dtype)
    }
    assert np.isfinite(losses).all()
    assert compare(params, moved).relative > 1e-4


def test_a_scan_is_its_updates_one_by_one():
    """The key moves with the state: `run` draws what single updates draw, and another key draws otherwise."""
    model, (params, inputs, targets, _) = model_of("elman"), instance_of("elman")
    rule_ = online.uoro()
    whole = jax.jit(lambda key: online.run(rule_, model, params, inputs, targets, key=key)[1])
    state, update = rule_.init(model, params, key=KEY), jax.jit(rule_.update)
    total = jax.tree.map(jnp.zeros_like, params)
    for x, y in zip(inputs, targets, strict=True):
        state, _, grads = update(params, state, x, y)
        total = jax.tree.map(jnp.add, total, grads)
    assert compare(total, whole(KEY)).relative < 1e-12
    assert compare(total, whole(jax.random.key(0))).relative > 1e-2


@pytest.mark.sweep
@pytest.mark.parametrize("make", RULES)
def test_vmap_nan_and_cost(make):
    model, rule_ = model_of("gru"), RULES[make]()
    params, inputs, targets, _ = instance_of("gru")
    call = jax.jit(jax.vmap(lambda x: online.run(rule_, model, params, x, targets, key=KEY)))
    sequences = jnp.stack((inputs, inputs[::-1], inputs.at[1, 0].set(jnp.nan)))
    (losses, grads), (again, swapped) = call(sequences), call(sequences[::-1])
    np.testing.assert_array_equal(np.isnan(losses), [False, False, True])
    np.testing.assert_allclose(losses, again[::-1], rtol=1e-12)
    pick = lambda tree, at: jax.tree.map(lambda leaf: leaf[at], tree)
    chex.assert_trees_all_close(pick(grads, np.array([0, 1])), pick(swapped, np.array([2, 1])), rtol=1e-9, atol=1e-12)
    for leaf in jax.tree.leaves(grads):
        assert np.isnan(leaf[2]).all(), "a bad number is bad in every gradient"
    state = rule_.init(model, params, key=KEY)
    floats = sum(leaf.size for leaf in jax.tree.leaves((state.model_state, state.sensitivity)))
    cost = rule_.cost(model, params)
    h, m = cases.N, cases.M
    own = 3 * h * (m + h + 2)
    entries = {"rtrl": h * (3 * h * (m + h) + 4 * h), "uoro": h + 3 * h * (m + h + 2),
               "kf_rtrl": 4 * h * h + m + h + 1, "snap": own, "rflo": own, "immediate": own,
               "sketched_rtrl": own + (h + own) + h * h, "reverse_kf_rtrl": 4 * h + h * (m + h + 1),
               "ok_rtrl": 2 * (4 * h * h + m + h + 1), "kernl": own + h * h + 4 * h,
               "eprop": own + h * cases.O}  # fmt: skip
    assert cost.state_floats == floats == entries[make] + h
    assert cost.flops > 0


ELMAN, CUSTOM = model_of("elman"), model_of("custom")
DATA, CUSTOM_DATA = instance_of("elman"), instance_of("custom")


def no_inputs_known(name):
    return model_of(name)._replace(num_inputs=None)


def update_elman(params=DATA[0], x=DATA[1][0], target=DATA[2][0]):
    rule_ = online.rtrl()
    return rule_.update(params, rule_.init(ELMAN, DATA[0]), x, target)


def update_in_the_old_order():
    rule_ = online.rtrl()
    return rule_.update(rule_.init(ELMAN, DATA[0]), DATA[0], DATA[1][0], DATA[2][0])


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: online.rtrl().init(ELMAN._replace(reduction="mean"), DATA[0], key=KEY), ValueError,
         "model.reduction: got 'mean', expected 'sum'"),
        (lambda: online.uoro().init(ELMAN, DATA[0]), TypeError, "key: got NoneType, expected a typed key"),
        (lambda: online.kf_rtrl().init(CUSTOM, CUSTOM_DATA[0], key=KEY), ValueError, "known by its step alone"),
        (lambda: online.kf_rtrl().init(model_of("moving start"), DATA[0], key=KEY), ValueError, "h_0 that depends on"),
        (lambda: online.rflo().init(CUSTOM, CUSTOM_DATA[0], key=KEY), ValueError, "rflo: got a cell without factored"),
        (lambda: online.rflo(leak="a"), TypeError, "leak: got str, expected a number"),
        (lambda: online.snap(0), ValueError, "order: got 0, expected at least 1"),
        (lambda: online.snap(1.0), TypeError, "order: got float, expected an int"),
        (lambda: online.snap(1).init(no_inputs_known("elman"), DATA[0], key=KEY), ValueError, "x: got None, expected"),
        (lambda: jax.jit(lambda p: online.snap(1).init(ELMAN, p, key=KEY))(DATA[0]), TypeError, "params: got tracers"),
        (lambda: online.rtrl().init(ELMAN, DATA[0], key=KEY, initial=jnp.ones(9)), ValueError, r"initial: got shape"),
        (lambda: online.rtrl().init(ELMAN, DATA[0].cell, key=KEY), ValueError, "params: got structure"),
        (lambda: online.rtrl().init(ELMAN, DATA[0], KEY), TypeError, "positional argument"),
        (update_in_the_old_order, TypeError, r"state: got SequenceParams, expected an OnlineState: update\(params"),
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


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("rule_", "documented"),
    [
        (online.rtrl(), lambda n, v: 2 * n**2 * n * v),
        (online.kf_rtrl(), lambda n, v: 2 * n**2 * n),
        (online.reverse_kf_rtrl(), lambda n, v: 2 * n**2 * v),
        (online.ok_rtrl(3), lambda n, v: 2 * 3 * n**2 * n + 6 * 4**2 * (n * n + v)),
        (online.sketched_rtrl(32), lambda n, v: (4 * n**2 + 4 * n + 4) * n * v + 2 * n**2 * n + 4 * n**3),
    ],
)
def test_flops_as_documented_and_as_counted(rule_, documented):
    """Leading terms for a dense Elman net of N = 32, against what the program counts, without step and J."""
    model = models.sequence_model(cells.elman(3, 32), 2)
    params = model.init(KEY)
    state = rule_.init(model, params, key=KEY)
    method, plan, signs = state.method, state.plan, jnp.ones(state.method.num_signs(state.plan))

    def work(state, signs):
        sensitivity = method.advance(plan, model, params, state.model_state, jnp.ones(3), state.sensitivity, signs)[1]
        return method.contract(plan, params, sensitivity, jnp.ones(32))

    jacobian = lambda: step_partials(model).value_and_jacobian(params, state.model_state, jnp.ones(3))
    stated = rule_.cost(model, params).flops
    counted = count_operations(work, state, signs).flops - count_operations(jacobian).flops
    if method is kronecker_sum.METHOD:
        counted += 4 * 4**2 * (32 * 32 + 36)  # two QR, which the count takes for one operation an entry
    np.testing.assert_allclose(stated, documented(32, 36), rtol=0.2)
    np.testing.assert_allclose(stated, counted, rtol=0.1)


MADE = {"elman": cells.elman(3, 32), "lstm": cells.lstm(3, 8)}
KEPT = {
    "snap": (online.snap(1), lambda n, g, k, c: (2 * k + 3) * g * k * c),
    "rflo": (online.rflo(), lambda n, g, k, c: (2 * k + 3) * g * k * c),
    "immediate": (online.immediate(decay=0.5), lambda n, g, k, c: 4 * g * k * c),
    "kernl": (online.kernl(rate=0.1, timescale=2.0), lambda n, g, k, c: 4 * g * k * c + 10 * n**2),
    "eprop": (online.eprop("symmetric"), lambda n, g, k, c: (2 * k + 3) * g * k * c),
    "eprop, random": (online.eprop("random"), lambda n, g, k, c: (2 * k + 3) * g * k * c + 2 * n * 7),
    "eprop, adaptive": (online.eprop("adaptive", rate=0.1), lambda n, g, k, c: (2 * k + 3) * g * k * c + 6 * n * 7),
    **{
        f"sketched, rank {r}": (
            online.sketched_rtrl(r),
            lambda n, g, k, c, r=r: (4 * r**2 + 4 * r * k + 4 * k**2) * g * c + 2 * n**2 * (g * k + 3 * r) + 17 * n**3,
        )
        for r in (0, 4, 16)
    },
}


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("cell", MADE)
def test_flops_of_kept_entries_as_documented_and_as_counted(name, cell):
    """As above; the direct partial and a jvp are taken off as well, as large here as the rule's own work."""
    rule_, documented = KEPT[name]
    model = models.sequence_model(MADE[cell], 7)
    params, x = model.init(KEY), jnp.ones(3)
    state = rule_.init(model, params, key=KEY)
    method, plan, start = state.method, state.plan, state.model_state
    size, signs = ravel_pytree(start)[0].size, jnp.ones(method.num_signs(plan))
    kept = getattr(plan, "own", plan)

    def work(sensitivity, signs):
        sensitivity = method.advance(plan, model, params, start, x, sensitivity, signs)[1]
        local = jnp.ones(size)
        if method.feed is not None:
            local, sensitivity = method.feed(plan, sensitivity, local, jnp.ones(7))
        return sensitivity, method.contract(plan, params, sensitivity, local)

    def partials():
        moved = None
        if name == "kernl":
            step_partials(model).push_state(params, start, x, start)
        elif name != "immediate":
            moved = (kept.transition or sparse._jacobian)(model, params, start, x)
        return sparse.direct_partial(kept, model, params, start, x, moved), moved

    counted = count_operations(work, state.sensitivity, signs).flops - count_operations(partials).flops
    if "sketched" in name:
        counted += 9 * size**3  # eigenvalues, which the count takes for one operation an entry
    stated = rule_.cost(model, params).flops
    (groups, height), width = kept.rows.array.shape, kept.columns.array.shape[1]
    np.testing.assert_allclose(stated, counted, rtol=0.08)
    np.testing.assert_allclose(documented(size, groups, height, width), stated, rtol=0.15)

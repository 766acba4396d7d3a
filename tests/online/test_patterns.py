"""Which entries of a sensitivity are kept, on what they rely, and how they are grouped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import cells, models
from jaxbptt.online import patterns
from jaxbptt.online.active import active_leaves

CHAIN = np.eye(4, k=-1, dtype=bool)  # 0 → 1 → 2 → 3
DIRECT = np.repeat(np.eye(4, dtype=bool), 2, axis=1)


def reach(transition, steps):
    return patterns._reach(patterns.Patterns(transition, DIRECT, np.zeros_like(DIRECT)), steps)


def test_reach_and_groups_on_a_chain():
    for steps in range(5):
        expected = sum(np.linalg.matrix_power(CHAIN.astype(int), k) for k in range(steps + 1)) > 0
        np.testing.assert_array_equal(reach(CHAIN, steps).entries, np.repeat(expected, 2, axis=1))
    groups = patterns.group_columns(reach(CHAIN, 1).entries)
    np.testing.assert_array_equal(np.sort(groups.columns, axis=None), np.arange(8))
    assert sorted(map(tuple, groups.rows)) == [(0, 1), (1, 2), (2, 3), (3, -1)]


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, None])
def test_an_entry_of_the_transition_is_barred_if_it_reaches_more(steps):
    kept = reach(CHAIN, steps)
    for entry in np.ndindex(4, 4):
        longer = CHAIN.copy()
        longer[entry] = True
        assert kept.barred[entry] == (not np.array_equal(reach(longer, steps).entries, kept.entries))
    assert np.array_equal(reach(CHAIN | ~kept.barred, steps).entries, kept.entries), "all the others together do not"


def kept_of(initial_state, step, params, steps, **given):
    model = models.Model(None, initial_state, step, lambda p, h: h, models.squared_error, **given)
    x = jnp.zeros(2)
    return patterns.find_kept(model, params, x, active_leaves(model, params, x, False), None, False, steps)


def step(p, h, x):
    return jnp.tanh(p["w"] @ jnp.tanh(p["v"] * h) + p["u"] * x[0] + p["b"] * p["c"])


def test_the_zeros_on_which_the_pattern_relies():
    """w is a ring by its zeros; those of u and v change nothing, those of b and c only together."""
    ring = jnp.roll(jnp.eye(3), 1, axis=0)
    params = {"b": jnp.zeros(3), "c": jnp.zeros(3), "u": jnp.zeros(3), "v": jnp.ones(3), "w": ring}
    start = lambda p: jnp.zeros(3)
    relied = lambda steps: kept_of(start, step, params, steps).zeros.reshape(7, 3)  # b, c, u, v, w
    np.testing.assert_array_equal(relied(0), np.concatenate((np.ones((2, 3)), np.zeros((2, 3)), 1 - ring)) > 0)
    params = params | {"b": jnp.ones(3), "c": jnp.ones(3)}
    np.testing.assert_array_equal(relied(2), np.concatenate((np.zeros((4, 3)), 1 - ring)) > 0)
    params = params | {"w": jnp.ones((3, 3)).at[0, 1].set(0)}
    assert relied(0)[4, 1], "∂⁺h_0/∂⁺v_1 goes through w_01"
    params = params | {"v": jnp.ones(3), "w": jnp.ones((3, 3))}
    assert not relied(1).any()


def test_weights_of_zero_in_an_elman_net():
    """SnAp-1 keeps ∂⁺h/∂⁺W, whatever W is; SnAp-2 relies on W."""
    cell = cells.elman(2, 3, recurrent=cells.identity(1.0))
    params = cell.init(jax.random.key(0))
    assert not kept_of(cell.initial_state, cell.step, params, 0).zeros.any()
    further = kept_of(cell.initial_state, cell.step, params, 1)
    assert further.zeros.sum() == 6
    np.testing.assert_array_equal(further.barred, ~np.eye(3, dtype=bool))


def test_a_program_that_cannot_be_read_may_do_anything(monkeypatch):
    def fail(*arguments):
        raise KeyError("no such rule")

    monkeypatch.setattr(patterns, "relax", fail)
    kept = kept_of(lambda p: jnp.zeros(3), lambda p, h, x: p["w"] * h, {"w": jnp.ones(3)}, 0)
    assert kept.entries.all()
    assert kept.direct.all()
    assert not kept.zeros.any()
    assert not kept.barred.any()

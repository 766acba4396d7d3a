"""Sketched RTRL: SnAp-1 at rank 0, RTRL at rank N, in between the best of its rank, and never worse than its bound."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import models, online
from jaxbptt.comparison import compare
from jaxbptt.jacobians import step_jacobians
from jaxbptt.trajectories import unroll
from tests import cases
from tests.mutation import mutate_package
from tests.online.problems import KEY, flatten, instance_of, model_of, online_of, truth_of

SIZES = {"lstm": 2 * cases.N, "custom": cases.N + 1}


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "custom", "moving start"])
def test_full_rank_is_bptt(name):
    rank = SIZES.get(name, cases.N)
    loss, actual = online_of(online.sketched_rtrl(rank), model_of(name), instance_of(name))
    expected_loss, expected = truth_of(name)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-13)
    assert compare(expected, actual).relative < 1e-12


@pytest.mark.parametrize("name", ["elman", "lstm"])
def test_rank_zero_is_snap_1(name):
    ours, theirs = (
        online_of(rule, model_of(name), instance_of(name))[1] for rule in (online.sketched_rtrl(0), online.snap(1))
    )
    assert compare(theirs, ours).relative < 1e-12
    assert compare(truth_of(name)[1], ours).relative > 0.02


SIZE = 5
WIDE = models.sequence_model(cases.softplus_elman(cases.M, SIZE), cases.O)
DATA = cases.instance(WIDE, KEY, gain=1.5, length=8)


@functools.cache
def dense_sensitivities():
    """(dh_t/dθ [T, N, P] by forward mode through the unrolled steps, ∂L_t/∂h_t [T, N], the direct part of dL_t/dθ)."""
    params, inputs, targets, _ = DATA
    theta, unravel = ravel_pytree(params)

    def states(theta):
        return jax.lax.scan(lambda h, x: (WIDE.step(unravel(theta), h, x),) * 2, jnp.zeros(SIZE), inputs)[1]

    loss = lambda h, y: WIDE.loss(WIDE.readout(params, h), y)
    return jax.jit(lambda theta: (jax.jacfwd(states)(theta), jax.vmap(jax.grad(loss))(states(theta), targets)))(theta)


@functools.cache
def run_of(rank, module=online):
    """Per step, for one rank: Â_t [T, N, P], its bounds in norm and for ∂L_t/∂h_t, and B_t."""
    params, inputs, targets, _ = DATA
    _, locals_ = dense_sensitivities()
    rule = module.sketched_rtrl(rank)

    def body(state, at):
        x, y, local = at
        state = rule.update(params, state, x, y)[0]
        contract = lambda v: flatten(state.method.contract(state.plan, params, state.sensitivity, v))
        bounds = module.bias_bound(state), module.bias_bound(state, local)
        return state, (jax.vmap(contract)(jnp.eye(SIZE)), *bounds)

    return jax.jit(lambda *at: jax.lax.scan(body, rule.init(WIDE, params, x=inputs[0]), at)[1])(
        inputs, targets, locals_
    )


def errors_of(rank, module=online):
    """[T] each: (‖E_t‖, its bound, ‖E_tᵀ ∂L_t/∂h_t‖, its bound)."""
    exact, local = dense_sensitivities()
    sketched, bound, bound_along = run_of(rank, module)
    error = sketched - exact
    return (
        np.linalg.norm(error, axis=(1, 2)),
        bound,
        np.linalg.norm(np.einsum("tn,tnp->tp", local, error), axis=1),
        bound_along,
    )


@pytest.mark.sweep
@pytest.mark.parametrize("rank", [0, 2, 4])
def test_the_certificate_holds_at_every_step(rank):
    error, bound, along, bound_along = errors_of(rank)
    assert error[0] < 1e-13, "the first step has no rest"
    assert error[-1] > 1e-3
    assert (error <= bound * (1 + 1e-9)).all()
    assert (along <= bound_along * (1 + 1e-9)).all()
    assert (bound_along <= bound * np.linalg.norm(dense_sensitivities()[1], axis=1) * (1 + 1e-9)).all()
    assert bound[-1] < 10 * error[-1], "a bound that says nothing"
    np.testing.assert_allclose(bound[1], error[1], rtol=1e-6)  # one rest is discarded: no more than that is missing


def cuts_of(rank, module=online):
    """(what each step discards T_t [T, N, P], what it could choose from R_t [T, N, P], J_t [T, N, N])."""
    params, inputs, _, _ = DATA
    chain = np.asarray(step_jacobians(WIDE, params, unroll(WIDE, params, inputs)))
    sketched, own = run_of(rank, module)[0], run_of(0)[0]
    error = np.asarray(sketched - dense_sensitivities()[0])
    previous = np.concatenate((0 * error[:1], error[:-1]))
    cut = chain @ previous - error  # E_t = J_t E_{t−1} − T_t
    return cut, cut + sketched - own, chain


def is_best(cut, rest, rank):
    """Whether ‖T_t‖ is that of the singular values of R_t past the first r."""
    tail = np.linalg.norm(np.linalg.svd(rest, compute_uv=False)[:, rank:], axis=1)
    return np.allclose(np.linalg.norm(cut, axis=(1, 2)), tail, rtol=1e-6, atol=1e-9)


def bounds_by_definition(cut, chain):
    """√tr B_t, B on dense arrays."""
    bound, found = np.zeros((SIZE, SIZE)), []
    for transition, lost in zip(chain, cut, strict=True):
        carried, fresh = transition @ bound @ transition.T, lost @ lost.T
        a, b = np.sqrt(np.trace(carried)), np.sqrt(np.trace(fresh))
        bound = (a + b) * (carried / max(a, 1e-300) + fresh / max(b, 1e-300))
        found.append(a + b)
    return np.array(found)


@pytest.mark.parametrize("rank", [2, 4])
def test_each_rest_is_cut_to_the_best_of_its_rank(rank):
    cut, rest, chain = cuts_of(rank)
    assert is_best(cut, rest, rank)
    least = bounds_by_definition(cut, chain)  # without what is added for rounding
    np.testing.assert_allclose(run_of(rank)[1], least, rtol=1e-3, atol=1e-6)
    assert (run_of(rank)[1] >= least * (1 - 1e-9)).all()


def test_full_rank_has_no_bound_to_speak_of():
    error, bound, _, _ = errors_of(SIZE)
    assert error.max() < 1e-12
    assert bound.max() == 0


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("transition @ sketch.error @ transition.T, fresh", "0.5 * sketch.error, fresh"),
        ("share(a) * carried + share(b) * fresh", "carried + fresh"),
        ("vectors = jnp.linalg.eigh(gram)[1]", "vectors = jnp.linalg.eigh(gram)[1][:, ::-1]"),
        ("cross + cross.T", "cross"),
    ],
)  # fmt: skip
def test_a_broken_certificate_is_seen(old, new):
    mutant = mutate_package(online, old, new)
    cut, rest, chain = cuts_of(2, mutant)
    bound = run_of(2, mutant)[1]
    assert not (is_best(cut, rest, 2) and np.allclose(bound, bounds_by_definition(cut, chain), rtol=1e-3, atol=1e-6))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("~inside[:, :, None] & (rows >= 0)[None]", "(rows >= 0)[None]"),
        ('"rs,sgc->rgc", left.T @ moved', '"rs,sgc->rgc", left.T @ sketch.left'),
        ("local @ sketch.left", "0 * local @ sketch.left"),
    ],
)
def test_a_broken_sketch_is_seen(old, new):
    mutant = mutate_package(online, old, new)
    _, broken = online_of(mutant.sketched_rtrl(cases.N), model_of("elman"), instance_of("elman"), module=mutant)
    assert compare(truth_of("elman")[1], broken).relative > 1e-3


def test_bounds_are_of_this_rule_alone():
    params = DATA[0]
    one = online.sketched_rtrl(1).init(WIDE, params)
    with pytest.raises(ValueError, match=r"state: got B of shape \[2, 5, 5\], expected that of one sequence"):
        online.bias_bound(jax.tree.map(lambda leaf: jnp.stack((leaf, leaf)), one))
    with pytest.raises(TypeError, match="state: got that of another rule, expected one of sketched_rtrl"):
        online.bias_bound(online.rtrl().init(WIDE, params))
    with pytest.raises(ValueError, match=r"local: got shape \[9\], expected \[5\]"):
        online.bias_bound(online.sketched_rtrl(1).init(WIDE, params), jnp.ones(9))

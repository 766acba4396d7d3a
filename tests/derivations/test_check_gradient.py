"""Mistakes planted by hand in a whole gradient: each is seen and named, and no correct one blamed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import derivations, gradients, models
from jaxbptt.derivations import check_gradient
from tests import cases
from tests.derivations.by_hand import ANY, LOCAL, N, O, T, make
from tests.derivations.gradients_by_hand import hand_gradient
from tests.mutation import mutate_package

GRADIENT = {
    **LOCAL,
    "double_path": ANY,
    "reversed_product": ANY,
    "lost_mean": ANY,
    "double_mean": ANY,
    "missing_direct_term": ("shared",),
    "last_term_only": ANY,
    "truncated": ANY,
    "clipped_adjoint": ANY,
}


ONE = {"dropped_gate_path": ("gru",), "swapped_gates": ("gru",), "missing_direct_term": ("shared",)}


@functools.cache
def model_of(name):
    return cases.shared_model() if name == "shared" else models.sequence_model(make(name), O, reduction="mean")


def rate(slip, count, names, *, seed=0, dtypes=(np.float64,)):
    """(detected, named, what was not) of `count` random instances."""
    random, detected, named, misses = np.random.default_rng([seed, *map(ord, slip)]), 0, 0, []
    for number in range(count):
        name = names[number % len(names)]
        key, dtype = jax.random.key(random.integers(2**31)), dtypes[number // len(names) % len(dtypes)]
        model = model_of(name)
        params, inputs, targets, _ = cases.instance(
            model, key, length=T, gain=random.choice(cases.GAINS), num_outputs=N if name == "shared" else O
        )
        params, inputs, targets = jax.tree.map(lambda leaf, to=dtype: leaf.astype(to), (params, inputs, targets))
        gradient = hand_gradient("elman" if name == "shared" else name, slip, random)
        report = check_gradient(model, gradient, key=key, params=params, inputs=inputs, targets=targets)
        found = {finding.slip for finding in report.findings}
        detected, named = detected + (not report.ok), named + (found == {slip})
        if found != {slip}:
            misses.append((name, dtype.__name__, str(report)))
    return detected, named, misses


@pytest.mark.sweep
@pytest.mark.parametrize("slip", GRADIENT)
def test_a_planted_slip_of_a_gradient_is_named(slip):
    count = 2  # compiling for another cell takes longer than all else: one cell a kind
    names = ONE.get(slip, ("elman",))
    detected, named, misses = rate(slip, count, names)
    assert (detected, named) == (count, count), misses


@pytest.mark.slow
@pytest.mark.parametrize("slip", GRADIENT)
def test_planted_slips_are_named_in_every_cell_and_either_dtype(slip):
    count = 16 * len(GRADIENT[slip])
    detected, named, misses = rate(slip, count, GRADIENT[slip], seed=1, dtypes=(np.float64, np.float32))
    assert detected == count, misses
    assert named >= 0.95 * count, misses


def test_a_correct_gradient_is_not_blamed():
    model = models.sequence_model(make("elman"), O, reduction="mean")
    random = np.random.default_rng(0)
    for gradient in (gradients.bptt, gradients.forward_sensitivity, hand_gradient("elman", "", random)):
        report = check_gradient(model, gradient, key=jax.random.key(0))
        assert report.ok, report
    classes = models.sequence_model(make("elman"), O, loss=models.softmax_cross_entropy)
    assert check_gradient(classes, gradients.bptt, key=jax.random.key(0)).ok  # targets are classes: found out


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def hooked(hook, state):
    return state


hooked.defvjp(lambda hook, state: (state, None), lambda hook, _, cotangent: (hook(cotangent),))


def with_hook(hook, *, on_carry):
    """A gradient by a loop of one's own, with a hook on the state: on the loop's carry, or on h_t as all see it."""

    def gradient(model, params, inputs, targets):
        def loss(params):
            state, total = model.initial_state(params), 0.0
            for x, target in zip(inputs, targets, strict=True):
                state = model.step(params, hooked(hook, state) if on_carry else state, x)
                state = state if on_carry else hooked(hook, state)
                total = total + model.loss(model.readout(params, state), target)
            return total / len(inputs) if model.reduction == "mean" else total

        return jax.jit(jax.grad(loss))(params)

    return gradient


BOUND = 0.0625
by_value = functools.partial(jax.tree.map, lambda leaf: jnp.clip(leaf, -BOUND, BOUND))
by_norm = lambda tree: jax.tree.map(lambda leaf: leaf * jnp.minimum(1, BOUND / jnp.linalg.norm(leaf)), tree)
HOOKS = {
    "value of the carry": ("elman", with_hook(by_value, on_carry=True), "J_{t+1}ᵀ λ_{t+1} elementwise"),
    "norm of λ": ("elman", with_hook(by_norm, on_carry=False), "by its norm"),
    "norm of each array": (
        "lstm",
        with_hook(by_norm, on_carry=True),
        "J_{t+1}ᵀ λ_{t+1} each array of the state by its norm",
    ),
    "of the hidden part": (
        "lstm",
        with_hook(lambda state: state._replace(hidden=by_norm(state.hidden)), on_carry=True),
        "J_{t+1}ᵀ λ_{t+1} hidden alone, by its norm",
    ),
    "of a batch": ("batch", with_hook(jax.vmap(by_norm), on_carry=True), "J_{t+1}ᵀ λ_{t+1} each sequence by its norm"),
    "ours": (
        "elman",
        functools.partial(gradients.bptt, clip_adjoint=BOUND),
        "J_{t+1}ᵀ λ_{t+1} by its norm",
    ),
}  # fmt: skip


@functools.cache
def hooked_problem(name):
    model = model_of("elman" if name == "batch" else name)
    params, inputs, targets, _ = cases.instance(model, jax.random.key(3), length=T, gain=1.5, num_outputs=O)
    if name == "batch":
        beside = lambda leaf: jnp.stack((leaf, 0.7 * leaf[::-1]), axis=1)
        return models.batched(model, 2), {"params": params, "inputs": beside(inputs), "targets": beside(targets)}
    return model, {"params": params, "inputs": inputs, "targets": targets}


@pytest.mark.sweep
@pytest.mark.parametrize("case", HOOKS)
def test_a_hook_that_clips_is_named_with_its_bound(case):
    name, gradient, note = HOOKS[case]
    model, data = hooked_problem(name)
    report = check_gradient(model, gradient, key=jax.random.key(0), **data)
    assert {finding.slip for finding in report.findings} == {"clipped_adjoint"}, report
    assert f"({note} at {BOUND:.6g})" in str(report)


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["elman", "lstm", "batch"])
def test_a_hook_that_never_clips_is_not_blamed(name):
    model, data = hooked_problem(name)
    loose = functools.partial(jax.tree.map, lambda leaf: jnp.clip(leaf, -1e6, 1e6))
    assert check_gradient(model, with_hook(loose, on_carry=True), key=jax.random.key(0), **data).ok


def test_a_scaled_carry_is_not_taken_for_a_clipped_one():
    """Wrong, too, but at no bound."""
    model, data = hooked_problem("elman")
    shrunk = with_hook(functools.partial(jax.tree.map, lambda leaf: 0.9 * leaf), on_carry=True)
    report = check_gradient(model, shrunk, key=jax.random.key(0), **data)
    assert not report.ok
    assert "clipped_adjoint" not in {finding.slip for finding in report.findings}


@pytest.mark.parametrize(
    ("case", "old", "new"),
    [
        ("of a batch", "members = groups == np.arange(groups.max() + 1)[:, None]", "members = groups[None] >= 0"),
        ("of the hidden part", "np.where(inside, factors @ members, 1)", "np.max(factors, axis=-1, keepdims=True)"),
    ],
)
def test_a_broken_part_of_a_clip_is_seen(case, old, new):
    name, gradient, _ = HOOKS[case]
    model, data = hooked_problem(name)
    broken = mutate_package(derivations, old, new)
    report = broken.check_gradient(model, gradient, key=jax.random.key(0), **data)
    assert "clipped_adjoint" not in {finding.slip for finding in report.findings}

"""Blocks of steps and the parallel adjoint change the order of the work, not the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import gradients, models
from jaxbptt.comparison import compare
from jaxbptt.gradients import backpropagation, blocks, resources, sequence
from jaxbptt.gradients.blocks import choose_blocks
from tests import cases
from tests.gradients.problems import BATCH, KEY, batch_of, model_of
from tests.mutation import mutate_package

LENGTH = 11


def run(route, model, data, **options):
    return jax.jit(lambda *data: route(model, *data[:3], **options))(*data)


@pytest.fixture(scope="module")
def problem_of():
    """name -> (model, data, (C, dC/dθ) by autodiff), each once."""
    made = {}

    def make(name):
        if name not in made:
            model = model_of("gru" if name == "batch" else name, "squared", "mean")
            data = batch_of(model, LENGTH) if name == "batch" else cases.instance(model, KEY, gain=1.5, length=LENGTH)
            model = models.batched(model, BATCH) if name == "batch" else model
            made[name] = model, data, run(gradients.autodiff, model, data)
        return made[name]

    return make


@pytest.mark.sweep
@pytest.mark.parametrize("options", [{"block": 1}, {"block": 3}, {"block": 4}, {"block": 99}, {"adjoint": "parallel"}],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "custom", "plain", "batch"])
def test_blocks_and_the_parallel_adjoint_change_nothing(name, options, problem_of):
    model, data, (loss, expected) = problem_of(name)
    actual_loss, actual = run(gradients.bptt, model, data, **options)
    np.testing.assert_allclose(actual_loss, loss, rtol=1e-13)
    assert compare(expected, actual).relative < 1e-12
    if "adjoint" in options:
        sequential = run(gradients.adjoints, model, data)
        parallel = run(gradients.adjoints, model, data, **options)
        np.testing.assert_allclose(parallel, sequential, rtol=1e-10, atol=1e-13)


PARALLEL, BLOCKS = {"adjoint": "parallel"}, {"block": 3}


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("options", "old", "new"),
    [
        (PARALLEL, "over_blocks, later, affine, reverse=True", "over_blocks, later, affine"),
        (PARALLEL, "jax.tree.map(jnp.add, own, _apply(maps, after, batch)), after", "own, after"),
        (PARALLEL, "leaf[length - whole :]", "leaf[:whole]"),
        (BLOCKS, "(grads, earlier), head, reverse=True", "(grads, earlier), head"),
        (BLOCKS, "start, size = index * block,", "start, size = 0 * index * block,"),
        (BLOCKS, "(jax.tree.map(jnp.add, grads, block_grads), earlier), losses", "(block_grads, earlier), losses"),
        (BLOCKS, "(jax.tree.map(jnp.add, grads, block_grads), earlier), losses",
         "(jax.tree.map(jnp.add, grads, block_grads), jax.tree.map(jnp.zeros_like, earlier)), losses"),
    ],
)  # fmt: skip
def test_a_broken_block_is_seen(options, old, new, problem_of):
    model, data, (_, expected) = problem_of("lstm")
    _, broken = run(mutate_package(gradients, old, new).bptt, model, data, **options)
    assert not compare(expected, broken).relative <= 1e-3  # or NaN: the parallel adjoint compares its blocks


def test_a_state_that_overflows_is_named_in_blocks_too():
    model = model_of("linear")
    params, inputs, targets, initial = cases.instance(model, KEY)
    params = params._replace(cell=params.cell._replace(w_hh=1e200 * jnp.eye(cases.N)))
    with pytest.raises(ValueError, match=r"states.*t = 2"):
        gradients.bptt(model, params, inputs, targets, initial=initial, block=2)


@pytest.mark.parametrize(
    ("name", "backend", "length", "options", "batch", "parallel"),
    [
        ("lstm", "gpu", 1024, {}, None, True),
        ("lstm", "cpu", 1024, {}, None, False),
        ("lstm", "gpu", 1023, {}, None, False),
        ("lstm", "gpu", 1024, {}, 2, False),  # a batch and a step alone were not measured
        ("custom", "gpu", 1024, {}, None, False),
        ("lstm", "gpu", 1024, {"block": 512}, None, False),
        ("lstm", "gpu", 1024, {"adjoint": "sequential"}, None, False),
        ("custom", "cpu", 8, {"adjoint": "parallel"}, None, True),
    ],
)
def test_where_the_parallel_adjoint_is_taken(monkeypatch, name, backend, length, options, batch, parallel):
    taken = []
    make = sequence.make_runner

    def spy(*at, parallel, clip):
        taken.append(parallel)
        return make(*at, parallel=parallel, clip=clip)

    monkeypatch.setattr(backpropagation, "make_runner", spy)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    model = model_of(name, "squared", "sum")
    params, inputs, targets, _ = cases.instance(model, KEY, length=length)
    if batch:
        model = models.batched(model, batch)
        inputs, targets = (jnp.stack([leaf] * batch, axis=1) for leaf in (inputs, targets))
    jax.eval_shape(lambda *data: gradients.bptt(model, *data, **options), params, inputs, targets)
    assert taken == [parallel]


def test_memory_bounds_what_is_kept(monkeypatch):
    """The runner keeps 8 bytes a step besides a state of 8; 1024 steps keep 16 KiB."""
    save = lambda state, inputs: (state, sequence.Saved(state, inputs, inputs))
    run, inputs = sequence.Runner(None, save, None), jnp.zeros(1024)
    whole = choose_blocks(run, jnp.zeros(()), inputs, None, 2**14)
    assert (whole.size, whole.before_last, whole.keep) == (1024, 0, True)
    least = 2 * (1024 * 8 * 16) ** 0.5  # of T/K·S + K·P, about 724
    for cache in (2**22, 2**8):  # 2**8: blocks that fit in cache would keep 760 bytes
        monkeypatch.setattr(blocks, "WHOLE_BYTES", cache)
        monkeypatch.setattr(blocks, "cache_size", lambda cache=cache: cache)
        for memory in (2**13, 2**11, 740, 100):
            size, before_last, keep = choose_blocks(run, jnp.zeros(()), inputs, None, memory)
            assert not keep
            assert before_last * 8 + size * 16 <= max(memory, least)
            assert before_last * size < 1024 <= (before_last + 1) * size


@pytest.mark.sweep
@pytest.mark.parametrize("memory", [1, 300, 10**6])
@pytest.mark.parametrize("name", ["lstm", "custom", "batch"])
def test_a_bound_on_memory_changes_nothing(name, memory, problem_of):
    model, data, (_, expected) = problem_of(name)
    assert compare(expected, run(gradients.bptt, model, data, memory=memory)[1]).relative < 1e-12


@pytest.mark.parametrize(("options", "word"), [({"memory": 0}, "memory"), ({"memory": 9, "block": 2}, "block")])
def test_a_wrong_memory_is_named(options, word, problem_of):
    model, data, _ = problem_of("gru")
    with pytest.raises(ValueError, match=f"^memory.*{word if word == 'block' else 'got 0'}"):
        gradients.bptt(model, *data[:3], **options)


def test_the_machine_is_asked(monkeypatch):
    told = {"SC_AVPHYS_PAGES": 2**20, "SC_PAGE_SIZE": 2**12, "SC_LEVEL2_CACHE_SIZE": 2**21}
    monkeypatch.setattr(resources.os, "sysconf", told.__getitem__)
    monkeypatch.setattr(resources.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert (resources.default_memory(), resources.cache_size()) == (2**30, 2**22)

    def fail(name):
        raise ValueError(name)

    monkeypatch.setattr(resources.os, "sysconf", fail)
    assert (resources.default_memory(), resources.cache_size()) == (resources.LEAST_MEMORY, resources.LEAST_CACHE)

"""Many blocks of losses carried back together: a broken line changes the gradient."""

import jax
import pytest

from jaxbptt import truncation
from tests.mutation import mutate_package
from tests.truncation.problems import small, worst

SIZES = ((2, 3), (3, 2))


@pytest.fixture(scope="module")
def expected():
    model, data, _ = small()
    tables = [truncation.sliding_weights(4, *sizes) for sizes in SIZES]
    return jax.jit(lambda: [truncation.weighted_gradient(model, *data, table)[1] for table in tables])()


def replayed(module):
    model, data, _ = small()
    run = lambda stride, num_lags: module.sliding(model, *data, stride=stride, num_lags=num_lags)[1]
    return jax.jit(lambda: [run(*sizes) for sizes in SIZES])()


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("index >= first, leaf[at], 0", "index >= starts, leaf[at], 0"),
        ("_select(inside, own + later, 0)", "own + later"),
        ("_select(inside, new, old), pulled, carried", "_select(inside, 0.95 * new, old), pulled, carried"),
        ("_select(inside, new, old), pulled, carried", "new, pulled, carried"),
        ("total.at[at].add(adjoint)", "total.at[at].set(adjoint)"),
        ("jax.tree.map(jnp.add, direct,", "jax.tree.map(lambda _, new: new, direct,"),
        ("jnp.sum(_select(reach, leaf, 0), axis=0)", "jnp.sum(leaf, axis=0)"),
        ("ends - num_lags, 0)", "ends - num_lags - 1, 0)"),
        ("ends = np.minimum(first + stride, num_steps)", "ends = first + stride"),
    ],
)
def test_a_broken_replay_is_seen(old, new, expected):
    assert worst(expected, replayed(mutate_package(truncation, old, new))) > 1e-3


def test_an_unbroken_replay_is_its_table(expected):
    assert worst(expected, replayed(truncation)) < 1e-12

"""What a program costs, counted in the program itself."""

import jax
import jax.numpy as jnp
import pytest

from jaxbptt._jaxprs.operations import count_operations

SIZE = 9


def loop(w, h):
    return jax.lax.scan(lambda h, _: (jnp.tanh(w @ h), None), h, None, length=7)[0]


def test_a_scan_counts_as_often_as_it_runs():
    count = count_operations(loop, jnp.ones((5, 5)), jnp.ones(5))
    assert count.flops == 7 * (2 * 25 + 5)
    assert count.bytes == 7 * 8 * (25 + 5 + 5 + 5 + 5)
    assert count.exact


def test_of_a_choice_the_dearer_side_counts():
    dear, cheap = (lambda x: x @ x), (lambda x: x[0])
    found = count_operations(lambda x: jax.lax.cond(x[0] > 0, dear, cheap, x), jnp.ones(SIZE))
    assert 2 * SIZE <= found.flops <= 2 * SIZE + 4
    assert found.exact


def test_a_loop_of_unknown_length_is_said_to_be_one():
    found = count_operations(lambda x: jax.lax.while_loop(lambda x: x < 5, lambda x: x + 1, x), 1.0)
    assert not found.exact
    within = count_operations(jax.jit(lambda x: jax.lax.while_loop(lambda x: x < 5, lambda x: x + 1, x)), 1.0)
    assert not within.exact


@pytest.mark.parametrize(
    ("function", "flops"),
    [
        (lambda x: jnp.broadcast_to(x.reshape(3, 3)[None], (2, 3, 3)), 0),
        (lambda x: jax.jit(jnp.tanh)(x) + x, 2 * SIZE),
        (lambda x: jnp.einsum("bij,bjk->bik", *[x.reshape(1, 3, 3)] * 2), 2 * 27),
        (lambda x: x[jnp.arange(SIZE)[::-1]] + jnp.concatenate((x[1:], x[:1])), SIZE),  # the sum alone
        (lambda x: jnp.where(x > 0, x, 0.0), 2 * SIZE),
    ],
)
def test_shapes_and_places_are_free_and_calls_are_opened(function, flops):
    assert count_operations(function, jax.ShapeDtypeStruct((SIZE,), jnp.float32)).flops == flops

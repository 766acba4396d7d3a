"""Which leaves of params the numbers of a result come from."""

import jax
import jax.numpy as jnp
import pytest

from jaxbptt._jaxprs.dependence import leaves_read

PARAMS = {"a": jnp.ones(3), "b": jnp.ones(3), "c": jnp.ones(3)}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda p, x: p["a"] + x, (True, False, False)),
        (lambda p, x: jnp.zeros_like(p["a"]) + p["c"] * x, (False, False, True)),
        (lambda p, x: jax.jit(lambda b, x: b @ x)(p["b"], x), (False, True, False)),
        (lambda p, x: (p["a"], {"x": p["c"]}), (True, False, True)),
        (lambda p, x: x, (False, False, False)),
        (lambda p, x: jax.lax.scan(lambda h, _: (jnp.sin(h + p["b"]), None), x, None, length=2)[0],
         (False, True, False)),
        (lambda p, x: (jnp.cumsum(p["a"]), x)[1], (False, False, False)),  # computed, and then not used
    ],
)  # fmt: skip
def test_leaves_read(function, expected):
    assert leaves_read(function, PARAMS, jnp.ones(3)) == expected

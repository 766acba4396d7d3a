"""One random chain of every structure, for the functions that take chains."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt.cells.structure import Border, DiagonalLowRank
from jaxbptt.jacobians import BlockJacobians, BorderedJacobians

K, V = 3, 2


def chains(length, dtype=jnp.float64, seed=0):
    """{name: chain}, of sizes 5 to 12."""
    draw = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(draw.standard_normal(shape), dtype)
    part = lambda *shape: jnp.asarray(draw.uniform(0.2, 1, shape), dtype)
    rows = lambda *shape: jnp.zeros((*shape, 0), dtype)
    keys = normal(length, 1, K, 1)
    keys = keys / jnp.sqrt(jnp.sum(keys * keys, axis=2, keepdims=True))
    beta = part(length, 1, 1, 1)
    by_keys, by_values = np.arange(K * V).reshape(1, K, V), np.arange(K * V).reshape(V, K).T[None]
    pairs = np.stack((np.arange(3), np.arange(3, 6)), axis=-1).reshape(3, 1, 2)
    entries = jax.lax.complex(normal(length, 3, 1), normal(length, 3, 1))
    none = jnp.zeros((*entries.shape, 0), entries.dtype)
    mixed = jax.lax.complex(normal(length, 2, 2, 2), normal(length, 2, 2, 2))
    corner = jnp.asarray(draw.random(length) < 0.5, dtype)
    return {
        "diagonal": BlockJacobians(
            DiagonalLowRank(normal(length, 5, 1), rows(length, 5, 1), rows(length, 5, 1)),
            np.arange(5).reshape(5, 1, 1),
            length,
        ),
        "complex diagonal": BlockJacobians(DiagonalLowRank(entries, none, none), pairs, length),
        "constant": BlockJacobians(DiagonalLowRank(entries[:1], none[:1], none[:1]), pairs, length),
        "A x I": BlockJacobians(DiagonalLowRank(jnp.ones((length, 1, K), dtype), -beta * keys, keys), by_keys, length),
        "I x A": BlockJacobians(DiagonalLowRank(part(length, 1, K), beta * keys, -keys), by_values, length),
        "blocks": BlockJacobians(normal(length, 2, 3, 3), draw.permutation(12).reshape(2, 3, 2), length),
        "complex blocks": BlockJacobians(mixed, draw.permutation(8).reshape(2, 2, 2), length),
        "border": BorderedJacobians(Border(part(length), normal(length, 5), corner)),
        "open border": BorderedJacobians(Border(part(length), normal(length, 5), jnp.ones(length, dtype))),
    }

"""Blocks with copies, diagonals and borders multiply as the matrices that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import jacobians, models, terms, trajectories
from jaxbptt.cells.structure import BlockParts, BorderedParts
from jaxbptt.comparison import compare
from jaxbptt.partials import step_partials
from tests import cases
from tests.jacobians.structures import chains
from tests.mutation import mutate_package

KEY = jax.random.key(5)
CHAINS = chains(6)
STRUCTURED = [
    name for name, cell in cases.MODERN.items() if isinstance(step_partials(cell).parts, BlockParts | BorderedParts)
]


def errors(chain, package=jacobians):
    """Of the products, from the assembled matrices, relative to their size."""
    dense, step = chain.assemble(), jax.tree.map(lambda leaf: leaf[2], chain.steps)
    matrix = jax.random.normal(KEY, (chain.size, 2))
    pairs = [
        (chain.left(step, matrix), dense[2] @ matrix),
        (chain.right(step, matrix.T), matrix.T @ dense[2]),
        (package.product(chain, 1, 5), package.product(dense, 1, 5)),
        (package.prefix_products(chain.span(1, 6)), package.prefix_products(dense[1:])),
    ]
    return [float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in pairs]


@pytest.mark.sweep
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_multiplies_as_its_matrices(name):
    chain = CHAINS[name]
    assert (len(chain), chain.size, chain.dtype) == (6, chain.assemble().shape[1], jnp.float64)
    assert max(errors(chain)) < 1e-13


@pytest.mark.sweep
@pytest.mark.parametrize("name", STRUCTURED)
def test_the_chain_of_a_cell_is_that_of_its_step(name):
    model = models.sequence_model(cases.MODERN[name], cases.O)
    params, inputs, targets, initial = cases.instance(model, KEY)

    @jax.jit
    def found(params, inputs, targets, initial):
        steps = trajectories.unroll(model, params, inputs, initial=initial)
        chain = jacobians.structured_jacobians(model, params, steps)
        tables = [
            terms.gradient_terms(each, params, inputs, targets, initial=initial)
            for each in (model, model._replace(derivation=None))
        ]
        dense = jacobians.step_jacobians(model, params, steps, method="forward")
        return chain.assemble(), dense, [table.by_leaf for table in tables]

    structured, dense, (table, expected) = found(params, inputs, targets, initial)
    np.testing.assert_allclose(structured, dense, atol=1e-13)
    assert compare(expected, table).relative < 1e-12


def test_a_constant_chain_needs_no_trajectory():
    cell = cases.MODERN["lru"]
    params, inputs, _, _ = cases.instance(cell, KEY)
    chain = jacobians.structured_jacobians(cell, params, 7)
    steps = trajectories.unroll(cell, params, inputs)
    assert len(chain) == 7
    assert all(len(leaf) == 1 for leaf in jax.tree.leaves(chain.core))
    np.testing.assert_allclose(chain.assemble()[:5], jacobians.step_jacobians(cell, params, steps), atol=1e-15)
    with pytest.raises(TypeError, match="trajectory: got an int, expected a Trajectory"):
        jacobians.structured_jacobians(cases.MODERN["min_gru"], cases.MODERN["min_gru"].init(KEY), 7)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("blocks", "(core, copies), self.place)", "(core, copies[::-1]), self.place)"),
        ("complex diagonal", "transpose_core(step), matrix, axis=0", "step, matrix, axis=0"),
        ("blocks", "transpose_core(step), matrix, axis=0", "step, matrix, axis=0"),
        ("border", "step.column[:, None] * matrix[-1:]", "step.column[:, None] * matrix[:1]"),
        ("border", "+ step.corner * matrix[:, -1]", "- step.corner * matrix[:, -1]"),
        ("A x I", "apply_core, identity, jac", "lambda core, product: product, identity, jac"),
    ],
)
def test_a_broken_line_is_seen(name, old, new):
    mutant = mutate_package(jacobians, old, new)
    chain = CHAINS[name]
    broken = getattr(mutant, type(chain).__name__)(*(getattr(chain, field) for field in chain.__dataclass_fields__))
    dense, step = chain.assemble(), jax.tree.map(lambda leaf: leaf[2], chain.steps)
    matrix = jax.random.normal(KEY, (chain.size, 2))
    found = broken.left(step, matrix), broken.right(step, matrix.T), mutant.product(broken, 1, 5)
    expected = dense[2] @ matrix, matrix.T @ dense[2], jacobians.product(dense, 1, 5)
    assert compare(expected, found).relative > 1e-3

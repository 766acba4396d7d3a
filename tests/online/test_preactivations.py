"""Which pre-activations a cell has, and why a cell has none."""

import jax
import jax.numpy as jnp
import pytest

from jaxbptt.online import preactivations
from tests import cases
from tests.online.problems import instance_of, model_of


@pytest.mark.parametrize(("name", "rows", "colours"), [("elman", 3, 1), ("lstm", 12, 2), ("gru", 12, 1)])
def test_preactivations_of_the_built_in_cells(name, rows, colours):
    params, inputs, *_ = instance_of(name)
    form = preactivations.find(model_of(name), params, inputs[0])
    assert (form.num_rows, form.lengths, max(form.colours) + 1) == (rows, (cases.M, cases.N, 1), colours)


def swapped(pullback):
    """Of w_hh, the right factor where the left should stand."""

    def params(*arguments):
        right = pullback.params(*arguments)
        w_hh = right.cell.w_hh
        return right._replace(cell=right.cell._replace(w_hh=type(w_hh)(*w_hh[::-1])))

    return pullback._replace(params=params)


def doubled(pullback):
    return pullback._replace(params=lambda *at: jax.tree.map(lambda leaf: 2 * leaf, pullback.params(*at)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda pullback: lambda *arguments: pullback(*arguments), "known by a pullback that is not factored"),
        (swapped, "right factor depends"),
        (doubled, "are not those of its step"),
        (None, "known by its step alone"),
    ],
)
def test_models_without_preactivations_say_why(change, reason):
    model, params = model_of("elman"), instance_of("elman")[0]
    derivation = model.derivation
    derivation = None if change is None else derivation._replace(pullback=change(derivation.pullback))
    found = preactivations.find(model._replace(derivation=derivation), params, jnp.zeros(cases.M))
    assert isinstance(found, preactivations.NotFactored)
    assert reason in found.reason

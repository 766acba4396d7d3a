"""Every public function on every kind of step: it works, or refuses in one line that names what to do instead."""

import jax
import numpy as np
import pytest

from tests import conformance, steps

EXACT = ("gradients.autodiff", "gradients.bptt", "gradients.forward_sensitivity", "gradients.double_sum",
         "online.run rtrl", "online.run snap")  # fmt: skip
FORWARD_ALONE = ("models.step_losses", "trajectories.unroll", "trajectories.flatten_steps",
                 "perturbation.evolution_strategies", "perturbation.persistent_strategies")  # fmt: skip
NEEDS_INPUT = [(name, "callback of the input") for name in ("derivations.check", "terms.input_saliency")]
CARRIED_FORWARD = ("gradients.forward_adjoint", "gradients.propagate_errors")  # divide by J_t
SINGULAR = [(function, kind) for function in CARRIED_FORWARD for kind in ("comparisons", "bool inputs")]  # J_t = 0
ALL = [*conformance.TRACED, *conformance.EAGER, *conformance.CHAIN]


def call(function, kind):
    model, data = steps.model_of(kind), steps.data_of(kind)
    if function in conformance.CHAIN:
        chain = conformance.chain_of(model, *data)
        return conformance.CHAIN[function](np.asarray(chain) if kind.startswith("NumPy") else chain)
    if kind.startswith("NumPy"):
        return conformance.FUNCTIONS[function](model, *data)
    return conformance.run(function, model, data)


def outcome(function, kind, expected):
    """ "works", "unknown" where NaN is the answer, or the line that refuses; anything else fails."""
    try:
        result = call(function, kind)
    except (TypeError, ValueError) as error:
        line = str(error)
        assert "\n" not in line
        assert "expected" in line, line
        if function in conformance.NEEDS_FACTORED:
            assert "derivation" in line, line
        elif function == "terms.input_saliency" and "at least one float leaf" in line:
            assert kind.startswith(("tokens", "NumPy")), line
        else:
            assert kind == "callback of the state" or (function, kind) in NEEDS_INPUT, line
            assert line.startswith("step: got one that has neither a reverse nor a forward rule"), line
            assert "jax.custom_vjp" in line
        return line
    assert function not in conformance.NEEDS_FACTORED
    assert kind != "callback of the state" or function in FORWARD_ALONE
    if (function, kind) in SINGULAR:
        assert np.isnan(jax.tree.leaves(result)[-1 if function.endswith("adjoint") else 0]).all()
        return "unknown"
    for leaf in map(np.asarray, filter(lambda leaf: not jax.numpy.isscalar(leaf), jax.tree.leaves(result))):
        assert leaf.dtype.kind not in "fc" or not np.isnan(leaf).any()
    if function in EXACT:
        for leaf, right in zip(jax.tree.leaves(result[1]), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(leaf, right, rtol=1e-9, atol=1e-12)
    return "works"


def row(functions, kind):
    expected = None if kind == "callback of the state" else steps.looped_gradient(kind)
    return {function: outcome(function, kind, expected) for function in functions}


@pytest.mark.sweep
@pytest.mark.parametrize(("number", "kind"), list(enumerate(steps.STEPS)))
def test_some_functions_on_every_kind_of_step(number, kind):
    """Over all kinds, every function once."""
    row(ALL[number :: len(steps.STEPS)], kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", steps.STEPS)
def test_every_function_on_every_kind_of_step(kind, record_property):
    found = row(ALL, kind)
    jax.clear_caches()  # so many programs hold more memory maps than a process may have
    refused = [line for line in found.values() if line not in ("works", "unknown")]
    lines = [f"{kind}: {len(found) - len(refused)} functions work, {len(refused)} refuse in one line"]
    lines += [f"    {refused.count(line):2}  {line}" for line in sorted(set(refused))]
    record_property("table", "\n".join(lines))

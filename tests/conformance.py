"""Every public function that takes a cell, a model or what comes of one, as (model, data) -> arrays."""

import functools

import jax
import jax.numpy as jnp

import jaxbptt
from jaxbptt import (
    assessment,
    comparison,
    derivations,
    fixed_points,
    gradients,
    jacobians,
    models,
    online,
    partials,
    perturbation,
    report,
    spectra,
    terms,
    trajectories,
    truncation,
)

KEY = jax.random.key(8)
WEIGHTS = truncation.window_weights(5, 2)
CUTS = jnp.array([False, True, False, False, True])

# What makes a cell or a model, what takes neither, and what takes long: its own tests run it.
MAKERS = {
    "adapters": {"equinox", "from_apply", "haiku", "linen", "nnx", "torch_weights"},
    "cells": {"stack", "elman", "from_step", "gates", "gaussian", "gru", "identity", "linear", "lstm", "orthogonal"}
    | {"chrono", "leaky", "lru", "min_gru", "min_lstm", "rg_lru", "selective_ssm"}
    | {"delta_net", "mlstm", "rwkv7", "slstm"},
    "jacobians": {"batch_jacobians"},
    "models": {"batched", "make_model", "sequence_model", "softmax_cross_entropy", "squared_error", "read"}
    | {"bidirectional", "feedback", "penalised", "precomputed", "resetting", "teacher_forcing", "weighted"}
    | {"join_pairs", "real_pairs", "split_complex", "trainable"},
    "partials": {"jacobian", "jvp", "vjp"},
    "online": {"kf_rtrl", "rflo", "rtrl", "snap", "uoro"}
    | {"eprop", "immediate", "kernl", "ok_rtrl", "reverse_kf_rtrl", "sketched_rtrl"},
    "truncation": {"draw_cuts", "renewal_cuts", "renewal_keep", "window_weights", "sliding_weights", "random_weights"}
    | {"one_link_weights", "choose_lag", "synthetic_gradients"}
    | {"cut", "lost_norms", "make_probe", "value_and_windowed_grad", "windowed_scan", "windowed_solve"},
    "spectra": {"entropy_rate", "error_horizon", "kaplan_yorke_dimension", "newton_outlook", "pool_exponents"}
    | {"subspace_angles"},
    "sharded": {"adjoints", "bptt", "gradient_terms", "leading_singular_values", "log_singular_values", "map_points"}
    | {"lyapunov_exponents", "row_shardings", "stream_exponents", "unroll"},
    "derivations": {"check_vjp"},
    "report": {"assert_verified", "load", "verify"},
}


def _unrolled(model, params, inputs, targets, initial):
    return trajectories.unroll(model, params, inputs, initial=initial)


def _by_newton(model, params, inputs, targets, initial):
    return trajectories.unroll(model, params, inputs, initial=initial, method="newton")


def chain_of(model, *data):
    return jacobians.step_jacobians(model, data[0], _unrolled(model, *data))


def _of_route(route, **options):
    return lambda model, params, inputs, targets, initial: route(
        model, params, inputs, targets, initial=initial, **options
    )


def _of_rule(rule):
    return lambda model, params, inputs, targets, initial: online.run(
        rule, _summed(model), params, inputs, targets, key=KEY, initial=initial
    )


def _bootstrapped(model, params, inputs, targets, initial):
    size = sum(leaf.size for leaf in jax.tree.leaves(initial))
    weights = jnp.full((size, size + 1), 0.1)
    return truncation.bootstrapped(model, params, inputs, targets, initial=initial, window=2, weights=weights)


def _summed(model):
    return model._replace(reduction="sum")


def _table(model, *data):
    table = _of_route(terms.gradient_terms)(model, *data)
    return table, table.profile(), table.reach(0.9)


def _saliency(model, *data):
    found = _of_route(terms.input_saliency)(model, *data)
    felt = jnp.exp(found.log_norms)  # −inf is no number to compare
    return felt, found.profile(), found.reach(0.9), found.recall_density()


def _stream(model, params, inputs, targets, initial):
    return _of_few_steps(spectra.stream_exponents(model, params, inputs, initial=initial, warm_up=1, blocks=2))


def _of_few_steps(found):
    """All but what so short a chain does not tell, and is NaN: the standard error and what belongs to it."""
    untold = ("standard_error", "degrees_of_freedom", "correlation_time")
    return {name: field for name, field in found._asdict().items() if name not in untold}


def _structured(model, *data):
    return jacobians.structured_jacobians(model, data[0], _unrolled(model, *data)).assemble()


def _leading(model, *data):
    return spectra.leading_singular_values(model, data[0], _unrolled(model, *data), k=1, key=KEY, max_rounds=2)


def _fixed(model, params, inputs, targets, initial):
    visited = _unrolled(model, params, inputs, targets, initial).states
    states = jax.tree.map(lambda leaf: jnp.stack((leaf[0], leaf[1] / 2)), visited)
    x = jax.tree.map(lambda leaf: leaf[0], inputs)
    return fixed_points.find_fixed_points(model, params, states, x, num_steps=2, polish_steps=2)


def _cycles(model, params, inputs, targets, initial):
    visited = _unrolled(model, params, inputs, targets, initial).states
    states, xs = (jax.tree.map(lambda leaf: leaf[:2], tree) for tree in (visited, inputs))
    found = fixed_points.find_cycles(model, params, states, xs, period=2, polish_steps=2)
    return found._replace(error=jnp.exp(-found.error), multiplier_error=jnp.exp(-found.multiplier_error))


def _merged_cycles(model, *data):
    return fixed_points.merge_cycles(_cycles(model, *data))


def _covariant(found):
    return found._replace(standard_error=jnp.zeros(()))  # of so few


def _stream_covariant(model, params, inputs, targets, initial):
    return _covariant(spectra.stream_covariant_vectors(model, params, inputs, initial=initial, k=1, every=1))


def _merged(model, *data):
    return fixed_points.merge_points(_fixed(model, *data))


def _certified(model, params, inputs, targets, initial):
    """Both bounds after one step."""
    first = lambda leaf: leaf[0]
    x, y = jax.tree.map(first, inputs), jax.tree.map(first, targets)
    state = online.sketched_rtrl(1).init(_summed(model), params, initial=initial, x=x)
    state = online.sketched_rtrl(1).update(params, state, x, y)[0]
    return online.bias_bound(state), online.bias_bound(state, state.model_state)


def _stale(model, params, inputs, targets, initial):
    import optax

    with jax.numpy_dtype_promotion("standard"):
        return online.staleness(
            online.rtrl(), _summed(model), params, inputs, targets, optimizer=optax.sgd(1e-3), key=KEY
        )


def _of_windows(model, params, inputs, targets, initial):
    rule = perturbation.persistent_strategies(scale=0.1)
    state = rule.init(_summed(model), params, key=KEY, initial=initial)
    return rule.update(params, state, inputs, targets)[1:]


def _assessed(model, params, inputs, targets, initial):
    estimator = functools.partial(truncation.lag, num_lags=2)
    whole = assessment.assess(model, estimator, params, inputs, targets, initial=initial).whole
    return whole.projection, whole.bias, whole.cosine  # of one estimate there is no z-score


def _cost(model, params, inputs, targets, initial):
    return assessment.cost_per_step(model, gradients.bptt, params, inputs, targets)


def _aligned(model, *data):
    return assessment.alignment([_of_route(route)(model, *data)[1] for route in (gradients.bptt, gradients.autodiff)])


def _compared(model, *data):
    grads = _of_route(gradients.bptt)(model, *data)[1]
    report = comparison.compare(grads, grads)
    assert report.relative == 0
    return jnp.asarray(report.relative)


def _checked_gradient(model, params, inputs, targets, initial):
    report = derivations.check_gradient(model, gradients.bptt, key=KEY, params=params, inputs=inputs, targets=targets)
    assert report.ok, str(report)
    return jnp.zeros(())


def _asserted_gradient(model, params, inputs, targets, initial):
    derivations.assert_correct(model, gradients.bptt, key=KEY, params=params, inputs=inputs, targets=targets)
    return jnp.zeros(())


def _checked(model, params, inputs, targets, initial):
    """The hand derivation, or for a step alone one by automatic differentiation."""
    derivation = model.derivation or _automatic(model)
    report = derivations.check(model, derivation, key=KEY, params=params, inputs=inputs)
    assert report.ok, str(report)
    return jnp.zeros(())


def _automatic(model):

    def pullback(params, state, x, cotangent):
        return partials.vjp(lambda at: model.step(*at), (params, state, x))[1](cotangent)

    return derivations.Derivation(partials.step_partials(model, source="automatic").jacobian, pullback)


def _xrayed(model, params, inputs, targets, initial):
    found = report.xray(model, params, inputs, targets, initial=initial)
    assert set(found.summary["wrong"]) <= {"differences"}, str(found)  # a stop_gradient is no derivative of C
    return found.norms, found.profile


def _partials(model, params, inputs, targets, initial):
    x = jax.tree.map(lambda leaf: leaf[0], inputs)
    return partials.step_partials(model).pull_params(params, initial, x, jax.tree.map(jnp.ones_like, initial))


def _monitored(model, *data):
    numbers = _of_route(report.monitor, samples=3, clip=1.0)(model, *data)
    return {name: value for name, value in numbers.items() if name != "lambda_1_error"}  # NaN of so few steps


def _losses(model, *data):
    run = _unrolled(model, *data)
    return models.step_losses(model, data[0], run.states, data[2], inputs=data[1], previous=run.previous)


def _bounded(chain):
    return spectra.bounds(chain, weight=chain[0], slope=1.0)


CHAIN = {  # what takes Jacobians alone
    "jacobians.product": lambda chain: jacobians.product(chain, 1, 3),
    "jacobians.prefix_products": jacobians.prefix_products,
    "spectra.log_singular_values": functools.partial(spectra.log_singular_values, every=2),
    "spectra.singular_decomposition": spectra.singular_decomposition,
    "spectra.lyapunov_exponents": lambda chain: _of_few_steps(spectra.lyapunov_exponents(chain, warm_up=1, blocks=2)),
    "spectra.log_growth": spectra.log_growth,
    "spectra.covariant_vectors": lambda chain: _covariant(spectra.covariant_vectors(chain, k=1)),
    "spectra.pair_norms": spectra.pair_norms,
    "spectra.bounds": _bounded,
}
TRACED = {
    "models.step_losses": _losses,
    "partials.step_partials": _partials,
    "trajectories.unroll": lambda *at: _unrolled(*at).states,
    "trajectories.unroll newton": lambda *at: _by_newton(*at).states,
    "trajectories.flatten_steps": lambda *at: trajectories.flatten_steps(_unrolled(*at).states),
    "jacobians.step_jacobians": chain_of,
    "jacobians.structured_jacobians": _structured,
    "gradients.autodiff": _of_route(gradients.autodiff),
    "gradients.bptt": _of_route(gradients.bptt),
    "gradients.forward_sensitivity": _of_route(gradients.forward_sensitivity),
    "gradients.double_sum": _of_route(gradients.double_sum),
    "gradients.adjoints": _of_route(gradients.adjoints),
    "gradients.forward_adjoint": _of_route(gradients.forward_adjoint),
    "gradients.propagate_errors": _of_route(gradients.propagate_errors),
    "terms.gradient_terms": _table,
    "terms.input_saliency": _saliency,
    "truncation.windowed": _of_route(truncation.windowed, window=2),
    "truncation.sliding": _of_route(truncation.sliding, stride=2, num_lags=3),
    "truncation.lag": _of_route(truncation.lag, num_lags=2),
    "truncation.bootstrapped": _bootstrapped,
    "truncation.randomised": _of_route(truncation.randomised, keep=0.7, cuts=CUTS),
    "truncation.adaptive": _of_route(truncation.adaptive, tolerance=0.5, num_lags=3),
    "truncation.lag_profile": _of_route(truncation.lag_profile, num_lags=3),
    "truncation.weighted_gradient": _of_route(truncation.weighted_gradient, weights=WEIGHTS),
    "online.run rtrl": _of_rule(online.rtrl()),
    "online.run uoro": _of_rule(online.uoro()),
    "online.run kf_rtrl": _of_rule(online.kf_rtrl()),
    "online.staleness": _stale,
    "perturbation.forward_gradient": _of_route(perturbation.forward_gradient, key=KEY),
    "perturbation.evolution_strategies": _of_route(perturbation.evolution_strategies, key=KEY, window=2, scale=0.1),
    "perturbation.persistent_strategies": _of_windows,
    "perturbation.node_perturbation": _of_route(perturbation.node_perturbation, key=KEY),
    "perturbation.node_perturbation noise": _of_route(perturbation.node_perturbation, key=KEY, scale=0.1),
    "spectra.stream_exponents": _stream,
    "spectra.leading_singular_values": _leading,
    "spectra.stream_covariant_vectors": _stream_covariant,
    "fixed_points.find_fixed_points": _fixed,
    "fixed_points.find_cycles": _cycles,
    "assessment.assess": _assessed,
    "report.monitor": _monitored,
    "assessment.alignment": _aligned,
}
EAGER = {  # what needs numbers
    "online.run snap": _of_rule(online.snap(2)),
    "online.run rflo": _of_rule(online.rflo()),
    "online.bias_bound": _certified,
    "fixed_points.merge_points": _merged,
    "fixed_points.merge_cycles": _merged_cycles,
    "assessment.cost_per_step": _cost,
    "comparison.compare": _compared,
    "derivations.check": _checked,
    "derivations.check_gradient": _checked_gradient,
    "derivations.assert_correct": _asserted_gradient,
    "report.xray": _xrayed,
}
LONG = {"report.xray"}  # takes seconds: two cells are enough
FUNCTIONS = {**TRACED, **EAGER, **CHAIN}


def run(function, model, data):
    """One function of a model, jitted where it may be."""
    call = lambda *data: FUNCTIONS[function](model, *data)
    return (jax.jit(call) if function in TRACED else call)(*data)


NEEDS_FACTORED = {"jacobians.structured_jacobians", "online.run kf_rtrl", "online.run rflo"}


def public_functions():
    """{"module.name"} of every public function of the toolkit that is no maker."""
    found = set()
    for module_name in jaxbptt.__all__:
        module = getattr(jaxbptt, module_name)
        names = set(getattr(module, "__all__", ())) - MAKERS.get(module_name, set())
        found |= {f"{module_name}.{name}" for name in names if callable(getattr(module, name))}
    return {name for name in found if name.rpartition(".")[2][0].islower()}

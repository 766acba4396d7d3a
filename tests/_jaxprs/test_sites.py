"""Which operations rewriting knows: a new one in JAX must be put somewhere before it is met in silence."""

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import primitives

from jaxbptt._jaxprs import joins, sites
from tests import cases

CALLS = {"call", "closed_call", "cond", "custom_jvp_call", "custom_vjp_call", "jit", "scan", "while"}
CALLS |= {
    "checkpoint",
    "custom_lin",
    "eval_jaxpr",
    "custom_linear_solve",
    "name",
    "remat2",
    "sharding_constraint",
    "device_put",
}
PRODUCTS = {"conv_general_dilated", "dot_general", "fft", "triangular_solve", "tridiagonal_solve"}
SHAPES = {
    "broadcast_in_dim",
    "concatenate",
    "pad",
    "reshape",
    "rev",
    "slice",
    "squeeze",
    "transpose",
    "reduce_precision",
}
PLACES = {
    "dynamic_slice",
    "dynamic_update_slice",
    "gather",
    "get",
    "scatter",
    "scatter-add",
    "swap",
    "argmax",
    "argmin",
}
REDUCTIONS = {"cumsum", "reduce", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_sum", "reduce_xor"}
REDUCTIONS |= {"reduce_window_sum", "select_and_gather_add", "select_and_scatter_add"}
NUMBERS = {"complex", "conj", "imag", "real", "reduce_precision"}
FLAT = {"ceil", "floor", "round", "stop_gradient", "iota", "empty2", "is_finite", "argmax", "argmin"}  # zero slope
WHOLE = {"and", "not", "or", "xor", "clz", "population_count", "eq_to", "le_to", "lt_to", "bitcast_convert_type"}
WHOLE |= {"shift_left", "shift_right_arithmetic", "shift_right_logical"}
RANDOM = {"random_bits", "random_fold_in", "random_seed", "random_split", "rng_bit_generator", "rng_uniform"}
RANDOM |= {"threefry2x32"}
DEVICES = {"after_all", "all_gather", "all_to_all", "axis_index", "create_token", "pmax", "pmin", "ppermute", "psum"}
DEVICES |= {"ragged_all_to_all"}
# Linear, constant or opened: no slip of their own.
STRUCTURAL = CALLS | PRODUCTS | SHAPES | PLACES | REDUCTIONS | NUMBERS | FLAT | WHOLE | RANDOM | DEVICES

# Nonlinear, and no slip is looked for at them.
UNKNOWN = {"atan2", "bessel_i0e", "bessel_i1e", "igamma", "igamma_grad_a", "igammac", "nextafter", "polygamma", "rem"}
UNKNOWN |= {"random_gamma", "regularized_incomplete_beta", "zeta"}
UNKNOWN |= {"cumlogsumexp", "cummax", "cummin", "cumprod", "reduce_prod", "sort", "top_k", "approx_top_k"}
UNKNOWN |= {"reduce_window", "reduce_window_max", "reduce_window_min", "select_and_scatter"}
UNKNOWN |= {"scatter-max", "scatter-min", "scatter-mul"}
UNKNOWN |= {"cholesky", "eig", "eigh", "hessenberg", "householder_product", "lu", "qr", "schur", "svd", "tridiagonal"}


def exported():
    return {getattr(primitives, name).name for name in dir(primitives) if name.endswith("_p")}


def test_every_primitive_of_jax_is_known_or_known_to_be_unknown():
    known = sites.AFFINE | sites.NONLINEAR | STRUCTURAL
    assert not exported() - known - UNKNOWN, "new in JAX: put them into sites.py, or here"
    assert not known & UNKNOWN


def test_an_operation_is_in_one_group():
    assert not sites.AFFINE & sites.NONLINEAR
    assert not (sites.AFFINE | sites.NONLINEAR) & STRUCTURAL
    assert joins.BILINEAR <= sites.AFFINE | STRUCTURAL


@pytest.mark.parametrize(
    ("name", "names", "carries"),
    [("linear", [], 1), ("elman", ["tanh"], 1), ("gru", ["logistic", "logistic", "tanh"], 2),
     ("lstm", ["logistic", "logistic", "tanh", "logistic", "tanh"], 2), ("softplus", ["custom_jvp_call"], 1)],
)  # fmt: skip
def test_sites_of_the_built_in_cells(name, names, carries):
    cell = cases.CELLS[name]
    params, inputs, _, state = cases.instance(cell, jax.random.key(0))
    found = sites.find_sites(cell.step, params, state, inputs[0])
    assert sorted(site.name for site in found.sites[: found.num_primary]) == sorted(names)
    assert len(found.carries) == carries
    assert (found.lag is None) == (name == "lstm")


@pytest.mark.parametrize("written", [lambda a: 1 / (1 + jnp.exp(-a)), lambda a: jnp.tanh(a / 2) / 2 + 0.5])
def test_a_nonlinearity_is_one_however_it_is_written(written):
    found = sites.find_sites(lambda w, h, x: written(w @ h + x), jnp.ones((2, 2)), jnp.ones(2), jnp.ones(2))
    assert found.num_primary == 1


def test_a_step_that_cannot_be_read_has_no_sites():
    found = sites.find_sites(lambda w, h, x: jnp.full(2, float(h[0])), jnp.ones((2, 2)), jnp.ones(2), jnp.ones(2))
    assert found.flat is None
    assert found.sites == ()

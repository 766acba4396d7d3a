"""Hops, relays and scans over devices, against the same in a loop; what does not fit is refused in one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxbptt import cells, models, sharded, trajectories
from jaxbptt.sharded import _spans
from tests.sharded.devices import axis_of, mesh_of


def on_devices(function, mesh, *data):
    cut = PartitionSpec("time")
    return jax.jit(_spans.on_devices(function, mesh, (cut,) * len(data), cut))(*data)


@pytest.mark.sweep
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_scans_and_relays_are_those_of_a_loop(count, reverse):
    mesh = mesh_of(count)
    axis = axis_of(mesh)
    matrices = jax.random.normal(jax.random.key(0), (count, 2, 2))

    def both(own):
        matrix = own[0]
        joined, before = _spans.scan_devices(lambda earlier, later: later @ earlier, matrix, axis, reverse=reverse)
        relayed = _spans.relay(lambda start: matrix @ start, jnp.eye(2), axis, reverse=reverse)
        return joined[None], before[None], relayed[None]

    cut = PartitionSpec("time")
    joined, before, relayed = jax.jit(_spans.on_devices(both, mesh, (cut,), (cut, cut, cut)))(matrices)
    total = np.eye(2)
    for d in reversed(range(count)) if reverse else range(count):
        np.testing.assert_allclose(relayed[d], total, rtol=1e-13)
        if d != (count - 1 if reverse else 0):
            np.testing.assert_allclose(before[d], total, rtol=1e-13)
        total = matrices[d] @ total
        np.testing.assert_allclose(joined[d], total, rtol=1e-13)


MESH = mesh_of(2, 2, names=("time", "batch"))
MODEL = models.sequence_model(cells.elman(2, 3), 1)
DATA = jnp.ones((8, 2)), jnp.ones((8, 1))
CHAIN = jnp.ones((8, 2, 2))


def gradient(model=MODEL, data=DATA, function=sharded.bptt, **options):
    return function(model, MODEL.init(jax.random.key(0)), *data, mesh=MESH, **options)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: gradient(data=(jnp.ones((7, 2)), jnp.ones((7, 1)))), ValueError,
         r"inputs: got T = 7 on the 2 devices of mesh axis 'time', expected a multiple of 2, such as 6 or 8"),
        (lambda: gradient(time="steps"), ValueError, r"time: got 'steps', expected an axis .*: 'time', 'batch'"),
        (lambda: gradient(batch="batch"), ValueError, r"model: got one without a batch .* expected models.batched"),
        (lambda: gradient(models.batched(MODEL, 3), tuple(jnp.stack([leaf] * 3, 1) for leaf in DATA), batch="batch"),
         ValueError, "inputs: got B = 3 on the 2 devices"),
        (lambda: gradient(batch="time"), ValueError, "batch: got 'time', expected another mesh axis"),
        (lambda: gradient(block=2, memory=9), ValueError, "memory: got 9 beside block = 2"),
        (lambda: gradient(adjoint="both"), ValueError, "adjoint: got 'both', expected one of"),
        (lambda: gradient(function=sharded.adjoints, time="steps"), ValueError, "time: got 'steps'"),
        (lambda: sharded.bptt(MODEL, MODEL.init(jax.random.key(0)), *DATA, mesh=4), TypeError, "mesh: got int"),
        (lambda: gradient(data=DATA[:1], function=sharded.unroll, method="parallel"), ValueError,
         "cell: got one that is not known to be affine"),
        (lambda: sharded.log_singular_values(CHAIN[:5], mesh=MESH), ValueError, "jacobians: got T = 5 on the 2"),
        (lambda: sharded.log_singular_values(CHAIN, mesh=MESH, method="best"), ValueError, "method: got 'best'"),
        (lambda: sharded.log_singular_values(CHAIN.astype(jnp.float16), mesh=MESH), TypeError, "float32 or float64"),
        (lambda: sharded.lyapunov_exponents(CHAIN[:5], mesh=MESH), ValueError, "jacobians: got T = 5 on the 2 devices"),
        (lambda: sharded.lyapunov_exponents(CHAIN, mesh=MESH, k=3), ValueError, "k: got 3"),
        (lambda: sharded.lyapunov_exponents(CHAIN.at[5].set(jnp.nan), mesh=MESH), ValueError, "t = 6"),
        (lambda: gradient(function=sharded.gradient_terms, losses=(3, 6)), ValueError, "in several spans of 4 steps"),
        (lambda: gradient(function=sharded.gradient_terms, losses=(3, 3)), ValueError, r"\(3, 3\), expected 0 ≤ first"),
        (lambda: gradient(function=sharded.gradient_terms, losses=(3, 9)), ValueError, "last ≤ T = 8"),
        (lambda: gradient(function=sharded.gradient_terms, losses=(True, 2)), TypeError, "losses: got .*static ints"),
        (lambda: gradient(function=sharded.gradient_terms, losses=3), TypeError, "losses: got 3"),
        (lambda: sharded.map_points(jnp.sin, jnp.ones(3), mesh=MESH, axis="time"), ValueError, "points: got P = 3"),
        (lambda: sharded.map_points(jnp.sin, (jnp.ones(2), jnp.ones(4)), mesh=MESH, axis="time"), ValueError,
         "points: got leaves of shapes"),
        (lambda: sharded.row_shardings(jnp.ones(2), mesh=MESH), ValueError, "state: got 'state', expected an axis"),
        (lambda: sharded.row_shardings([1.0], mesh=MESH, state="time"), TypeError, "params: got float, expected"),
        (lambda: sharded.map_points(None, jnp.ones(2), mesh=MESH, axis="time"), TypeError, "function: got NoneType"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_the_first_bad_step_is_named():
    model = models.sequence_model(cells.linear(2, 3), 1)
    params = model.init(jax.random.key(0))
    params = params._replace(cell=params.cell._replace(w_hh=1e200 * jnp.eye(3)))
    with pytest.raises(ValueError, match="t = 3"):
        sharded.bptt(model, params, *DATA, mesh=MESH)


@pytest.mark.parametrize(
    ("kinds", "names"),
    [
        ((AxisType.Explicit,), ("time",)),
        ((AxisType.Auto,), ("time",)),
        ((AxisType.Explicit, AxisType.Auto), ("other", "time")),
    ],
)
def test_a_mesh_that_is_set_by_the_user_is_taken(kinds, names):
    mesh = jax.make_mesh((1, 2)[-len(names) :], names, axis_types=kinds, devices=jax.devices()[:2])
    cell = cells.lru(2, 3)
    params = cell.init(jax.random.key(0))
    expected = trajectories.unroll(cell, params, DATA[0]).states
    with jax.set_mesh(mesh):
        actual = jax.jit(lambda params: sharded.unroll(cell, params, DATA[0], mesh=mesh).states)(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), actual, expected)


def test_another_mesh_than_the_one_that_is_set_is_one_line():
    with (
        jax.set_mesh(mesh_of(2)),
        pytest.raises(ValueError, match=r"mesh: got \{'time': 4\}, expected .* \{'time': 2\}"),
    ):
        sharded.log_singular_values(CHAIN, mesh=mesh_of(4))

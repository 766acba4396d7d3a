"""Gradients, also of wide and of many nets; step Jacobians, terms and pairs, and the growth of time with T, N and B.

float32, and gradients in each dtype of the run.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
from jax.flatten_util import ravel_pytree

from jaxbptt import jacobians, spectra, terms
from jaxbptt.trajectories import unroll

from . import machine, peers
from .cases import TOLERANCES, Case, grid, make_case, precision
from .timing import Contestant, fit_exponent, race

TOLERANCE = TOLERANCES["float32"]
WIDE = (  # T, N, B
    *((256, units, 32) for units in (1024, 2048)),
    *((length, units, 1024) for length in (16, 64) for units in (64, 256)),
    (65536, 32, 1),
)
WIDE_QUICK = (32, 512, 32), (16, 64, 256), (4096, 32, 1)
WIDE_UNITS = 512  # from which on a product is in the race
WIDE_ROUNDS = 3  # a case takes up to a minute a round
PRODUCT = "square product"
PARALLEL = 256  # B·N up to which the two ways to the adjoint are compared, on an accelerator
JACOBIAN_STEPS = 128
TERM_STEPS, TERM_UNITS = 512, 64
SCALING = {"T": (128, 512, 2048, 8192), "N": (32, 64, 128, 256, 512), "B": (1, 4, 16, 64)}
SCALING_AT = {"T": 256, "N": 64, "B": 1}  # what the other two are


def gradient_rows(config: Any, progress: Callable) -> Iterator[dict]:
    """dC/dθ over the grid, by `gradients.bptt` and every peer."""
    for dtype in config.dtypes:
        for cell, length, units, batch in grid(config.cells, config.lengths, config.sizes, config.batches):
            progress(f"gradients: {cell}, T {length}, N {units}, B {batch}, {dtype}")
            with precision(dtype):
                case = make_case(cell, length, units, batch, dtype=dtype)
                makers = [("jaxbptt", partial(peers.ours, case))]
                makers += [("jaxbptt, step only", partial(peers.ours, without_derivation(case)))]
                if jax.default_backend() != "cpu" and units * batch <= PARALLEL:
                    for adjoint in ("sequential", "parallel"):
                        makers += [(f"jaxbptt, {adjoint}", partial(peers.ours, case, adjoint=adjoint))]
                yield from _race_peers("gradients", case, makers, seconds=config.seconds)


def wide_rows(config: Any, progress: Callable) -> Iterator[dict]:
    """dC/dθ of wide nets, of many sequences and of a long one; wide ones in turns with a square matrix product."""
    sizes = WIDE_QUICK if config.quick else WIDE
    for dtype in config.dtypes:
        for cell in config.cells:
            for length, units, batch in sizes:
                progress(f"wide: {cell}, T {length}, N {units}, B {batch}, {dtype}")
                with precision(dtype):
                    case = make_case(cell, length, units, batch, dtype=dtype)
                    product = (PRODUCT, partial(machine.square_product, _product_size(), case.inputs.dtype))
                    makers = [("jaxbptt", partial(peers.ours, case)), *([product] if units >= WIDE_UNITS else [])]
                    yield from _race_peers("wide", case, makers, seconds=config.seconds, rounds=WIDE_ROUNDS)


def _race_peers(suite, case, makers, **options):
    """Rows of makers and of every peer; ours says how much memory it takes of the plain scan's, and of the product."""
    makers = [*makers, *((name, partial(make, case)) for name, make in peers.PEERS.items())]
    rows = race(makers, tolerance=TOLERANCES[case.inputs.dtype.name], flops=case.flops(), **options)
    ours, found = rows[0], {row["contestant"]: row for row in rows}
    if found["autodiff"].get("temp_bytes"):
        ours["memory_ratio"] = ours["temp_bytes"] / found["autodiff"]["temp_bytes"]
    if PRODUCT in found:
        product = found[PRODUCT]
        product["flops"] = 2 * _product_size() ** 3
        product["gflops"] = product["flops"] / product["seconds"] / 1e9
        ours["product_share"] = case.flops() / product["flops"] * product["ratio"]
    return _labelled(rows, suite, case)


def _product_size():
    """Nearly as fast as the largest, and short enough to run undisturbed."""
    return machine.roofline_sizes()[-2]


def without_derivation(case: Case) -> Case:
    """The same recurrence known by its step alone, as `cells.from_step` makes it."""
    return case._replace(model=case.model._replace(derivation=None))


def jacobian_rows(config: Any, progress: Callable) -> Iterator[dict]:
    """J_t of every step: closed form against `vmap(jacfwd)`."""
    for cell in config.cells:
        for units in config.sizes:
            case = make_case(cell, min(JACOBIAN_STEPS, max(config.lengths)), units)
            progress(f"jacobians: {cell}, T {case.length}, N {units}")
            trajectory = jax.jit(lambda params, inputs, model=case.model: unroll(model, params, inputs))(
                case.params, case.inputs
            )
            makers = [(name, partial(make, case, trajectory)) for name, make in JACOBIANS.items()]
            yield from _labelled(race(makers, seconds=config.seconds, tolerance=TOLERANCE), "jacobians", case)


def _closed(case, trajectory):
    function = lambda params, trajectory: jacobians.step_jacobians(case.model, params, trajectory)
    return Contestant(function, (case.params, trajectory), note="step_jacobians, auto")


def _structured(case, trajectory):
    function = lambda params, trajectory: jacobians.structured_jacobians(case.model, params, trajectory)
    return Contestant(
        function, (case.params, trajectory), convert=lambda chain: chain.assemble(), note="diagonals and blocks"
    )


def _jacfwd(case, trajectory):
    def function(params, trajectory):
        def step(state, x):
            flat, unravel = ravel_pytree(state)
            following = lambda h: ravel_pytree(case.model.step(params, unravel(h), x))[0]
            return jax.jacfwd(following)(flat)

        return jax.vmap(step)(trajectory.previous, trajectory.inputs)

    return Contestant(function, (case.params, trajectory), note="the same step")


JACOBIANS = {"jaxbptt": _closed, "jaxbptt, structured": _structured, "vmap(jacfwd)": _jacfwd}


def term_rows(config: Any, progress: Callable) -> Iterator[dict]:
    """`gradient_terms` and all-pairs norms against their products' flops in one square product, made in turns."""
    length, units = min(TERM_STEPS, max(config.lengths)), min(TERM_UNITS, max(config.sizes))
    case = make_case("tanh", length, units)
    steps = jax.jit(
        lambda params, inputs: jacobians.step_jacobians(case.model, params, unroll(case.model, params, inputs))
    )(case.params, case.inputs)

    def table(params, inputs, targets):
        return terms.gradient_terms(case.model, params, inputs, targets).norms

    def pairs(steps):
        return spectra.pair_norms(steps, spectral=False).log_frobenius

    entries = {
        "gradient_terms": (Contestant(table, (case.params, case.inputs, case.targets)), 2 * units**2 * length**2),
        "pair_norms": (Contestant(pairs, (steps,), note="Frobenius"), units**3 * length**2),
    }
    for name, (contestant, flops) in entries.items():
        progress(f"terms: {name}, T {length}, N {units}")
        size = machine.roofline_sizes()[1]  # long enough to be fast, short enough to run undisturbed
        makers = [(name, lambda made=contestant: made), (PRODUCT, partial(machine.square_product, size))]
        rows = race(makers, seconds=config.seconds, tolerance=TOLERANCE)
        rows[0].update(flops=flops, gflops=flops / rows[0]["seconds"] / 1e9)
        rows[0]["times_roofline"] = 2 * size**3 / flops / rows[1]["ratio"]
        yield from _labelled(rows, "terms", case)


def scaling_rows(config: Any, progress: Callable) -> Iterator[dict]:
    """Time of ours and of autodiff over one size, the others fixed, for tanh; each with its fitted exponent."""
    limits = {"T": max(config.lengths), "N": 2 * max(config.sizes), "B": 2 * max(config.batches)}
    for axis, values in SCALING.items():
        found: list[dict] = []
        swept = [value for value in values if value <= limits[axis]]
        for value in swept:
            size = {**SCALING_AT, axis: value}
            progress(f"scaling: {axis} {value}")
            case = make_case("tanh", size["T"], size["N"], size["B"])
            makers = [("jaxbptt", partial(peers.ours, case)), ("autodiff", partial(peers.autodiff, case))]
            rows = race(makers, seconds=config.seconds / 2, tolerance=TOLERANCE, flops=case.flops())
            found += _labelled(rows, "scaling", case)
        for row in found:
            yield {**row, "axis": axis, **_exponent(found, row["contestant"], axis)}


def _exponent(rows: Sequence[dict], contestant: str, axis: str) -> dict:
    points = [(row[axis], row["seconds"]) for row in rows if row["contestant"] == contestant and "seconds" in row]
    if len(points) < 2:
        return {"exponent": None, "fitted": None}
    sizes, seconds = zip(*points, strict=True)
    return {"exponent": fit_exponent(sizes, seconds), "fitted": [sizes[0], sizes[-1]]}


def _labelled(rows: Sequence[dict], suite: str, case: Case) -> list[dict]:
    return [{"suite": suite, **case.label(), **row} for row in rows]

"""What dh_t/dh_0 does to vectors: singular values over time and Lyapunov exponents, or the leading few without J_t."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxbptt import cells, spectra
from jaxbptt.cells.structure import BlockParts, BorderedParts
from jaxbptt.derivations.compiled import map_rows
from jaxbptt.jacobians.structured import STRUCTURED, moving_jacobians
from jaxbptt.partials import step_partials
from jaxbptt.report._problem import Subject, longest_stretch
from jaxbptt.trajectories import Trajectory, unroll

RECORDS = 32
MOST_ENTRIES = 2**27  # T·N²: 1 GiB of float64
MOST_STATE = 512  # N: more take minutes
MOST_ERROR_WORK = 2**36  # R·T·N³ of the passes back that errors take: about ten seconds
FEW = 4  # leading values without J_t
FEW_RECORDS = 4  # over the second half, where growth is measured


class Spectra(NamedTuple):
    """Of dh_t/dh_start over the longest stretch without a reset, by sequence. None: see `missing`."""

    stretch: tuple[int, int] | None  # steps start+1 … stop
    steps: Int[np.ndarray, " records"]  # t − start
    log_sigma: Float[np.ndarray, "batch records values"] | None  # descending; NaN where rounding leaves it unknown
    error: Float[np.ndarray, "batch records values"] | None  # nats
    exponents: Float[np.ndarray, "batch state"] | None  # nats per step
    standard_error: Float[np.ndarray, "batch state"] | None
    missing: dict[str, str]  # field of an XRay -> why it is None


def cubes_of(subject: Subject) -> int:
    """Σ n³ over the blocks of J_t that are decomposed: N³ where its structure is not known."""
    parts = step_partials(subject.model).parts
    if isinstance(parts, BlockParts):
        blocks, entries = parts.place.shape[:2]
        return blocks * entries**3
    return subject.size if isinstance(parts, BorderedParts) else subject.size**3


def is_large(subject: Subject) -> bool:
    """Whether the Jacobians are too many or too large to be formed."""
    if cubes_of(subject) < subject.size**3:
        return cubes_of(subject) > MOST_STATE**3
    return subject.size > MOST_STATE or subject.problem.length * subject.size**2 > MOST_ENTRIES


def measure_spectra(subject: Subject, every: int | None) -> Spectra:
    """All singular values with errors, and exponents; of a large state the leading few."""
    stretch = longest_stretch(subject.model, subject.problem.inputs, subject.problem.length)
    if stretch is None:
        why = "every step is a reset" if subject.batch is None else "at every step some sequence is reset"
        return Spectra(None, np.zeros(0, int), None, None, None, None, dict.fromkeys(("log_sigma", "exponents"), why))
    steps = _recorded(stretch[1] - stretch[0], every)
    return (_leading if is_large(subject) else _all)(subject, stretch, steps)


def _recorded(count, every):
    every = max(1, count // RECORDS) if every is None else min(every, count)
    return np.unique(np.append(np.arange(every, count + 1, every), count))


def _all(subject, stretch, steps):
    (start, stop), every = stretch, int(steps[0])
    work = len(steps) * (stop - start) * cubes_of(subject) * len(subject.chosen)
    with_errors = work <= MOST_ERROR_WORK

    def jacobians(problem):
        params, inputs, _, initial, _ = problem
        trajectory = unroll(subject.model, params, inputs, initial=initial)
        chain = moving_jacobians(subject.model, params, trajectory)
        return chain.span(start, stop) if isinstance(chain, STRUCTURED) else chain[start:stop]

    def decompose(_, chain):
        if with_errors:
            found = spectra.log_singular_values(chain, every=every, errors=True)
            values, error = found.log_sigma, found.error
        else:
            values, error = spectra.log_singular_values(chain, every=every), jnp.zeros(())
        growth = spectra.lyapunov_exponents(chain)
        return values, error, growth.exponents, growth.standard_error

    each = []
    for index in subject.chosen[:, None]:  # the Jacobians of one sequence at a time
        chain = subject.measure(("jacobians", stretch), jacobians, chosen=index)
        # A program of its own, which models share: it takes most of the time to compile.
        each.append(map_rows(("spectra", every, with_errors), decompose, None, chain))
    values, error, exponents, standard_error = jax.tree.map(lambda *rows: np.concatenate(rows), *each)
    missing = {} if with_errors else {"log_sigma_error": f"the passes back would take {work:.0e} operations"}
    return Spectra(stretch, steps, values, error if with_errors else None, exponents, standard_error, missing)


def _leading(subject, stretch, steps):
    """The FEW leading values, from products with the step alone, at FEW_RECORDS spans in one program: a step that is
    not of the span is the identity."""
    start, stop = stretch
    count = min(FEW, subject.size)
    steps = np.unique(np.linspace((stop - start) / 2, stop - start, FEW_RECORDS).round().astype(int).clip(1))

    def step(params, state, x_and_flag):
        x, counted = x_and_flag
        return jax.tree.map(lambda new, old: jnp.where(counted, new, old), subject.model.step(params, state, x), state)

    masked = cells.from_step(step, subject.model.initial_state)

    def at(problem):
        params, inputs, _, initial, length = problem
        whole = unroll(subject.model, params, inputs, initial=initial)
        times = jnp.arange(length)

        def until(stop):
            flags = (times >= start) & (times < start + stop)
            trajectory = Trajectory(whole.initial, (inputs, flags), whole.states)
            found = spectra.leading_singular_values(
                masked, params, trajectory, k=count, key=jax.random.key(0), oversampling=FEW, max_rounds=FEW
            )
            return found.log_sigma, found.error

        return jax.lax.map(until, jnp.asarray(steps))

    values, error = subject.measure(("leading", stretch, tuple(steps)), at)
    why = f"N = {subject.size}: only products with J_t are formed"
    return Spectra(stretch, steps, values, error, None, None, {"exponents": why})

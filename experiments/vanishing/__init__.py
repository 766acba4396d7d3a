"""When gradients vanish or explode: recurrent gain × scheme × cell on real text, against what theory expects."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import harness, nets, options, systems, text
from experiments.text import KEEP
from jaxbptt import spectra
from jaxbptt.jacobians import product, step_jacobians
from jaxbptt.trajectories import unroll

from .figure import plot, plot_theories
from .sweep import CELLS, GAINS, NAMES, PARTED, SHOWN, THEORIES, Sweep, SymmetricNorms

GATES = {"lstm": lambda factors: factors.forget, "gru": lambda factors: factors.carry}  # ∂⁺h/∂⁺h_{t−1} past the weights
SAMPLES = 8  # steps at which eigenvalues and norms of J_t are taken
RECORDS = 25  # of the singular values over time
WARM_UP = 50  # symbols read before step 1
RADII, POWER, SYMMETRIC = (0.9, 1.0, 1.1), 40, 100  # the symmetric case: ρ(W), t, N


@options.config
class Config:
    text: str | None = options.file("a text file", shown="CPython's documentation")
    keep: tuple = options.choices("letters", KEEP, "kinds of characters of the text that stay; letters always do")
    size: int = options.size(64, "state entries N (an LSTM has N // 2 units)", least=2)
    length: int = options.size(300, "steps T")
    seed: int = options.seed("seed of the weights")
    out: str = options.out("vanishing")


class Point(NamedTuple):
    """One cell under one scheme at one gain."""

    exponents: np.ndarray  # [k]
    standard_error: np.ndarray  # [k]
    carry: np.ndarray  # mean ln of the gate, the largest over units; NaN without one
    norms: np.ndarray  # [S] ln ‖J_t‖ of sampled steps
    eigenvalues: np.ndarray  # [S, N] of J_t
    log_singular_values: np.ndarray  # [R, N] of dh_t/dh_0; R = 0 for gains that are not SHOWN


def run(config: Config, progress: Any = harness.QUIET) -> dict[str, Any]:
    """Every "cell, scheme", "symmetric" and the text's "alphabet", in float64 (the caller enables x64)."""
    (one_hot, alphabet), every = _read_inputs(config), max(1, config.length // RECORDS)
    size = one_hot.shape[1]
    sampled = np.linspace(0, config.length - 1, SAMPLES).astype(int)
    weights, todo = {}, {}

    def measure(given):  # N is the same for every cell: one compilation serves all
        jacobians, carry, shown = given
        exponents, error = spectra.lyapunov_exponents(jacobians, k=max(1, config.size // 4))[:2]
        follow = partial(spectra.log_singular_values, every=every)
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(follow, jacobians))
        followed = jax.lax.cond(shown, follow, lambda jacobians: nothing, jacobians)
        return exponents, error, carry, jacobians[sampled], followed

    def finish(shown, measured):
        exponents, error, carry, of_steps, followed = measured
        norms, eigenvalues = np.log(np.linalg.norm(of_steps, ord=2, axis=(1, 2))), np.linalg.eigvals(of_steps)
        return Point(exponents, error, carry, norms, eigenvalues.astype(complex), followed if shown else followed[:0])

    for cell_name in CELLS:
        make = partial(nets.make_text_cell, cell_name, size, config.size // (2 if cell_name == "lstm" else 1))
        chain_of = partial(_chain, make(), GATES.get(cell_name))
        chain = lambda given, chain_of=chain_of: (*chain_of(given[0], one_hot), given[1])
        for scheme, draw in nets.SCHEMES.items():
            drawn = make(recurrent=draw(1.0)).init(jax.random.key(config.seed))
            weights[cell_name, scheme] = np.multiply.outer(GAINS, _candidate_block(cell_name, drawn.w_hh))
            for i, gain in enumerate(GAINS):
                params, shown = drawn._replace(w_hh=gain * drawn.w_hh), i in SHOWN
                point = harness.Traced((chain, measure), (params, shown), partial(finish, shown))
                todo[f"{cell_name}, {scheme}, gain {gain:.3g}"] = point
    points = iter(progress.sweep_traced(todo, Point(*Point._fields)).values())
    same = {"every": every, "length": config.length, "size": size}
    results = {
        ", ".join(kind): _sweep(*kind, [next(points) for _ in GAINS], block, **same) for kind, block in weights.items()
    }
    return results | {"symmetric": measure_symmetric_norms(), "alphabet": alphabet}


def _read_inputs(config):
    available, alphabet = text.load_text(config.text, config.keep)
    if config.length > (most := len(available) - WARM_UP):
        raise ValueError(f"length: got T = {config.length}, expected at most {most} (the text less {WARM_UP} symbols)")
    return nets.encode_one_hot(available[: config.length + WARM_UP], len(alphabet.characters)), alphabet


def _candidate_block(cell_name, w_hh):
    """The recurrent weights of the tanh gate: LSTM's g, GRU's n, all of an Elman net's."""
    hidden = w_hh.shape[1]
    return np.asarray(w_hh[2 * hidden : 3 * hidden] if cell_name == "lstm" else w_hh[-hidden:])


def _chain(cell, gate, params, inputs):
    """(J_t [T, N, N] after the warm-up, mean ln of the gate)."""
    trajectory = unroll(cell, params, inputs[WARM_UP:], initial=nets.settle(cell, params, inputs[:WARM_UP]))
    carry = jnp.nan
    if gate is not None:
        factors = jax.vmap(lambda state, x: cell.derivation.pullback.factors(params, state, x))
        log_gates = jnp.log(gate(factors(trajectory.previous, trajectory.inputs)))
        carry = jnp.max(jnp.mean(log_gates, axis=0))
    return step_jacobians(cell, params, trajectory), carry


def _sweep(cell_name, scheme, points, weights, *, every, length, size):
    exponents, standard_error, carry, norms, of_steps = (
        np.stack([getattr(point, field) for point in points]) for field in Point._fields[:-1]
    )
    records = np.stack([points[i].log_singular_values for i in SHOWN])
    steps = np.minimum(every * np.arange(1, records.shape[1] + 1), length)
    nothing, eigenvalues = np.full(len(GAINS), np.nan), np.linalg.eigvals(weights)
    sweep = Sweep(
        gains=np.array(GAINS),
        exponents=exponents,
        standard_error=standard_error,
        steps=steps,
        log_singular_values=records,
        weight_eigenvalues=eigenvalues.astype(complex),
        jacobian_eigenvalues=of_steps,
        powers=np.log(np.abs(eigenvalues).max(axis=1)),
        bound=np.log(np.linalg.norm(weights, ord=2, axis=(1, 2))),
        mean_field=nothing,
        carry=carry,
        norms=norms.mean(axis=1),
        radii=np.log(np.abs(of_steps).max(axis=2)).mean(axis=1),
    )
    if cell_name != "elman":
        return sweep._replace(powers=nothing, bound=nothing)
    if scheme != "gaussian":
        return sweep
    drive = 1 / size  # one column of w_hx, N(0, 1/M), at a time
    return sweep._replace(mean_field=np.array([systems.mean_field_exponent(gain, drive) for gain in GAINS]))


def measure_symmetric_norms() -> SymmetricNorms:
    """‖J⁴⁰‖ of the symmetric 100 × 100 linear net, by its spectral radius."""
    norms = []
    for radius in RADII:
        cell = systems.symmetric(SYMMETRIC, radius)
        params = cell.init(jax.random.key(0))
        chain = step_jacobians(cell, params, unroll(cell, params, jnp.zeros((POWER, 0))))
        norms.append(float(jnp.linalg.norm(product(chain, 0, POWER), ord=2)))
    return SymmetricNorms(np.array(RADII), np.array(norms))


def summarise(results: dict[str, Any], config: Config) -> harness.Summary:
    """The verdict on every sweep, and the symmetric case."""
    judged = {name: judge(results[name]) for name in NAMES}
    lines = text.take_alphabet(results)[0] + [_in_words(name, entry) for name, entry in judged.items()]
    norms = {f"{radius:g}": float(norm) for radius, norm in zip(*results["symmetric"], strict=True)}
    said = ", ".join(f"{norm:.3g} for radius {radius}" for radius, norm in norms.items())
    lines.append(f"‖J^{POWER}‖ of the symmetric {SYMMETRIC} × {SYMMETRIC} net: {said}")
    return harness.Summary(lines, {**judged, "symmetric_norms": norms})


def _in_words(name, entry):
    holds = [(THEORIES[key].split(", $")[0], gains) for key, gains in entry["theory_holds"].items() if gains]
    said = ", ".join(f"{theory} from gain {low:.2g} to {high:.2g}" for theory, (low, high) in holds)
    return f"{name}: {entry['verdict']}; right within {PARTED} nats: {said or 'no theory'}"


def judge(sweep: Sweep) -> dict[str, Any]:
    """Where λ_1 crosses zero, in words, too, and over which gains each theory holds."""
    top = sweep.exponents[:, 0]
    theories = {name: getattr(sweep, name) for name in THEORIES if np.isfinite(getattr(sweep, name)).all()}
    holds = {name: _longest_run(np.abs(rates - top) <= PARTED, sweep.gains) for name, rates in theories.items()}
    known = ~np.isnan(top)  # rounding may leave an exponent unknown
    crossing, words = _verdict(top[known], sweep.gains[known])
    if not known.all():
        words += f"; not known for rounding at {(~known).sum()} of {len(known)} gains"
    return {
        "crossing": crossing,
        "gains": sweep.gains.tolist(),
        "exponent": top.tolist(),
        "standard_error": sweep.standard_error[:, 0].tolist(),
        "theory_holds": holds,
        "verdict": words,
    }


def _verdict(top, gains):
    """(gain at which the exponents `top` cross zero, else None; what happens over the gains, in words)."""
    if not len(top):
        return None, "nothing is known"
    up = np.flatnonzero((top[:-1] < 0) & (top[1:] >= 0))
    if len(up):
        around = slice(up[0], up[0] + 2)
        crossing = float(np.exp(np.interp(0, top[around], np.log(gains[around]))))
        after = "exploding" if (top[up[0] + 1 :] > 0).all() else "vanishing or exploding"
        return crossing, f"vanishing below gain {crossing:.2f}, {after} above"
    if (top < 0).all() or (top > 0).all():
        return None, ("vanishing" if top[0] < 0 else "exploding") + f" at every gain, {gains[0]:g} to {gains[-1]:g}"
    return None, "exploding at the smallest gain, but not at every one"


def _longest_run(right, gains):
    """[first, last] gain of the longest unbroken run, None if there is none."""
    runs = np.split(np.arange(len(gains)), np.flatnonzero(np.diff(right)) + 1)
    longest = max((run for run in runs if right[run[0]]), key=len, default=None)
    return None if longest is None else [float(gains[longest[0]]), float(gains[longest[-1]])]


EXPERIMENT = harness.Experiment(
    name="vanishing",
    purpose="recurrent gain, scheme and cell on real text: growth rates against what theory expects",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=plot,
    spread=True,
    further_plots={"theories.png": plot_theories},
    takes="25 s",
    alt={
        "figure.png": (
            "One row for each cell, Elman, LSTM and GRU. Left, the singular values of dh_t/dh_0 over the step as a "
            "band for three gains, beside dashed predictions; right, the growth rate λ_1 over the gain of the "
            "recurrent weights for Gaussian, orthogonal and identity weights, with error bars, a line at 0 and the "
            "curves of the theories."
        ),
        "theories.png": (
            "One row for each cell, Elman, LSTM and GRU. Left, the eigenvalues of the recurrent weights and of the "
            "step Jacobians in the complex plane with the unit circle, for three gains; right, what each theory "
            "predicts less the measured λ_1 over the gain, with a grey band where it is within 0.05 nats per step."
        ),
    },
)

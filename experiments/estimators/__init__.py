"""Every estimator of the gradient on one problem: what each claims, what it gives, and what it costs."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import harness, options
from jaxbptt import assessment, cells, models

from .figure import plot
from .methods import BIASED, EXACT, UNBIASED, WINDOW, Method, make_methods

SAME = 1e-10  # relative error of what is exact
SURE = 4.0  # standard errors, beyond which what claims to be unbiased is not: 6e-5 of right ones
DELAY = 3  # steps between an input and when it is asked for


@options.config
class Config:
    size: int = options.size(12, "units N of the tanh net", least=2)
    length: int = options.size(32, f"steps T, a multiple of {WINDOW}, more than that", least=2 * WINDOW)
    gain: float = options.number(1.2, "gain of the recurrent weights", above=0)
    keys: int = options.size(2000, "draws of a random estimator", least=2)
    seed: int = options.seed()
    out: str = options.out("estimators")


class Row(NamedTuple):
    """One method. Ratios are to ‖dC/dθ‖, costs to those of `bptt`."""

    claim: np.ndarray  # "exact", "unbiased" or "biased"
    keys: np.ndarray  # draws, 0: it draws nothing
    cosine: np.ndarray  # mean over draws
    bias: np.ndarray  # ‖mean ĝ − g‖
    projection: np.ndarray  # ⟨mean ĝ, g⟩
    z_score: np.ndarray  # of projection − 1; NaN: it draws nothing
    spread: np.ndarray  # of one draw
    flops: np.ndarray  # a step, counted in the traced program
    bytes: np.ndarray  # that the compiled program holds beyond arguments and result


def run(config: Config, progress: Any = harness.QUIET) -> dict[str, Row]:
    """A row for every method, in float64 (the caller enables x64)."""
    if config.length % WINDOW:
        raise ValueError(f"length: got {config.length}, expected a multiple of {WINDOW}")
    model = models.sequence_model(cells.elman(2, config.size, recurrent=cells.gaussian(config.gain)), 2)
    of_params, of_inputs, of_draws = jax.random.split(jax.random.key(config.seed), 3)
    params, inputs = model.init(of_params), jax.random.normal(of_inputs, (config.length, 2))
    data = params, inputs, jnp.roll(inputs, DELAY, axis=0).at[:DELAY].set(0)
    keys = jax.random.split(of_draws, config.keys)
    found = make_methods(model, *data)
    todo = {name: partial(measure, model, method, data, keys) for name, method in found.items()}
    return progress.sweep(todo, Row(*Row._fields))


def measure(model: Any, method: Method, data: tuple, keys: jax.Array) -> Row:
    """One method's row; costs as they are, of this T."""
    drawn = {"keys": keys} if method.random else {}
    key = {"key": keys[0]} if method.random else {}
    whole = assessment.assess(model, method.estimate, *data, **drawn).whole
    params, *rest = data
    # At params that are numbers: SnAp reads its pattern from them.
    at_params = lambda model, _, *rest, **options: method.estimate(model, params, *rest, **options)
    cost = assessment.cost_per_step(model, at_params, *data, **key)
    compiled = jax.jit(lambda *rest: at_params(model, None, *rest, **key)).lower(*rest).compile()
    return Row(
        np.array(method.claim),
        np.array(len(keys) if method.random else 0),
        np.asarray(whole.cosine),
        np.asarray(whole.bias),
        np.asarray(whole.projection),
        np.asarray(whole.z_score if method.random else np.nan),
        np.asarray(whole.spread if method.random else 0.0),
        np.array(cost.flops),
        np.array(compiled.memory_analysis().temp_size_in_bytes),
    )


def summarise(results: dict[str, Row], config: Config) -> harness.Summary:
    """The table, and whether every claim holds."""
    reference = results["bptt"]
    judged = {name: judge(row, reference) for name, row in results.items()}
    header = f"{'method':24} {'claim':9} {'cosine':>7} {'bias':>8} {'z':>6} {'spread':>8} {'flops':>6} {'memory':>6}"
    lines = [
        f"tanh net, N = {config.size}, T = {config.length}, gain {config.gain:g}; random methods: {config.keys} draws;"
        " flops and memory over bptt's",
        header,
        *(in_words(name, entry) for name, entry in judged.items()),
    ]
    wrong = [name for name, entry in judged.items() if not entry["holds"]]
    lines.append("every claim holds" if not wrong else f"NOT as claimed: {', '.join(wrong)}")
    return harness.Summary(lines, judged, 1 if wrong else 0)


def judge(row: Row, reference: Row) -> dict[str, Any]:
    """A row in plain numbers, and whether it is as claimed."""
    claim = str(row.claim)
    unseen = abs(float(row.z_score)) <= SURE
    holds = {EXACT: float(row.bias) <= SAME, UNBIASED: unseen, BIASED: float(row.bias) > SAME}[claim]
    return {
        "claim": claim,
        "draws": int(row.keys),
        "cosine": float(row.cosine),
        "bias": float(row.bias),
        "projection": float(row.projection),
        "z_score": float(row.z_score) if row.keys else None,
        "spread": float(row.spread),
        "flops_over_bptt": float(row.flops / reference.flops),
        "memory_over_bptt": float(row.bytes / reference.bytes),
        "holds": bool(holds),
    }


def in_words(name: str, entry: dict[str, Any]) -> str:
    """A line of the table."""
    z_score = "" if entry["z_score"] is None else f"{entry['z_score']:.1f}"
    spread = "" if entry["z_score"] is None else f"{entry['spread']:.2g}"
    bias = f"{entry['bias']:.2g}"
    return (
        f"{name:24} {entry['claim']:9} {entry['cosine']:7.3f} {bias:>8} {z_score:>6} {spread:>8}"
        f" {entry['flops_over_bptt']:6.2g} {entry['memory_over_bptt']:6.2g}"
    )


EXPERIMENT = harness.Experiment(
    name="estimators",
    purpose="every estimator of the gradient on one problem: claim, cosine, bias, spread, flops and memory",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=plot,
    takes="35 s",
    alt={
        "figure.png": (
            "Two panels share one row for each method, grouped by what it claims: exact, unbiased, biased. Left, the "
            "cosine of one estimate to the exact gradient, 1 for the exact ones; right, flops and memory over those of "
            "bptt on a logarithmic axis."
        ),
    },
)

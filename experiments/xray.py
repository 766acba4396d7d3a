"""The main job: on real text, prove the gradient of a character model by four routes and show where it goes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import gradients, spectra
from jaxbptt.comparison import compare
from jaxbptt.jacobians import step_jacobians
from jaxbptt.terms import gradient_terms
from jaxbptt.trajectories import unroll

from . import assembled, files, harness, nets, options, text

CELLS = ("elman", "lstm", "gru")
ROUTES = (gradients.bptt, gradients.forward_sensitivity, gradients.double_sum)
PROVED = 1e-12  # worst relative difference from autodiff, any leaf, any route, float64
QUANTILES = (0.5, 0.9, 0.99)
WARM_UP = 50  # symbols read before step 1, so that h_0 is a state the text leads to and not zero
WRONG = 0.1  # nats: a singular value is wrong when it is off by more than this, about 10 %


@dataclass(frozen=True)
class Config:
    cell: str = field(default="all", metadata={"choices": ("all", *CELLS), "help": "which cell"})
    text: str | None = field(default=None, metadata={"help": "a text file", "shown": "CPython's documentation"})
    hidden: int = field(default=64, metadata={"help": "hidden units H"})
    length: int = field(default=256, metadata={"help": "steps T"})
    offset: int = field(default=0, metadata={"help": "first symbol of the text to use"})
    gain: float = field(default=1.0, metadata={"help": "gain of the recurrent scheme"})
    scheme: str = field(default="gaussian", metadata={"choices": tuple(nets.SCHEMES), "help": "recurrent scheme"})
    forget_bias: float = field(default=1.0, metadata={"help": "LSTM's forget bias"})
    seed: int = field(default=0, metadata={"help": "seed of the weights"})
    out: str = field(default="results/xray", metadata={"help": "folder of the results"})


class XRay(NamedTuple):
    """One cell seen through. T steps, N state entries, R records of the singular values at `steps`."""

    loss: np.ndarray  # C
    route_errors: np.ndarray  # [3] worst relative difference from autodiff of bptt, forward_sensitivity, double_sum
    steps: np.ndarray  # [R] t
    log_singular_values: np.ndarray  # [R, N] of dh_t/dh_0
    assembled: np.ndarray  # [R, N] the same from a decomposition of the assembled float64 product
    assembled_float32: np.ndarray  # [N] at T, of the product assembled in float32
    norms: np.ndarray  # [T, T] the (t, k) table
    profile: np.ndarray  # [T] by lag
    reach: np.ndarray  # [3] at QUANTILES


def run(config: Config, progress: Any = lambda message: None) -> dict[str, XRay]:
    """Every cell of the config, in float64 (the caller enables x64)."""
    symbols = _symbols(config)
    names = CELLS if config.cell == "all" else (config.cell,)
    return {name: _run_cell(name, config, symbols, progress) for name in names}


def _symbols(config):
    for name in ("hidden", "length"):
        options.require_size(name, getattr(config, name))
    options.require_size("offset", config.offset, least=0)
    for name in ("gain", "forget_bias"):
        options.require_finite(name, getattr(config, name))
    available = text.load_text(config.text)
    needed = WARM_UP + config.length + 1
    if config.offset + needed > len(available):
        got = f"{len(available)} symbols in the text, {config.offset} of them skipped"
        raise ValueError(
            f"length: got T = {config.length}, expected at most what is left ({got}, {WARM_UP + 1} kept back)"
        )
    return text.encode(available[config.offset : config.offset + needed])


def _run_cell(name, config, symbols, progress):
    gates = {"forget_bias": config.forget_bias} if name == "lstm" else {}
    cell = nets.make_text_cell(name, config.hidden, recurrent=nets.SCHEMES[config.scheme](config.gain), **gates)
    model = nets.make_text_model(cell)
    params = model.init(jax.random.key(config.seed))
    one_hot = nets.encode_one_hot(symbols)
    inputs, targets = one_hot[WARM_UP:-1], jnp.asarray(symbols[WARM_UP + 1 :])
    h_0 = jax.jit(lambda params, inputs: nets.settle(model, params, inputs))(params, one_hot[:WARM_UP])
    arguments = (params, inputs, targets, h_0)

    def jitted(function):
        return jax.jit(lambda params, inputs, targets, h_0: function(model, params, inputs, targets, initial=h_0))

    progress(f"{name}: gradient by autodiff")
    loss, expected = jax.block_until_ready(jitted(gradients.autodiff)(*arguments))
    errors = []
    for route in ROUTES:
        progress(f"{name}: gradient by {route.__name__}")
        errors.append(compare(expected, jitted(route)(*arguments)[1]).relative)

    progress(f"{name}: singular values")
    every = max(1, config.length // 32)
    steps = np.unique(np.append(np.arange(every, config.length + 1, every), config.length))

    def jacobian_chain(params, inputs, h_0):
        return step_jacobians(model, params, unroll(model, params, inputs, initial=h_0))

    jacobians = jax.jit(jacobian_chain)(params, inputs, h_0)
    log_values = jax.jit(lambda j: spectra.log_singular_values(j, every=every))(jacobians)
    progress(f"{name}: the (t, k) table")
    terms = jitted(gradient_terms)(*arguments)
    return XRay(
        loss=np.asarray(loss),
        route_errors=np.array(errors),
        steps=steps,
        log_singular_values=np.asarray(log_values),
        assembled=assembled.log_singular_values(jacobians)[steps - 1],
        assembled_float32=assembled.log_singular_values(jacobians.astype(jnp.float32), np.float64)[-1],
        norms=np.asarray(terms.norms),
        profile=np.asarray(terms.profile()),
        reach=np.array([int(terms.reach(quantile)) for quantile in QUANTILES]),
    )


def summarise(xrays: dict[str, XRay], config: Config) -> harness.Summary:
    """The verdict on every cell; the exit code says whether every gradient is proved."""
    judged = {name: judge(xray) for name, xray in xrays.items()}
    lines = [f"{name}\n  " + "\n  ".join(entry["verdict"]) for name, entry in judged.items()]
    return harness.Summary(lines, judged, exit_code=0 if all(entry["proved"] for entry in judged.values()) else 1)


def judge(xray: XRay) -> dict[str, Any]:
    """The numbers of the verdict on one cell, and the verdict in words."""
    length = len(xray.profile)
    rate = _growth_rate(xray.steps, xray.log_singular_values[:, 0])
    error = float(np.max(xray.route_errors))
    trend = "stable" if abs(rate) * length < 1 else "vanishing" if rate < 0 else "exploding"
    summary = {
        "loss": float(xray.loss),
        "proved": bool(error <= PROVED),
        "worst_relative_error": error,
        "trend": trend,
        "rate_per_step": rate,
        "half_life": float(np.log(2) / abs(rate)) if rate else np.inf,
        "leaves_float32_at": _leaves_float32(xray.steps, xray.log_singular_values[:, 0], rate),
        "reach": {f"{quantile:g}": int(lag) for quantile, lag in zip(QUANTILES, xray.reach, strict=True)},
        "singular_values": int(xray.log_singular_values.shape[1]),
        "assembled_wrong_float64": _count_wrong(xray.assembled[-1], xray.log_singular_values[-1]),
        "assembled_wrong_float32": _count_wrong(xray.assembled_float32, xray.log_singular_values[-1]),
    }
    return {**summary, "verdict": _in_words(summary, length)}


def _growth_rate(steps, top):
    """Nats per step of ln σ_1 over the second half (in the first it still turns); −inf once σ_1 is exactly zero."""
    if np.isneginf(top[-1]):
        return -np.inf
    middle = len(top) // 2
    if middle == len(top) - 1:
        return float(top[-1] / steps[-1])
    return float((top[-1] - top[middle]) / (steps[-1] - steps[middle]))


def _leaves_float32(steps, top, rate):
    """The first recorded step at which σ_1 is no normal float32, or where `rate` takes it there."""
    limits = np.finfo(np.float32)
    tiny, huge = np.log(float(limits.tiny)), np.log(float(limits.max))
    outside = (top < tiny) | (top > huge)
    if outside.any():
        return float(steps[np.argmax(outside)])
    return float(steps[-1] + ((tiny if rate < 0 else huge) - top[-1]) / rate) if rate else np.inf


def _count_wrong(assembled, log_values):
    """How many are off by more than WRONG; −inf beside −inf is right."""
    with np.errstate(invalid="ignore"):
        right = (assembled == log_values) | (np.abs(assembled - log_values) <= WRONG)
    return int(np.sum(~right))


def _in_words(summary, length):
    s = summary
    proof = "gradient proved" if s["proved"] else "gradient NOT proved"
    name = "doubling time" if s["rate_per_step"] > 0 else "half-life"
    leaves = s["leaves_float32_at"]
    if leaves <= length:
        when = f"leaves float32 by step {leaves:.0f}"
    elif s["trend"] == "stable":
        when = f"stays in float32 over these {length} steps"
    else:
        when = f"leaves float32 at step {leaves:.0f} (extrapolated)"
    return [
        f"{proof}: 4 routes agree to {s['worst_relative_error']:.0e} on every leaf",
        f"{s['trend']}: {s['rate_per_step']:+.4f} nats per step, {name} {s['half_life']:.1f} steps, {when}",
        f"90 % of the gradient reaches {s['reach']['0.9']} steps back"
        f" (50 %: {s['reach']['0.5']}, 99 %: {s['reach']['0.99']})",
        f"an assembled product gets {s['assembled_wrong_float64']} of {s['singular_values']} singular values wrong"
        f" ({s['assembled_wrong_float32']} in float32)",
    ]


def plot(xrays: dict[str, XRay], path: Path) -> None:
    """One column a cell: singular values over time, the (t, k) table, the lag profile."""
    from matplotlib.figure import Figure

    from jaxbptt import plotting

    figure = Figure(figsize=(1.2 + 4.4 * len(xrays), 10.2), layout="constrained")
    axes = figure.subplots(3, len(xrays), squeeze=False)
    for column, (name, xray) in zip(axes.T, xrays.items(), strict=True):
        summary = judge(xray)
        column[0].set_title(_heading(name, summary), fontsize="medium")
        plotting.singular_values(column[0], xray.steps, xray.log_singular_values, epsilon=np.finfo(np.float64).eps)
        image = plotting.terms_table(column[1], xray.norms, reach=summary["reach"]["0.9"])
        figure.colorbar(image, ax=column[1], label=r"$\log_{10}$ ‖term (t, k)‖", shrink=0.9)
        plotting.lag_profile(column[2], xray.profile, dict(zip(QUANTILES, map(int, xray.reach), strict=True)))
    files.write_figure(path, figure, dpi=130)


def _heading(name, summary):
    title = name.capitalize() if name == "elman" else name.upper()
    proof = f"proved to {summary['worst_relative_error']:.0e}" if summary["proved"] else "NOT proved"
    rate = f"{summary['rate_per_step']:+.3f} nats per step"
    return f"$\\bf{{{title}}}$\ngradient {proof}\n{summary['trend']}, {rate}".replace("-", "−")


EXPERIMENT = harness.Experiment(
    name="xray",
    purpose="the main job: prove the gradient of a character model and show where it goes",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=plot,
)

"""How many digits of each singular value of dh_t/dh_0 survive: assembled product and graded method, both floats."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import spectra
from jaxbptt.jacobians import step_jacobians
from jaxbptt.trajectories import unroll

from . import assembled, captions, files, harness, nets, options, systems

SETTLE = 200  # steps before step 1
RIGHT = 1.0  # digits: a value with fewer is called lost
SMALL, SMALL_LENGTH, SMALL_DIGITS = 6, 80, 250  # the chain that is also multiplied in arbitrary precision
COLOURS = {"assembled, float32": "#e08214", "assembled, float64": "#b2182b"}
COLOURS |= {"graded, float32": "#4393c3", "graded, float64": "#053061"}
DIGITS = {"float32": 7.2, "float64": 16.0}  # log₁₀ 2/eps, what a float can have


@options.config
class Config:
    hidden: int = options.size(32, "units N of the random tanh net")
    length: int = options.size(150, "steps T")
    records: int = options.size(50, "steps t that are looked at")
    gain: float = options.number(2.0, "g: weights are N(0, g²/N)", above=0)
    seed: int = options.seed("seed of the weights")
    out: str = options.out("precision")


class Digits(NamedTuple):
    """One method in one float. R records at `steps`, N singular values, descending."""

    steps: np.ndarray  # [R] t
    kept: np.ndarray  # [R, N] −log₁₀ of the relative error of σ_i, 0 … 16; 0 where it came out as 0, inf or NaN
    log_values: np.ndarray  # [R, N] ln σ_i as the method has it
    horizons: np.ndarray  # [N] ln(1/eps)/(λ_1 − λ_i), eps of the float: the rule of thumb; inf for i = 1


class Check(NamedTuple):
    """The graded float64 values of a small net against arbitrary precision."""

    error: np.ndarray  # [] worst, nats; NaN where mpmath is not installed


CHECK = "arbitrary precision"  # its name among the results


def run(config: Config, progress: Any = lambda message: None) -> dict[str, Digits | Check]:
    """Both methods in both floats, "method, float", and the check (the caller enables x64).

    Each is judged against the chain it was given: the float32 ones against the rounded Jacobians, whose rounding is not
    the method's doing. Truth is the graded method in float64; for that one, its values from the transposed, reversed
    chain, which meets the same matrices in the opposite order.
    """
    progress(f"tanh net, N = {config.hidden}, g = {config.gain:g}")
    chain = tanh_chain(config.hidden, config.gain, config.length, config.seed)
    every = max(1, config.length // config.records)
    steps = np.unique(np.append(np.arange(every, config.length + 1, every), config.length))
    graded = jax.jit(lambda chain: spectra.log_singular_values(chain, every=every, errors=True).log_sigma)
    chains = {"float32": chain.astype(jnp.float32), "float64": chain}
    results: dict[str, Digits | Check] = {}
    for dtype, given in chains.items():
        progress(f"graded, {dtype}")
        own = np.asarray(graded(given), float)
        truth = own if dtype == "float64" else np.asarray(graded(given.astype(chain.dtype)))
        progress(f"assembled, {dtype}")
        of_products = assembled.log_singular_values(given)[steps - 1]
        if dtype == "float64":
            progress("graded, float64, transposed and reversed")
            other = np.asarray(jax.jit(_reversed_values)(given, jnp.asarray(steps)))
        rates = truth[-1] / config.length
        with np.errstate(divide="ignore"):
            horizons = -np.log(np.finfo(dtype).eps) / (rates[0] - rates)
        results[f"assembled, {dtype}"] = Digits(steps, digits_kept(of_products, truth), of_products, horizons)
        against = other if dtype == "float64" else truth
        results[f"graded, {dtype}"] = Digits(steps, digits_kept(own, against), own, horizons)
    progress(f"arbitrary precision, N = {SMALL}, T = {SMALL_LENGTH}")
    return results | {CHECK: Check(np.array(check_by_arbitrary_precision(config.gain, config.seed)))}


def tanh_chain(size: int, gain: float, length: int, seed: int) -> jax.Array:
    """[T, N, N] Jacobians of the undriven random tanh net, after it has settled."""
    cell = systems.random_tanh(size, gain)

    def chain(params):
        settled = nets.settle(cell, params, jnp.zeros((SETTLE, 0)))
        return step_jacobians(cell, params, unroll(cell, params, jnp.zeros((length, 0)), initial=settled))

    return jax.jit(chain)(cell.init(jax.random.key(seed)))


def _reversed_values(chain, steps):
    """ln σ(J_1ᵀ … J_tᵀ) at each t of `steps`, every t a chain of its own, filled up with identities to one length."""
    indices = jnp.arange(len(chain))
    identity = jnp.eye(chain.shape[1], dtype=chain.dtype)

    def values(stop):
        backwards = chain[jnp.maximum(stop - 1 - indices, 0)].swapaxes(1, 2)
        return spectra.log_singular_values(jnp.where((indices < stop)[:, None, None], backwards, identity[None]))[0]

    return jax.lax.map(values, steps)


def digits_kept(log_values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """−log₁₀ |σ/σ_true − 1|, within 0 … 16; a value that is no number has none, −inf beside −inf has all."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        digits = -np.log10(np.abs(np.expm1(log_values - truth)))
    return np.where(log_values == truth, 16.0, np.nan_to_num(np.clip(digits, 0, 16), nan=0.0))


def check_by_arbitrary_precision(gain: float, seed: int) -> float:
    """Worst |error| in nats of the graded float64 values of a small net, by mpmath; NaN if that is not installed."""
    try:
        import mpmath
    except ImportError:
        return np.nan
    chain = tanh_chain(SMALL, gain, SMALL_LENGTH, seed)
    values = np.asarray(jax.jit(spectra.log_singular_values)(chain))[0]
    with mpmath.workdps(SMALL_DIGITS):
        product = mpmath.eye(SMALL)
        for jacobian in np.asarray(chain):
            product = mpmath.matrix(jacobian.tolist()) * product
        exact = sorted((float(mpmath.log(v)) for v in mpmath.svd_r(product, compute_uv=False)), reverse=True)
    return float(np.max(np.abs(values - np.array(exact))))


def summarise(results: dict[str, Digits | Check], config: Config) -> harness.Summary:
    """What every method loses, and how far the check is off."""
    error = float(results[CHECK].error)
    judged = {name: judge(result) for name, result in results.items() if name != CHECK}
    lines = [_in_words(name, entry) for name, entry in judged.items()]
    if np.isnan(error):
        lines.append("graded float64 not checked in arbitrary precision: mpmath is not installed")
    else:
        small = f"N = {SMALL}, T = {SMALL_LENGTH}"
        lines.append(f"graded float64 against {SMALL_DIGITS} digits, {small}: {error:.0e} nats at worst")
    return harness.Summary(lines, {**judged, "error_against_mpmath": error})


def judge(result: Digits) -> dict[str, Any]:
    """Of one method: when σ_N is lost for good, the rule of thumb's T*, and what is kept at T."""
    lost = result.kept[:, -1] < RIGHT
    first = len(lost) - int(np.argmin(lost[::-1])) if not lost.all() else 0  # after the last right record
    return {
        "smallest_lost_at": int(result.steps[first]) if lost[-1] else None,
        "rule_of_thumb": float(result.horizons[-1]),
        "right_at_end": int(np.sum(result.kept[-1] >= RIGHT)),
        "singular_values": int(result.kept.shape[1]),
        "fewest_digits_at_end": float(result.kept[-1].min()),
    }


def _in_words(name, entry):
    when = entry["smallest_lost_at"]
    said = "never lost" if when is None else f"lost from step {when} (rule of thumb {entry['rule_of_thumb']:.0f})"
    kept = f"{entry['right_at_end']} of {entry['singular_values']} values right at T"
    return f"{name:18} σ_N {said}; {kept}, fewest digits {entry['fewest_digits_at_end']:.1f}"


def plot(results: dict[str, Any], path: Path) -> None:
    """Digits kept, singular index against t, four panels; beside them how many values are still right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14.5, 7.2), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=(1, 1, 1.05))
    count = figure.add_subplot(grid[:, 2])
    shown = {name: figure.add_subplot(grid[i // 2, i % 2]) for i, name in enumerate(COLOURS)}
    for (name, ax), place in zip(shown.items(), range(4), strict=True):
        result, size = results[name], results[name].kept.shape[1]
        edges = np.concatenate(([0], result.steps)) + 0.5
        share = np.minimum(result.kept.T / DIGITS[name.split(", ")[1]], 1)
        style = {"cmap": "viridis", "vmin": 0, "vmax": 1, "rasterized": True}
        image = ax.pcolormesh(edges, np.arange(size + 1) + 0.5, share, **style)
        if name.startswith("assembled"):
            label = r"$T^*_i=\ln(1/\varepsilon)\,/\,(\lambda_1-\lambda_i)$"
            ax.plot(result.horizons, np.arange(1, size + 1), color="white", linewidth=1.8, linestyle="--", label=label)
            ax.legend(facecolor="none", labelcolor="white", edgecolor="none", loc="lower right", fontsize="large")
        ax.set_title(name, fontweight="bold", color=COLOURS[name])
        ax.set(xlim=(0.5, result.steps[-1] + 0.5), ylim=(size + 0.5, 0.5))
        ax.set(xlabel="step t" if place > 1 else "", ylabel="singular value i" if place % 2 == 0 else "")
    ticks = np.linspace(0, 1, 5)
    bar = figure.colorbar(image, ax=list(shown.values()), shrink=0.7, pad=0.02, ticks=ticks)
    bar.ax.set_yticklabels([" | ".join(f"{tick * most:.2g}" for most in DIGITS.values()) for tick in ticks])
    bar.set_label("correct digits of $\\sigma_i$, float32 | float64; yellow: all that the float has")
    for name, colour in COLOURS.items():
        result = results[name]
        right = np.sum(result.kept >= RIGHT, axis=1)
        line = "-" if name.startswith("graded") else "--"
        width = 4.5 if name == "graded, float32" else 2.2
        count.plot(result.steps, right, color=colour, linewidth=width, linestyle=line, label=name)
        if name.startswith("assembled"):
            label = f"rule of thumb, $T^*_{{{size}}}$ = {result.horizons[-1]:.0f}"
            expected = np.sum(result.horizons[None, :] > result.steps[:, None], axis=1)
            count.plot(result.steps, expected, color=colour, linewidth=1, linestyle=":", label=label)
    count.set(xlabel="step t", ylabel=f"singular values within 10 %, of {size}", ylim=(0, size * 1.04))
    count.set(xlim=(0, result.steps[-1]))
    count.set_title("how many are right", fontweight="bold")
    count.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.88))
    count.spines[["top", "right"]].set_visible(False)
    title = r"Correct digits of each singular value of $dh_t/dh_0$, largest at the top"
    figure.suptitle(title, fontsize="x-large")
    caption = (
        f"One random tanh net, N = {size}, T = {result.steps[-1]}. Digits: −log₁₀ of the relative error. Assembled: the"
        " SVD of the product, by LAPACK. Graded: jaxbptt, whose own error bound turns a value that may be off by 1 %"
        " into NaN (no digits). Truth: graded float64 on the same matrices; of graded float64, the transposed chain in"
        " reverse. Dashed: the rule of thumb $T^*_i$, ε of the float."
    )
    captions.add_caption(figure, caption, 11)
    files.write_figure(path, figure, dpi=130)


EXPERIMENT = harness.Experiment(
    name="precision",
    purpose="digits of each singular value kept by the assembled product and by the graded method",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=plot,
    takes="40 s",
    alt={
        "figure.png": (
            "Left, four maps of the correct digits of each singular value, by value and step: of the assembled product "
            "in float32 and float64, where all but the largest values are lost beyond a dashed curve, and of the "
            "graded method, which keeps nearly all of them. Right, how many values are right within 10 % over the "
            "step: falling for the assembled product, nearly level for the graded one."
        ),
    },
)

"""Random networks left to themselves, through the transition to chaos: exponents against the mean field, and size."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt import cells, spectra

from . import captions, files, harness, options, systems

GAINS = (0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0)
GATED_GAINS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
REFERENCE = 3.0  # g of the published values, and of the spectra across N
ALL_BELOW, SHARE = 64, 3 / 8  # larger nets: the leading 3/8 of N exponents, which settle the dimension
LOWEST = -2.5  # nats per step: the end of the axis of a spectrum, whose tail has no bound
SIZE_COLOURS = ("#9ecae1", "#4292c6", "#084594")
GAIN_COLOURS = ("#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#e0c318")
GATED_COLOURS = {"lstm": "#7a5195", "gru": "#c77d0a"}
WORDS = {"font.size": 16, "axes.titlesize": 16.5, "legend.fontsize": 14.5}


@options.config
class Config:
    size: int = options.size(256, "state entries N of the largest net (and N/2 and N/4)", least=8)
    nets: int = options.size(4, "nets drawn at each gain", least=2)
    length: int = options.size(600, "steps T", least=2)
    transient: int = options.size(200, "steps before them", least=0)
    seed: int = options.seed("seed of the weights")
    out: str = options.out("chaos")


class Transition(NamedTuple):
    """One cell at one size N. G gains, B nets, k exponents. Rates: nats per step."""

    size: np.ndarray  # [] N
    gains: np.ndarray  # [G]
    exponents: np.ndarray  # [G, B, k] descending
    standard_error: np.ndarray  # [G, B, k] of each net's own, over time
    dimension: np.ndarray  # [G, B] Kaplan-Yorke
    entropy: np.ndarray  # [G, B] Σ of the positive exponents
    interval: np.ndarray  # [G, B] mean steps between QRs
    interval_error: np.ndarray  # [G, B] what that cost, largest over i, where it was checked
    length: np.ndarray  # [] T
    transient: np.ndarray  # [] steps before them


class Point(NamedTuple):
    """The nets of one cell at one gain: fields of `Transition` without their first axis."""

    exponents: np.ndarray
    standard_error: np.ndarray
    dimension: np.ndarray
    entropy: np.ndarray
    interval: np.ndarray
    interval_error: np.ndarray


def run(config: Config, progress: Any = harness.QUIET) -> dict[str, Transition]:
    """Tanh nets of three sizes, gated nets of the smallest, over gains, in float64 (the caller enables x64)."""
    swept = {f"tanh, N = {n}": (systems.random_tanh(n, 1.0), GAINS) for n in _sizes(config)}
    smallest = 2 * (config.size // 8)
    swept[f"lstm, N = {smallest}"] = (cells.lstm(0, smallest // 2), GATED_GAINS)
    swept[f"gru, N = {smallest}"] = (cells.gru(0, smallest), GATED_GAINS)
    todo = {
        f"{name}, gain {gain:g}": harness.Traced((measure,), np.asarray(gain))
        for name, (cell, gains) in swept.items()
        for measure in [_make_measure(cell, config)]
        for gain in gains
    }
    points = iter(progress.sweep_traced(todo, Point(*Point._fields)).values())
    steps = np.array(config.length), np.array(config.transient)
    return {
        name: Transition(_size_of(cell), np.array(gains), *_stack([next(points) for _ in gains]), *steps)
        for name, (cell, gains) in swept.items()
    }


def _sizes(config):
    return config.size // 4, config.size // 2, config.size


def _stack(points):
    return (np.stack(column) for column in zip(*points, strict=True))


def _size_of(cell):
    flat, _ = ravel_pytree(cell.initial_state(cell.init(jax.random.key(0))))
    return np.array(flat.size)


def _make_measure(cell, config):
    """gain -> Point, traced. Every net of gain 1 with its recurrent weights times g: one draw serves all gains."""
    inputs = jnp.zeros((config.transient + config.length, 0))
    keys = jax.random.split(jax.random.key(config.seed), config.nets)
    flat, unravel = ravel_pytree(cell.initial_state(cell.init(keys[0])))

    def measure(gain, key):
        params = cell.init(key)
        params = params._replace(w_hh=gain * params.w_hh)
        start = unravel(jax.random.normal(jax.random.fold_in(key, 1), flat.shape))
        k = flat.size if flat.size <= ALL_BELOW else int(SHARE * flat.size)
        result = spectra.stream_exponents(cell, params, inputs, initial=start, transient=config.transient, k=k)
        dimension, entropy = result.kaplan_yorke_dimension(), result.entropy_rate()
        error = jnp.max(result.interval_error)
        return Point(result.exponents, result.standard_error, dimension, entropy, result.interval, error)

    return lambda gain: jax.lax.map(lambda key: measure(gain, key), keys)


def pool(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over nets and its standard error from the spread between them, [G, ...] from [G, B, ...]."""
    return values.mean(axis=1), values.std(axis=1, ddof=1) / values.shape[1] ** 0.5


def summarise(results: dict[str, Transition], config: Config) -> harness.Summary:
    """Every cell and size, and what the mean field and the published values say of g = 3."""
    judged = {name: judge(result) for name, result in results.items()}
    infinite, published = systems.mean_field_exponent(REFERENCE), systems.CLARK_EXPONENT
    lines = [in_words(name, entry) for name, entry in judged.items()]
    lines += [
        f"g = {REFERENCE:g}, for comparison: λ_1 {infinite:.6f} in the mean field (N → ∞), {published} published at",
        f"  N = 4096, with D_KY/N {systems.CLARK_DIMENSION}",
    ]
    mean_field = {f"{gain:g}": systems.mean_field_exponent(gain) for gain in GAINS}
    return harness.Summary(lines, {**judged, "mean_field": mean_field})


def judge(result: Transition) -> dict[str, Any]:
    """Over gain: λ_1, dimension and entropy rate with their standard errors over nets, and where λ_1 turns positive."""
    top, error = pool(result.exponents[:, :, 0])
    dimension, dimension_error = pool(result.dimension / result.size)
    entropy, entropy_error = pool(result.entropy / result.size)
    chaotic = top > 2 * error
    return {
        "gains": result.gains.tolist(),
        "exponent": top.tolist(),
        "exponent_error": error.tolist(),
        "dimension_per_unit": dimension.tolist(),
        "dimension_per_unit_error": dimension_error.tolist(),
        "entropy_per_unit": entropy.tolist(),
        "entropy_per_unit_error": entropy_error.tolist(),
        "chaotic_from": float(result.gains[np.argmax(chaotic)]) if chaotic.any() else None,
        "interval_error": float(result.interval_error.max()),
    }


def in_words(name: str, summary: dict[str, Any]) -> str:
    """Where it turns chaotic, and a tanh net's values at g = 3."""
    start = summary["chaotic_from"]
    words = f"{name}: " + ("not chaotic at any gain" if start is None else f"chaotic from gain {start:g}")
    unknown = [f"{gain:g}" for gain, top in zip(summary["gains"], summary["exponent"], strict=True) if np.isnan(top)]
    if unknown:
        words += f" (not known for rounding at gain {', '.join(unknown)})"
    if name.startswith("tanh"):
        i = summary["gains"].index(REFERENCE)
        keys = ("exponent", "dimension_per_unit")
        exponent, dimension = (_with_error(summary[key][i], summary[key + "_error"][i]) for key in keys)
        words += f"; g = {REFERENCE:g}: λ_1 {exponent}, D_KY/N {dimension}"
    return words


def _with_error(value, error):
    return "not known" if np.isnan(value) else f"{value:.3f} ± {error:.3f}"


def plot(results: dict[str, Transition], path: Path) -> None:
    """Above: λ_1, dimension, gated nets over gain. Below: the shape of the spectrum over size, gain and cell."""
    import matplotlib
    from matplotlib.figure import Figure

    tanh = {name: result for name, result in results.items() if name.startswith("tanh")}
    others = {name: result for name, result in results.items() if name not in tanh}
    (small_name, smallest), *_, (_, largest) = tanh.items()
    styles = dict(zip(tanh, SIZE_COLOURS, strict=True))
    with matplotlib.rc_context(WORDS):
        figure = Figure(figsize=(17, 13), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
        figure.suptitle(
            "At which gain does a random recurrent net turn chaotic, and does its size matter?", fontsize=20
        )
        (growth, dimension, gated), (sizes, gains, kinds) = axes = figure.subplots(2, 3)
        _plot_theories(growth, dimension, largest.gains)
        for name, result in tanh.items():
            _plot_means(growth, result.gains, result.exponents[:, :, 0], styles[name], name)
            _plot_means(dimension, result.gains, result.dimension / result.size, styles[name], name)
        growth.set(title="growth rate of tanh nets", ylabel=r"$\lambda_1$, nats per step", ylim=(-0.75, 0.75))
        dimension.set(title="dimension of the attractor", ylabel="Kaplan-Yorke dimension / N", ylim=(-0.01, None))
        _plot_means(gated, smallest.gains, smallest.exponents[:, :, 0], styles[small_name], small_name)
        for name, result in others.items():
            _plot_means(gated, result.gains, result.exponents[:, :, 0], _gated_colour(name), _title(name))
        gated.set(title="growth rate of gated nets", ylabel=r"$\lambda_1$, nats per step", xscale="log")
        ticks = [gain for gain in (0.5, 1, 2, 3, 5, 8, 12) if gain <= GATED_GAINS[-1]]
        gated.set_xticks(ticks, [f"{gain:g}" for gain in ticks])
        gated.minorticks_off()

        for name, result in tanh.items():
            _plot_spectrum(sizes, result, list(result.gains).index(REFERENCE), styles[name], name)
        for gain, colour in zip((0.9, 1.25, 1.5, 2.0, 3.0, 5.0), GAIN_COLOURS, strict=True):
            _plot_spectrum(gains, largest, list(largest.gains).index(gain), colour, f"gain {gain:g}")
        _plot_spectrum(kinds, smallest, -1, styles[small_name], f"{small_name}, gain {smallest.gains[-1]:g}")
        for name, result in others.items():
            _plot_spectrum(kinds, result, -1, _gated_colour(name), f"{_title(name)}, gain {result.gains[-1]:g}")
        sizes.set_title(f"tanh nets, gain {REFERENCE:g}: one curve for every N")
        gains.set_title(f"spectrum over gain, tanh, N = {largest.size}")
        kinds.set_title("spectrum by cell, at the largest gain")
        for ax in (growth, dimension, gated):
            ax.set_xlabel("gain of the recurrent weights")
            ax.legend(frameon=False, loc="lower right")
        for ax in (sizes, gains, kinds):
            ax.set(xlabel="i / N", ylabel=r"$\lambda_i$, nats per step", ylim=(LOWEST, 0.85), xlim=(0, 0.85))
            ax.legend(frameon=False, loc="upper right")
        gains.set(ylim=(-1.25, 1.1), xlim=(0, SHARE * 1.02))
        for ax in axes.flat:
            ax.axhline(0, color="0.5", linewidth=0.8, zorder=0)
            ax.title.set_fontweight("bold")
            ax.spines[["top", "right"]].set_visible(False)
        captions.add_caption(figure, _caption(largest), 15)
        files.write_figure(path, figure, dpi=90)


def _caption(result):
    nets, (above, below) = result.exponents.shape[1], SHARE.as_integer_ratio()
    return (
        f"{nets} nets for each point, no inputs, weights from N(0, gain²/units), one draw for all gains, no biases but"
        f" an LSTM's forget bias 1; λ_i, the i-th of N exponents, by QR along T = {result.length} steps after"
        f" {result.transient} from a random state; all values are means over nets. Above: bars, two standard errors."
        f" Below: of more than {ALL_BELOW} exponents the leading {above}/{below}; −∞ is left out. LSTM: N counts cell"
        " and hidden entries. Mean field: Sompolinsky, Crisanti & Sommers (1988). Star: tanh, gain 3, one net, from"
        " the data of D. G. Clark, Lyapunov spectrum of random neural networks."
    )


def _plot_theories(growth, dimension, gains):
    """The mean field, a linear net, and what is published of `REFERENCE`."""
    fine = np.linspace(gains[0], gains[-1], 200)
    infinite = [systems.mean_field_exponent(gain) for gain in fine]
    growth.plot(fine, infinite, color="0.1", linewidth=2.4, label="mean field, N → ∞")
    growth.plot(fine, np.log(fine), color="0.5", linestyle="--", linewidth=1.6, label="linear net, ln gain")
    star = {"color": "#D55E00", "markersize": 18, "markeredgecolor": "white", "zorder": 5}
    for ax, value in ((growth, systems.CLARK_EXPONENT), (dimension, systems.CLARK_DIMENSION)):
        ax.plot(REFERENCE, value, "*", label="published, N = 4096", **star)


def _plot_means(ax, gains, values, colour, label):
    """Mean over nets with two standard errors."""
    mean, error = pool(values)
    ax.errorbar(gains, mean, 2 * error, color=colour, marker="o", markersize=6, linewidth=1.6, capsize=3, label=label)


def _plot_spectrum(ax, result, index, colour, label):
    """Mean over nets; an exponent that is −inf in one net is left out."""
    values = result.exponents[index]
    mean = np.where(np.isfinite(values).all(axis=0), values.sum(axis=0) / len(values), np.nan)
    places = (np.arange(values.shape[1]) + 0.5) / result.size
    ax.plot(places, mean, color=colour, linewidth=2.4, marker=".", markersize=4, label=label)


def _gated_colour(name):
    return GATED_COLOURS[name.split(",")[0]]


def _title(name):
    return name.replace("lstm", "LSTM").replace("gru", "GRU")


EXPERIMENT = harness.Experiment(
    name="chaos",
    purpose="random networks through the transition to chaos, against the mean field and across sizes",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=plot,
    spread=True,
    takes="35 s",
    alt={
        "figure.png": (
            "Six panels. Above, over the gain: the growth rate λ_1 of tanh nets of several sizes beside the mean field "
            "and a published value, which crosses 0 near gain 1; the dimension of their attractors over N, with a "
            "published value; λ_1 of gated nets, which turn chaotic later. Below, all exponents over i/N: at gain 3 "
            "for every size, where the curves fall on one another; over gains; and by cell."
        ),
    },
)

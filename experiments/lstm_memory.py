"""An LSTM on real text: its gates, and the three meanings of ∂C_t/∂C_{t−1} against f_t and 1, over forget biases."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import cells
from jaxbptt.cells import gates
from jaxbptt.jacobians import prefix_products, step_jacobians
from jaxbptt.trajectories import Trajectory, unroll

from . import captions, files, harness, nets, options, text
from .text import KEEP

FORGET_BIASES = (0.0, 1.0, 3.0)
MEANINGS = ("h frozen: diag f", "through h, o frozen", "C block of the full product")
MEANING_STYLES = (("#0072B2", "-"), ("#D55E00", "-"), ("#000000", "--"))  # Okabe & Ito's
GATE_COLOURS = {"input": "#CC79A7", "forget": "#0072B2", "output": "#E69F00"}
WORDS = {"font.size": 14, "axes.titlesize": 15, "legend.fontsize": 12.5}


@options.config
class Config:
    text: str | None = options.file("a text file", shown="CPython's documentation")
    keep: tuple = options.choices("letters", KEEP, "kinds of characters of the text that stay; letters always do")
    hidden: int = options.size(32, "hidden units H")
    length: int = options.size(100, "steps T")
    gain: float = options.number(1.0, "gain of the Gaussian recurrent weights")
    seed: int = options.seed("seed of the weights")
    out: str = options.out("lstm_memory")


class Memory(NamedTuple):
    """One forget bias. T steps, H units."""

    gates: np.ndarray  # [T, 3, H] i, f, o
    one_step: np.ndarray  # [2, T, H] singular values of the first two meanings at each step (the third's is the first)
    log_norms: np.ndarray  # [3, T] ln ‖dC_t/dC_0‖₂ by the product of each meaning
    jacobian_error: float  # of B_t and of the blocks used here against the toolkit's J_t, largest entry


def run(config: Config, progress: Any = lambda message: None) -> dict[str, Any]:
    """Every forget bias, in float64 (the caller enables x64), and the text's alphabet."""
    symbols, alphabet = text.load_text(config.text, config.keep)
    if len(symbols) < config.length + 1:
        raise ValueError(
            f"length: got T = {config.length}, expected at most {len(symbols) - 1} (the text's symbols less 1)"
        )
    size = len(alphabet.characters)
    one_hot = nets.encode_one_hot(symbols[: config.length + 1], size)
    results: dict[str, Any] = {"alphabet": alphabet}
    for bias in FORGET_BIASES:
        progress(f"forget bias {bias:g}")
        recurrent = cells.gaussian(config.gain)
        cell = nets.make_text_cell("lstm", size, config.hidden, forget_bias=bias, recurrent=recurrent)
        measured = jax.jit(lambda params, inputs, cell=cell: _measure(cell, params, inputs))
        traces, one_step, log_norms, error = measured(cell.init(jax.random.key(config.seed)), one_hot)
        results[f"{bias:g}"] = Memory(np.asarray(traces), np.asarray(one_step), np.asarray(log_norms), float(error))
    return results


def _measure(cell, params, inputs):
    """The first symbol only makes h_0 = o_0 ⊙ tanh(C_0), so that o_{t−1} is known at every step from 1 on."""
    whole = unroll(cell, params, inputs)
    first, rest = (jax.tree.map(lambda leaf, part=part: leaf[part], whole.states) for part in (0, slice(1, None)))
    trajectory = Trajectory(first, whole.inputs[1:], rest)
    i, f, _, o = jax.vmap(lambda state, x: gates(params, state, x))(trajectory.previous, trajectory.inputs)
    output_before = jax.vmap(lambda state, x: gates(params, state, x)[3])(whole.previous, whole.inputs)[:-1]
    size = f.shape[1]
    chain = step_jacobians(cell, params, trajectory)
    through_hidden = chain[:, :size, size:]  # B_t = ∂⁺C_t/∂⁺h_{t−1}
    frozen = jax.vmap(jnp.diag)(f)
    slope = output_before * (1 - jnp.tanh(trajectory.previous.cell) ** 2)
    through = frozen + through_hidden * slope[:, None, :]

    # The same derivative by automatic differentiation of C_t through h_{t−1} = o_{t−1} ⊙ tanh(C_{t−1}), o_{t−1} frozen.
    def next_cell(cell_before, output, x):
        return cell.step(params, cells.LSTMState(cell_before, output * jnp.tanh(cell_before)), x).cell

    automatic = jax.vmap(jax.jacfwd(next_cell))(trajectory.previous.cell, output_before, trajectory.inputs)
    error = jnp.maximum(jnp.max(jnp.abs(automatic - through)), jnp.max(jnp.abs(chain[:, :size, :size] - frozen)))
    products = prefix_products(frozen), prefix_products(through), prefix_products(chain)[:, :size, :size]
    log_norms = [jnp.log(jnp.linalg.norm(matrices, ord=2, axis=(1, 2))) for matrices in products]
    one_step = [jnp.linalg.svd(matrices, compute_uv=False) for matrices in (frozen, through)]
    return jnp.stack((i, f, o), axis=1), jnp.stack(one_step), jnp.stack(log_norms), error


def summarise(results: dict[str, Any], config: Config) -> harness.Summary:
    """The median forget gate, and the growth of dC_T/dC_0 by each meaning."""
    lines, results = text.take_alphabet(results)
    for bias, memory in results.items():
        rates = memory.log_norms[:, -1] / len(memory.gates)
        said = "; ".join(f"{name} {rate:+.3f}" for name, rate in zip(MEANINGS, rates, strict=True))
        median = np.median(memory.gates[:, 1])
        lines.append(f"forget bias {bias}: median f {median:.2f}; nats per step of dC_T/dC_0: {said}")
    return harness.Summary(lines)


def plot(results: dict[str, Any], path: Path) -> None:
    """One column a forget bias: gates, singular values of one step, growth over many."""
    import matplotlib
    from matplotlib.figure import Figure

    results = text.take_alphabet(results)[1]
    with matplotlib.rc_context(WORDS):
        figure = Figure(figsize=(1.2 + 3.9 * len(results), 12.8), layout="constrained")
        figure.suptitle(
            r"Is $\partial C_t/\partial C_{t-1}$ of an LSTM that reads text the forget gate, or 1?", fontsize=18
        )
        axes = figure.subplots(3, len(results), squeeze=False, sharex=True, sharey="row")
        for (top, middle, bottom), (bias, memory) in zip(axes.T, results.items(), strict=True):
            top.set_title(f"forget bias {bias}", fontweight="bold", pad=10)
            _plot_gates(top, memory)
            _plot_one_step(middle, memory)
            _plot_growth(bottom, memory)
            bottom.set(xlabel="step t")
        axes[0, 0].set(ylabel="gates", ylim=(0, 1))
        axes[1, 0].set(ylabel=r"singular values of $\partial C_t/\partial C_{t-1}$", ylim=(0, None))
        axes[2, 0].set(ylabel=r"$\log_{10}\,\|dC_t/dC_0\|_2$")
        for row in axes:
            row[0].legend(frameon=False)
        for ax in axes.flat:
            ax.spines[["top", "right"]].set_visible(False)
        captions.add_caption(figure, _caption(results), 13)
        files.write_figure(path, figure, dpi=100)


def _plot_gates(ax, memory):
    steps = np.arange(1, len(memory.gates) + 1)
    for gate, (name, colour) in zip(memory.gates.transpose(1, 0, 2), GATE_COLOURS.items(), strict=True):
        low, centre, high = np.quantile(gate, (0.1, 0.5, 0.9), axis=1)
        ax.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        ax.plot(steps, centre, color=colour, linewidth=1.8, label=name)


def _plot_one_step(ax, memory):
    steps = np.arange(1, len(memory.gates) + 1)
    for values, name, (colour, line) in zip(memory.one_step, MEANINGS, MEANING_STYLES, strict=False):
        ax.fill_between(steps, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.18, linewidth=0)
        ax.plot(steps, np.median(values, axis=1), line, color=colour, linewidth=1.8, label=name)
    ax.axhline(1, color="0.4", linewidth=1.2, linestyle=":")


def _plot_growth(ax, memory):
    steps = np.arange(1, len(memory.gates) + 1)
    for values, name, (colour, line) in zip(memory.log_norms, MEANINGS, MEANING_STYLES, strict=True):
        ax.plot(steps, values / np.log(10), line, color=colour, linewidth=2.2, label=name)
    ax.axhline(0, color="0.4", linewidth=1.2, linestyle=":")


def _caption(results):
    length, _, hidden = next(iter(results.values())).gates.shape
    return (
        f"H = {hidden} units, T = {length} steps of text, one draw of the weights, the same for every forget bias."
        " Gates: median and 10 to 90 % of the units. Singular values of one step: median, and smallest to largest; of"
        " the C block of the full product they are those with h frozen. Three meanings of the derivative: h frozen,"
        " diag f; also through hₜ₋₁ = oₜ₋₁ ⊙ tanh Cₜ₋₁, oₜ₋₁ frozen; and the block dCₜ/dC₀ in the"
        " product of the Jacobians of (C, h), which leaves nothing out. Dotted: 1, and log₁₀ 1 = 0: nothing is lost."
    )


EXPERIMENT = harness.Experiment(
    name="lstm_memory",
    purpose="LSTM gates on real text and the three meanings of dC_t/dC_{t-1}, over forget biases",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=plot,
    takes="a few s",
    alt={
        "figure.png": (
            "One column for each forget bias, three rows over the step t: the input, forget and output gates, where "
            "the forget gate rises with the bias; the singular values of one step's ∂C_t/∂C_{t−1} with h frozen and "
            "through h, the second spread more widely; log10 of ‖dC_t/dC_0‖, where diag f alone falls faster than the "
            "derivative through h, which lies on the block of the full product."
        ),
    },
)

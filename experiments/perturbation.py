"""Two trajectories a small distance apart: what the Jacobian product predicts and what happens, forward and back."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import cells
from jaxbptt.jacobians import step_jacobians
from jaxbptt.trajectories import unroll

from . import captions, files, harness, nets, options

DISTANCES = (1e-8, 1e-4, 1e-1)
KICK = 1e-7  # of the central difference behind the backward picture
STYLES = (("#0072B2", "o"), ("#E69F00", "s"), ("#D55E00", "^"))  # Okabe & Ito's
WORDS = {"font.size": 14, "axes.titlesize": 15, "legend.fontsize": 13}


@options.config
class Config:
    hidden: int = options.size(64, "state entries N")
    length: int = options.size(80, "steps T")
    seed: int = options.seed("seed of weights, states and directions")
    out: str = options.out("perturbation")


class Divergence(NamedTuple):
    """One cell. D distances δ, T steps."""

    size: np.ndarray  # [] N
    predicted: np.ndarray  # [D, T + 1] ‖J_t … J_1 δ‖, t = 0 … T
    actual: np.ndarray  # [D, T + 1] ‖h_t(h_0 + δ) − h_t(h_0)‖
    predicted_back: np.ndarray  # [T + 1] ‖(dh_T/dh_t)ᵀ g‖, t = 0 … T
    actual_back: np.ndarray  # [T + 1] the slope of gᵀh_T along that direction, by a central difference at h_t


def make_cells(size: int) -> dict[str, cells.Cell]:
    """Autonomous: a linear map just above gain 1, a contraction, a chaotic tanh net."""
    return {
        "linear, gain 1.05": cells.linear(0, size, recurrent=cells.gaussian(1.05)),
        "contractive, ‖W‖ = 0.9": cells.elman(0, size, recurrent=cells.orthogonal(0.9)),
        "chaotic, gain 3": cells.elman(0, size, recurrent=cells.gaussian(3.0)),
    }


def run(config: Config, progress: Any = lambda message: None) -> dict[str, Divergence]:
    """Every cell, in float64 (the caller enables x64)."""
    results = {}
    for name, cell in make_cells(config.hidden).items():
        progress(name)
        keys = jax.random.split(jax.random.key(config.seed), 4)
        params = cell.init(keys[0])
        h_0, direction, g = (jax.random.normal(key, (config.hidden,)) for key in keys[1:])
        if "chaotic" in name:  # onto its attractor
            h_0 = nets.settle(cell, params, jnp.zeros((50, 0)), initial=0.5 * h_0)
        unit = direction / jnp.linalg.norm(direction)
        measure = jax.jit(lambda *a, cell=cell: _measure(cell, config.length, *a))
        measured = measure(params, h_0, unit, g / jnp.linalg.norm(g))
        results[name] = Divergence(np.array(config.hidden), *map(np.asarray, measured))
    return results


def _measure(cell, length, params, h_0, direction, g):
    inputs = jnp.zeros((length, 0))
    trajectory = unroll(cell, params, inputs, initial=h_0)
    chain = step_jacobians(cell, params, trajectory)
    states = jnp.concatenate((h_0[None], trajectory.states))
    distances = jnp.asarray(DISTANCES)

    def forward(distance):
        moved = unroll(cell, params, inputs, initial=h_0 + distance * direction)
        return jnp.linalg.norm(jnp.concatenate((moved.initial[None], moved.states)) - states, axis=1)

    push = lambda vector, jacobian: (jacobian @ vector,) * 2
    pull = lambda vector, jacobian: (vector @ jacobian,) * 2
    pushed = jnp.concatenate((direction[None], jax.lax.scan(push, direction, chain)[1]))
    pulled = jnp.concatenate((jax.lax.scan(pull, g, chain, reverse=True)[1], g[None]))
    size_back = jnp.linalg.norm(pulled, axis=1)
    along = pulled / jnp.where(size_back > 0, size_back, 1)[:, None]

    def slope(start, state, along):
        """d gᵀh_T / d(along) at h_start: freeze the first `start` steps and run the rest from a moved state."""

        def end(state):
            def body(h, t):
                return jnp.where(t >= start, cell.step(params, h, inputs[0]), h), None

            return jax.lax.scan(body, state, jnp.arange(length))[0]

        return g @ (end(state + KICK * along) - end(state - KICK * along)) / (2 * KICK)

    return (
        distances[:, None] * jnp.linalg.norm(pushed, axis=1)[None, :],
        jax.vmap(forward)(distances),
        size_back,
        jnp.abs(jax.vmap(slope)(jnp.arange(length + 1), states, along)),
    )


def summarise(results: dict[str, Divergence], config: Config) -> harness.Summary:
    """The predicted growth, and from which step on the prediction is off."""
    lines = []
    for name, result in results.items():
        rate = np.log(result.predicted[0, -1] / result.predicted[0, 0]) / (result.predicted.shape[1] - 1)
        gap = np.abs(result.actual / result.predicted - 1) > 0.1
        first = [int(np.argmax(row)) if row.any() else None for row in gap]
        said = ", ".join(
            f"δ = {distance:.0e}: " + ("within 10 % throughout" if step is None else f"off by 10 % from step {step}")
            for distance, step in zip(DISTANCES, first, strict=True)
        )
        lines.append(f"{name}: predicted growth {rate:+.3f} nats per step; {said}")
    return harness.Summary(lines)


def plot(results: dict[str, Divergence], path: Path) -> None:
    """One column a cell: forward above, backward below; lines predicted, marks actual."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(WORDS):
        figure = Figure(figsize=(0.7 + 4 * len(results), 9.6), layout="constrained")
        figure.suptitle("How long does a product of Jacobians predict what a perturbation does?", fontsize=18)
        axes = figure.subplots(2, len(results), squeeze=False, sharex=True, sharey="row")
        for (forward, backward), (name, result) in zip(axes.T, results.items(), strict=True):
            forward.set_title(name, fontweight="bold", pad=10)
            _plot_forward(forward, result)
            _plot_backward(backward, result)
            backward.set(xlabel="step t")
        axes[0, 0].set_ylabel("forward: distance of two states\nat t, in units of h")
        axes[1, 0].set_ylabel(r"backward: slope of $g^{\top}h_T$" + "\nby the state at t")
        for ax, loc in zip(axes[:, len(results) // 2], ("upper right", "upper left"), strict=True):
            low, high = ax.get_ylim()
            ax.set_ylim(max(low, 1e-17), min(high, 1e9))
            ax.legend(frameon=False, loc=loc)
        for ax in axes.flat:
            ax.spines[["top", "right"]].set_visible(False)
        captions.add_caption(figure, _caption(next(iter(results.values()))), 13)
        files.write_figure(path, figure, dpi=100)


def _plot_forward(ax, result):
    steps = np.arange(result.predicted.shape[1])
    for distance, (colour, mark), predicted, actual in zip(
        DISTANCES, STYLES, result.predicted, result.actual, strict=True
    ):
        ax.semilogy(steps, predicted, color=colour, linewidth=1.6)
        style = {
            "color": colour,
            "markersize": 5,
            "markevery": 2,
            "label": rf"$\|\delta\| = 10^{{{np.log10(distance):.0f}}}$",
        }
        ax.semilogy(steps, np.where(actual > 0, actual, np.nan), mark, **style)


def _plot_backward(ax, result):
    steps = np.arange(len(result.predicted_back))
    measured = np.where(result.actual_back > 0, result.actual_back, np.nan)
    label = r"predicted: $\|(dh_T/dh_t)^{\top}g\|$"
    ax.semilogy(steps, result.predicted_back, color="0.1", linewidth=1.6, label=label)
    style = {"color": "#CC79A7", "markersize": 5, "markevery": 2, "label": "actual: central difference"}
    ax.semilogy(steps, measured, "o", **style)


def _caption(result):
    steps = len(result.predicted_back) - 1
    return (
        f"N = {result.size} units, T = {steps} steps, no inputs, float64; one draw of weights, state and directions."
        " Gaussian weights of the gain named, orthogonal ones times 0.9; the last two nets are tanh. Lines: predicted"
        " by the Jacobians along the unperturbed trajectory; marks, at every other step: actual. Forward: a run from"
        " h₀ + δ against the run from h₀, three sizes of one direction δ; predicted: ‖J_t … J₁ δ‖. Backward: g is a"
        " random unit vector at T; actual: the slope along the pulled-back direction by a central difference of size"
        rf" $10^{{{np.log10(KICK):.0f}}}$ at h_t, which is itself off once that has grown to the size of the state."
    )


EXPERIMENT = harness.Experiment(
    name="perturbation",
    purpose="predicted and actual divergence of two trajectories, forward and backward",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=plot,
    takes="a few s",
    alt={
        "figure.png": (
            "Three columns: a linear, a contractive and a chaotic net. Above, the distance of two states over the step "
            "for three sizes of the perturbation, predicted lines and actual dots: they agree but in the chaotic net, "
            "where the dots level off. Below, the sensitivity of the last state to each earlier one, the gradient as a "
            "line and central differences as dots."
        ),
    },
)

"""Two trajectories a small distance apart: what the Jacobian product predicts and what happens, forward and back."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import cells
from jaxbptt.jacobians import step_jacobians
from jaxbptt.trajectories import unroll

from . import files, harness, nets, options

DISTANCES = (1e-8, 1e-4, 1e-1)
KICK = 1e-7  # of the central difference behind the backward picture


@dataclass(frozen=True)
class Config:
    hidden: int = field(default=64, metadata={"help": "state size N"})
    length: int = field(default=80, metadata={"help": "steps T"})
    seed: int = field(default=0, metadata={"help": "seed of weights, states and directions"})
    out: str = field(default="results/perturbation", metadata={"help": "folder of the results"})


class Divergence(NamedTuple):
    """One cell. D distances δ, T steps."""

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
    options.require_size("hidden", config.hidden)
    options.require_size("length", config.length)
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
        results[name] = Divergence(*map(np.asarray, measure(params, h_0, unit, g / jnp.linalg.norm(g))))
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
    """One column a cell: forward above, backward below; lines predicted, dots actual."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 4.2 * len(results), 7.4), layout="constrained")
    axes = figure.subplots(2, len(results), squeeze=False)
    colours = ("#31688e", "#1f9e89", "#d1495b")
    for (forward, backward), (name, result) in zip(axes.T, results.items(), strict=True):
        steps = np.arange(result.predicted.shape[1])
        for distance, colour, predicted, actual in zip(
            DISTANCES, colours, result.predicted, result.actual, strict=True
        ):
            forward.semilogy(steps, predicted, color=colour, linewidth=1.6, label=f"δ = {distance:.0e}")
            forward.semilogy(steps, np.where(actual > 0, actual, np.nan), ".", color=colour, markersize=4)
        forward.set_title(name, fontweight="bold")
        forward.set(xlabel="step t", ylabel="distance of the two states")
        forward.set_ylim(max(forward.get_ylim()[0], 1e-17), min(forward.get_ylim()[1], 1e6))
        backward.semilogy(steps, result.predicted_back, color="#440154", linewidth=1.6, label="‖(dh_T/dh_t)ᵀ g‖")
        measured = np.where(result.actual_back > 0, result.actual_back, np.nan)
        backward.semilogy(steps, measured, ".", color="#440154", markersize=4, label="central difference")
        backward.set(xlabel="step t (the gradient enters at T)", ylabel="sensitivity of gᵀh_T to h_t")
    axes[0, 0].legend(title="lines: predicted, dots: actual", frameon=False, fontsize="small")
    axes[1, 0].legend(frameon=False, fontsize="small")
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    files.write_figure(path, figure, dpi=130)


EXPERIMENT = harness.Experiment(
    name="perturbation",
    purpose="predicted and actual divergence of two trajectories, forward and backward",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=plot,
)

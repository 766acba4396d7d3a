"""When gradients vanish or explode: recurrent gain × scheme × cell on real text, against what theory expects."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import harness, systems, text
from jaxbptt import cells, spectra
from jaxbptt.checks import require_size
from jaxbptt.jacobians import product, step_jacobians
from jaxbptt.trajectories import unroll

CELLS = {"elman": "Elman", "lstm": "LSTM", "gru": "GRU"}
GATES = {"lstm": lambda factors: factors.forget, "gru": lambda factors: factors.carry}  # ∂⁺h/∂⁺h_{t−1} past the weights
SCHEMES = {"gaussian": cells.gaussian, "orthogonal": cells.orthogonal, "identity": cells.identity}
GAINS = tuple(2.0 ** (k / 3) for k in range(-6, 7))  # 0.25 … 4
SHOWN = (3, 6, 9)  # of GAINS: ½, 1, 2, whose singular values are followed over time
SAMPLES = 8  # steps at which eigenvalues and norms of J_t are taken
RECORDS = 25  # of the singular values over time
WARM_UP = 50  # symbols read before step 1
PARTED = 0.05  # nats per step: theory and truth have parted
RADII, POWER, SYMMETRIC = (0.9, 1.0, 1.1), 40, 100  # the symmetric case: ρ(W), t, N
THEORIES = {  # field of Sweep: its name in figure and words, colour, line
    "powers": (r"powers of W, $\ln\rho(W)$", "#d1495b", "--"),
    "bound": (r"bound, $\ln\gamma\sigma_{max}(W)$", "#7a5195", "-."),
    "norms": (r"step norms, $\ln\Vert J_t\Vert$", "#b8860b", "-."),
    "radii": (r"step eigenvalues, $\ln\rho(J_t)$", "#2a9d8f", ":"),
    "mean_field": ("mean field, driven", "#111111", "-"),
    "carry": ("the gate alone", "#d1495b", "--"),
}
SCHEME_STYLES = (("#31688e", "o"), ("#1f9e89", "s"), ("#c77d0a", "D"))
GAIN_COLOURS = ("#3b76af", "#555555", "#c8553d")


@dataclass(frozen=True)
class Config:
    text: str | None = field(default=None, metadata={"help": "a text file", "shown": "CPython's documentation"})
    size: int = field(default=64, metadata={"help": "state entries N (an LSTM has N // 2 units)"})
    length: int = field(default=300, metadata={"help": "steps T"})
    seed: int = field(default=0, metadata={"help": "seed of the weights"})
    out: str = field(default="results/vanishing", metadata={"help": "folder of the results"})


class Sweep(NamedTuple):
    """One cell under one scheme. G gains, N state entries, R records at `steps`, S sampled steps. Rates: nats per step.

    k is a quarter of N. A theory that does not speak of the cell or the scheme is NaN.
    """

    gains: np.ndarray  # [G]
    exponents: np.ndarray  # [G, k] descending
    standard_error: np.ndarray  # [G, k]
    steps: np.ndarray  # [R] t
    log_singular_values: np.ndarray  # [3, R, N] of dh_t/dh_0, for the gains SHOWN
    weight_eigenvalues: np.ndarray  # [G, H] complex, of W_hh (of its candidate block: LSTM's g, GRU's n)
    jacobian_eigenvalues: np.ndarray  # [G, S, N] complex, of J_t
    powers: np.ndarray  # [G] ln ρ(W): |λ| powers, the linear net
    bound: np.ndarray  # [G] ln γσ_max(W), γ = max φ' = 1: nothing grows faster
    mean_field: np.ndarray  # [G] λ_1 at N → ∞, driven by as much as the text drives it
    carry: np.ndarray  # [G] mean ln of the forget or update gate, the largest over units: the gate alone
    norms: np.ndarray  # [G] mean ln ‖J_t‖: the product of step norms
    radii: np.ndarray  # [G] mean ln ρ(J_t): the eigenvalues of each step


def run(config: Config, progress: Any = lambda message: None) -> dict[str, Sweep]:
    """Every cell under every scheme, "cell, scheme", in float64 (the caller enables x64)."""
    require_size("size", config.size, least=2)
    require_size("length", config.length)
    available = text.load_text(config.text)
    if config.length > (most := len(available) - WARM_UP):
        raise ValueError(f"length: got T = {config.length}, expected at most {most} (the text less {WARM_UP} symbols)")
    symbols = text.encode(available[: config.length + WARM_UP])
    one_hot = jax.nn.one_hot(symbols, len(text.ALPHABET), dtype=jnp.result_type(float))
    every, results = max(1, config.length // RECORDS), {}
    # N is the same for every cell: one compilation of each serves all.
    exponents_of = jax.jit(partial(spectra.lyapunov_exponents, k=max(1, config.size // 4)))
    follow = jax.jit(lambda jacobians: spectra.log_singular_values(jacobians, every=every))
    for cell_name in CELLS:
        make = partial(getattr(cells, cell_name), len(text.ALPHABET), config.size // (2 if cell_name == "lstm" else 1))
        chain_of = jax.jit(partial(_chain, make(), GATES.get(cell_name)))
        for scheme, draw in SCHEMES.items():
            progress(f"{cell_name}, {scheme}")
            drawn = make(recurrent=draw(1.0)).init(jax.random.key(config.seed))
            rows, records = [], []
            for i, gain in enumerate(GAINS):
                jacobians, carry = chain_of(drawn._replace(w_hh=gain * drawn.w_hh), one_hot)
                result = exponents_of(jacobians)
                sampled = jacobians[np.linspace(0, config.length - 1, SAMPLES).astype(int)]
                rows.append(list(map(np.asarray, (result.exponents, result.standard_error, carry, sampled))))
                if i in SHOWN:
                    records.append(np.asarray(follow(jacobians)))
            columns = [np.stack(column) for column in zip(*rows, strict=True)]
            steps = np.minimum(every * np.arange(1, len(records[0]) + 1), config.length)
            hidden = drawn.w_hh.shape[1]
            tanh_gate = drawn.w_hh[-hidden:] if cell_name != "lstm" else drawn.w_hh[2 * hidden : 3 * hidden]
            weights = np.multiply.outer(GAINS, np.asarray(tanh_gate))
            results[f"{cell_name}, {scheme}"] = _sweep(cell_name, scheme, columns, steps, np.stack(records), weights)
    return results


def _chain(cell, gate, params, inputs):
    """(J_t [T, N, N] after the warm-up, mean ln of the gate)."""
    settled = jax.tree.map(lambda leaf: leaf[-1], unroll(cell, params, inputs[:WARM_UP]).states)
    trajectory = unroll(cell, params, inputs[WARM_UP:], initial=settled)
    carry = jnp.nan
    if gate is not None:
        factors = jax.vmap(lambda state, x: cell.derivation.pullback.factors(params, state, x))
        log_gates = jnp.log(gate(factors(trajectory.previous, trajectory.inputs)))
        carry = jnp.max(jnp.mean(log_gates, axis=0))
    return step_jacobians(cell, params, trajectory), carry


def _sweep(cell_name, scheme, columns, steps, records, weights):
    exponents, standard_error, carry, sampled = columns
    nothing = np.full(len(GAINS), np.nan)
    eigenvalues, of_steps = np.linalg.eigvals(weights), np.linalg.eigvals(sampled)
    sweep = Sweep(
        gains=np.array(GAINS),
        exponents=exponents,
        standard_error=standard_error,
        steps=steps,
        log_singular_values=records,
        weight_eigenvalues=eigenvalues.astype(complex),
        jacobian_eigenvalues=of_steps.astype(complex),
        powers=np.log(np.abs(eigenvalues).max(axis=1)),
        bound=np.log(np.linalg.norm(weights, ord=2, axis=(1, 2))),
        mean_field=nothing,
        carry=carry,
        norms=np.log(np.linalg.norm(sampled, ord=2, axis=(2, 3))).mean(axis=1),
        radii=np.log(np.abs(of_steps).max(axis=2)).mean(axis=1),
    )
    if cell_name != "elman":
        return sweep._replace(powers=nothing, bound=nothing)
    if scheme != "gaussian":
        return sweep
    drive = 1 / len(text.ALPHABET)  # one column of w_hx, N(0, 1/M), at a time
    return sweep._replace(mean_field=np.array([systems.mean_field_exponent(gain, drive) for gain in GAINS]))


def symmetric_norms() -> dict[float, float]:
    """‖J⁴⁰‖ of the symmetric 100 × 100 linear net, by its spectral radius."""
    norms = {}
    for radius in RADII:
        cell = systems.symmetric(SYMMETRIC, radius)
        params = cell.init(jax.random.key(0))
        chain = step_jacobians(cell, params, unroll(cell, params, jnp.zeros((POWER, 0))))
        norms[radius] = float(jnp.linalg.norm(product(chain, 0, POWER), ord=2))
    return norms


def summarise(sweep: Sweep) -> dict[str, Any]:
    """Where λ_1 crosses zero, in words, too, and over which gains each theory holds."""
    top = sweep.exponents[:, 0]
    theories = {name: getattr(sweep, name) for name in THEORIES if np.isfinite(getattr(sweep, name)).all()}
    holds = {name: _longest_run(np.abs(rates - top) <= PARTED, sweep.gains) for name, rates in theories.items()}
    up, crossing = np.flatnonzero((top[:-1] < 0) & (top[1:] >= 0)), None
    if len(up):
        around = slice(up[0], up[0] + 2)
        crossing = float(np.exp(np.interp(0, top[around], np.log(sweep.gains[around]))))
        after = "exploding" if (top[up[0] + 1 :] > 0).all() else "either"
        words = f"vanishing below gain {crossing:.2f}, {after} above"
    elif (top < 0).all() or (top > 0).all():
        words = ("vanishing" if top[0] < 0 else "exploding") + f" at every gain, {GAINS[0]:g} to {GAINS[-1]:g}"
    else:
        words = "exploding at the smallest gain, but not at every one"
    return {
        "crossing": crossing,
        "gains": sweep.gains.tolist(),
        "exponent": top.tolist(),
        "standard_error": sweep.standard_error[:, 0].tolist(),
        "theory_holds": holds,
        "verdict": words,
    }


def _longest_run(right, gains):
    """[first, last] gain of the longest unbroken run, None if there is none."""
    runs = np.split(np.arange(len(gains)), np.flatnonzero(np.diff(right)) + 1)
    longest = max((run for run in runs if right[run[0]]), key=len, default=None)
    return None if longest is None else [float(gains[longest[0]]), float(gains[longest[-1]])]


def plot(results: dict[str, Sweep], path: Path) -> None:
    """One row a cell: singular values over time, λ_1 over gain, the complex plane, theory less truth."""
    from matplotlib.figure import Figure

    rows = [name for name in CELLS if f"{name}, gaussian" in results]
    figure = Figure(figsize=(19, 1.2 + 4.1 * len(rows)), layout="constrained")
    size = results[f"{rows[0]}, gaussian"].log_singular_values.shape[2]
    figure.suptitle(f"Where the gradient goes: recurrent nets reading text, N = {size}, weights as drawn", fontsize=17)
    axes = figure.subplots(len(rows), 4, squeeze=False, width_ratios=(1.1, 1.2, 0.9, 1.1))
    for row, name in zip(axes, rows, strict=True):
        gaussian = results[f"{name}, gaussian"]
        _plot_growth(row[0], gaussian)
        _plot_exponents(row[1], {scheme: results[f"{name}, {scheme}"] for scheme in SCHEMES})
        _plot_plane(row[2], gaussian, "W" if name == "elman" else "W, candidate block")
        _plot_gaps(row[3], gaussian)
        row[0].set_ylabel(f"$\\bf{{{CELLS[name]}}}$\n" + r"$\log_{10}\,\sigma_i(dh_t/dh_0)$")
        for ax in row:
            ax.spines[["top", "right"]].set_visible(False)
    titles = ("singular values over time", r"growth rate $\lambda_1$ over gain")
    titles += ("eigenvalues and the unit circle", r"theory less truth, Gaussian weights")
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontweight="bold", pad=10)
    harness.write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))


def _plot_growth(ax, sweep):
    """σ_1 and the upper quarter of the spectrum for three gains; dashed, what a theory without a fit expects."""
    name = "powers" if np.isfinite(sweep.powers).all() else "carry"
    for i, values, colour in zip(SHOWN, sweep.log_singular_values / np.log(10), GAIN_COLOURS, strict=True):
        quarter = np.maximum(values[:, values.shape[1] // 4], -1e4)  # −inf cannot be drawn
        ax.fill_between(sweep.steps, quarter, values[:, 0], color=colour, alpha=0.16, linewidth=0)
        ax.plot(sweep.steps, values[:, 0], color=colour, linewidth=2.6, label=f"gain {sweep.gains[i]:.2g}")
        theory = sweep.steps * getattr(sweep, name)[i] / np.log(10)
        ax.plot(sweep.steps, theory, color=colour, linewidth=1.4, linestyle="--")
    ax.plot([], [], color="0.3", linestyle="--", linewidth=1.4, label=THEORIES[name][0])
    ax.axhline(0, color="0.5", linewidth=0.8)
    tops = sweep.log_singular_values[:, :, 0] / np.log(10)
    low, high = min(tops.min(), -1), max(tops.max(), 1)
    ax.set(ylim=(low - 0.35 * (high - low), high + 0.1 * (high - low)), xlim=(0, sweep.steps[-1]), xlabel="step t")
    ax.legend(frameon=False, loc="lower left", fontsize="small")


def _plot_exponents(ax, sweeps):
    """λ_1 with error bars (two standard errors) for every scheme, and the theories for the Gaussian one."""
    _plot_theories(ax, sweeps["gaussian"], 0)
    for (scheme, sweep), (colour, marker) in zip(sweeps.items(), SCHEME_STYLES, strict=True):
        error = 2 * sweep.standard_error[:, 0]
        style = {"color": colour, "marker": marker, "markersize": 5.5, "linewidth": 0.8, "capsize": 2.5}
        ax.errorbar(sweep.gains, sweep.exponents[:, 0], error, elinewidth=1.6, label=scheme, **style)
    ax.axhline(0, color="0.5", linewidth=0.8)
    top = np.concatenate([sweeps[scheme].exponents[:, 0] for scheme in ("gaussian", "orthogonal")])
    low, high = min(top.min(), -0.1), max(top.max(), 0.1)
    ax.set(ylim=(low - 0.25 * (high - low), high + 0.3 * (high - low)), ylabel="nats per step")
    handles = [entry for entry in zip(*ax.get_legend_handles_labels(), strict=True) if entry[1] in SCHEMES]
    ax.legend(*zip(*handles, strict=True), frameon=False, loc="upper left")


def _plot_plane(ax, sweep, whose):
    """Eigenvalues of J_t along the text, dots, and of W, rings, for three gains."""
    for i, colour in reversed(list(zip(SHOWN, GAIN_COLOURS, strict=True))):
        of_steps, of_weights = sweep.jacobian_eigenvalues[i].ravel(), sweep.weight_eigenvalues[i]
        ax.plot(of_steps.real, of_steps.imag, ".", color=colour, markersize=2.8, alpha=0.4)
        ax.plot(of_weights.real, of_weights.imag, "o", mfc="none", mec=colour, markersize=5.5, markeredgewidth=1)
    circle = np.exp(1j * np.linspace(0, 2 * np.pi, 200))
    ax.plot(circle.real, circle.imag, color="0.1", linewidth=1.4)
    ax.plot([], [], ".", color="0.3", label="of $J_t$")
    ax.plot([], [], "o", mfc="none", mec="0.3", label=f"of {whose}")
    ax.legend(frameon=False, fontsize="small", loc="upper right", handletextpad=0.1)
    ax.set(xlabel=r"Re $\lambda$", ylabel=r"Im $\lambda$")
    ax.set_aspect("equal", adjustable="datalim")


def _plot_gaps(ax, sweep):
    """Each theory less λ_1; inside the band they agree."""
    ax.axhspan(-PARTED, PARTED, color="0.88", linewidth=0, label=f"within {PARTED:g}")
    _plot_theories(ax, sweep, sweep.exponents[:, 0])
    ax.set_yscale("symlog", linthresh=0.1)
    ticks = (-1, -0.3, -0.1, 0, 0.1, 0.3, 1)
    ax.set_yticks(ticks, [f"{tick:+g}".replace("-", "−") if tick else "0" for tick in ticks])
    ax.set(ylabel="nats per step", ylim=(-0.5, 20))
    ax.legend(frameon=False, fontsize="small", ncols=2, loc="upper left")


def _plot_theories(ax, sweep, less):
    for name, (label, colour, line) in THEORIES.items():
        theory = getattr(sweep, name)
        if np.isfinite(theory).any():
            ax.plot(sweep.gains, theory - less, color=colour, linestyle=line, linewidth=1.8, label=label)
    ax.set(xscale="log", xlabel="gain of the recurrent weights")
    ax.set_xticks(sweep.gains[::3], [f"{gain:g}" for gain in sweep.gains[::3]])
    ax.minorticks_off()


def main(arguments: list[str]) -> int:
    config = harness.parse(Config, arguments, "python -m experiments vanishing", __doc__)
    jax.config.update("jax_enable_x64", True)
    out, progress = Path(config.out), harness.Progress()
    results = run(config, progress)
    progress("figure")
    plot(results, out / "figure.png")
    norms = symmetric_norms()
    summary = {name: summarise(sweep) for name, sweep in results.items()}
    harness.write_results(out, config, results)
    harness.write_json(out / "summary.json", {**summary, "symmetric_norms": {f"{k:g}": v for k, v in norms.items()}})
    for name, entry in summary.items():
        holds = [(THEORIES[key][0].split(", $")[0], gains) for key, gains in entry["theory_holds"].items() if gains]
        said = ", ".join(f"{theory} from gain {low:.2g} to {high:.2g}" for theory, (low, high) in holds)
        print(f"{name}: {entry['verdict']}; right within {PARTED} nats: {said or 'no theory'}")
    said = ", ".join(f"{norm:.3g} for radius {radius:g}" for radius, norm in norms.items())
    print(f"‖J^{POWER}‖ of the symmetric {SYMMETRIC} × {SYMMETRIC} net: {said}")
    progress(f"wrote config.json, arrays.npz, summary.json and figure.png to {out}")
    return 0

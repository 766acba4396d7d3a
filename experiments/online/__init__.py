"""Online estimators on four tasks: cosine to the exact gradient over training, final loss and cost."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments import harness, text
from experiments.online_tasks import DELAY, RATES, TASKS, Task, estimate, make_tasks, step_gradients, train
from jaxbptt import gradients, online
from jaxbptt.checks import require_above, require_size
from jaxbptt.models import step_losses
from jaxbptt.trajectories import unroll

EXACT = "RTRL"
LEAK = 0.9  # 1 − 1/τ with τ = 10, as the published RFLO, on a cell that has no leak
RULES = {
    EXACT: (online.rtrl(), "#222222", None),
    "SnAp-1": (online.snap(1), "#31688e", (0.41, 0.69)),
    "KF-RTRL": (online.kf_rtrl(), "#2a9d8f", (0.48, 0.56)),
    "RFLO": (online.rflo(leak=LEAK), "#c77d0a", (0.18, 0.58)),
    "RFLO, no leak": (online.rflo(), "#e3b778", None),
    "UORO": (online.uoro(), "#d1495b", (0.04, 0.10)),
}  # rule, colour, range over tasks of the cosines published with sketched-rtrl, N = 64
MEASURES = ("cosine", "mean_cosine_one_step")
WHY = """published: sketched-rtrl's shipped results, N = 64. They differ from ours in
  what is compared: single steps averaged over a batch, along the training by the rule itself, which moves the params
    at every step (ours: fixed params, along the training by exact gradients; both leave out the readout)
  the weights: uniform of gain 0.58 (ours: Gaussian of gain 1 unless --gain says otherwise)
  the tasks: copy and adding with a loss only at the end of 50 and 100 steps, rotation, a^n b^n, 20,000 steps long
  RFLO: there a trace of leak 0.9 on a cell without leak, as RFLO here; a plain Elman net has no leak, and RFLO read
    from the cell, "no leak", is a truncation to one step"""


@dataclass(frozen=True)
class Config:
    task: str = field(default="all", metadata={"choices": ("all", *TASKS), "help": "which task"})
    text: str | None = field(default=None, metadata={"help": "a text file", "shown": "CPython's documentation"})
    hidden: int = field(default=64, metadata={"help": "units N of the Elman net"})
    gain: float = field(default=1.0, metadata={"help": "gain of its recurrent weights at the start"})
    length: int = field(default=32, metadata={"help": "steps T of a sequence"})
    updates: int = field(default=160, metadata={"help": "parameter updates"})
    records: int = field(default=4, metadata={"help": "times after the start that cosines are measured"})
    batch: int = field(default=2, metadata={"help": "sequences an update"})
    sequences: int = field(default=6, metadata={"help": "sequences a cosine is measured on, each with its own signs"})
    keys: int = field(default=3, metadata={"help": "trainings: weights, data and signs"})
    seed: int = field(default=0, metadata={"help": "seed of everything random"})
    out: str = field(default="results/online", metadata={"help": "folder of the results"})


class Outcome(NamedTuple):
    """One task. R rules, D keys, E times along the training by exact gradients, W windows, L rates.

    A cosine is between Σ g_t over a window of consecutive steps and the same sum of exact dL_t/dθ, of the cell's
    params (the readout's are exact by every rule), and a mean over windows and sequences.
    """

    rules: np.ndarray  # [R] names
    updates: np.ndarray  # [E] done
    windows: np.ndarray  # [W] steps, the last T
    cosine: np.ndarray  # [R, E, D, W] one sequence; RTRL: the first sequence alone
    mean_cosine: np.ndarray  # [R, E, D, W] of gradients averaged over the sequences
    cosine_all: np.ndarray  # [R, E, D] one sequence, window T, the readout's params included
    rates: np.ndarray  # [L]
    start: np.ndarray  # [D] held-out loss per step before training
    final: np.ndarray  # [R, L, D] after; RTRL by BPTT, whose gradient is the same
    state_floats: np.ndarray  # [R]
    flops: np.ndarray  # [R] per step


def run(config: Config, progress: Any = lambda message: None) -> dict[str, Outcome]:
    """Every task, in JAX's default float."""
    require_above("gain", config.gain, 0)
    for name, least in {"hidden": 1, "length": DELAY + 1, "batch": 1, "sequences": 1, "keys": 2, "records": 1}.items():
        require_size(name, getattr(config, name), least=least)
    require_size("updates", config.updates, least=config.records)
    symbols = text.encode(text.load_text(config.text))
    require_size("length", config.length, most=len(symbols) // 10 - 2)
    tasks = make_tasks(config.hidden, config.length, config.gain, symbols)
    names = TASKS if config.task == "all" else (config.task,)
    return {name: _run_task(name, tasks[name], config, progress) for name in names}


def _run_task(name, task: Task, config, progress):
    keys = jax.random.split(jax.random.key(config.seed), config.keys)
    begin = jax.jit(jax.vmap(task.model.init))(keys)
    concrete = jax.tree.map(lambda leaf: leaf[0], begin)
    # Made outside jit, as SnAp's patterns need; h_0 = 0 and A_0 = 0 for any params, so it serves them all.
    states = {rule: make.init(task.model, concrete, keys[0]) for rule, (make, *_) in RULES.items()}
    costs = [make.cost(task.model, concrete) for make, *_ in RULES.values()]

    progress(f"{name}: training by exact gradients")
    start, found, final = train(task, config, keys, begin, lambda *call: gradients.bptt(task.model, *call[:-1])[1])
    finals, best = {EXACT: final}, _best_rate(final)
    for rule, state in states.items():
        if rule != EXACT:
            progress(f"{name}: training by {rule}")
            finals[rule] = train(task, config, keys, begin, partial(estimate, RULES[rule][0], state))[2]

    along = [jax.tree.map(lambda leaf: leaf[best], params) for params in found]
    progress(f"{name}: cosines")
    windows = [2**i for i in range(12) if 2**i < config.length] + [config.length]
    every = config.updates // config.records
    return Outcome(
        np.array(list(RULES)),
        every * np.arange(config.records + 1),
        np.array(windows),
        *_measure(task, config, keys, along, states, windows),
        np.array(RATES),
        start[0],
        np.stack([finals[rule] for rule in RULES]),
        np.array([cost.state_floats for cost in costs]),
        np.array([cost.flops for cost in costs]),
    )


def _best_rate(final):
    """The rate of the least mean final loss, [L, D]; a training that failed is not the best."""
    return int(np.argmin(np.mean(np.where(np.isfinite(final), final, np.inf), axis=1)))


def _measure(task, config, keys, along, states, windows):
    """(cosine [R, E, D, W], mean_cosine [R, E, D, W], cosine_all [R, E, D])."""
    size = sum(leaf.size for leaf in jax.tree.leaves(along[0].cell)) // config.keys
    flat = jax.vmap(lambda tree: ravel_pytree(tree)[0])

    def exact_steps(params, inputs, targets):
        def losses(params):
            return step_losses(task.model, params, unroll(task.model, params, inputs).states, targets)

        return flat(jax.jacrev(losses)(params))

    def compare(rule, params, data, signs, exact):
        steps = partial(step_gradients, RULES[rule][0], states[rule])
        estimates = jax.vmap(lambda *one: flat(steps(params, *one)))(*data, signs)
        each = [cosine_by_window(estimates[..., :size], exact[..., :size], window) for window in windows]
        means = [part.mean(axis=0, keepdims=True)[..., :size] for part in (estimates, exact)]
        mean = [cosine_by_window(*means, window) for window in windows]
        return jnp.stack(each), jnp.stack(mean), cosine_by_window(estimates, exact, config.length)

    def measure(params, key):
        draws = jax.random.split(jax.random.fold_in(key, config.updates), (2, config.sequences))
        data = jax.vmap(task.draw)(draws[0])
        whole = data, draws[1], jax.vmap(partial(exact_steps, params))(*data)
        first = jax.tree.map(lambda leaf: leaf[:1], whole)  # RTRL is N times the others' price
        rows = [compare(rule, params, *(first if rule == EXACT else whole)) for rule in RULES]
        return tuple(jnp.stack(column) for column in zip(*rows, strict=True))

    jitted = jax.jit(jax.vmap(measure, out_axes=1))
    rows = [jax.tree.map(np.asarray, jitted(params, keys)) for params in along]
    return tuple(np.stack(column, axis=1) for column in zip(*rows, strict=True))


def cosine_by_window(estimate: jax.Array, exact: jax.Array, window: int) -> jax.Array:
    """Mean cosine of the sums over blocks of `window` steps, of [S, T, P] each; a block whose sum is 0 is left out."""
    count = estimate.shape[1] // window
    sums = lambda steps: steps[:, : count * window].reshape(len(steps), count, window, -1).sum(axis=2)  # noqa: E731
    a, b = sums(estimate), sums(exact)
    return jnp.nanmean(jnp.sum(a * b, axis=-1) / (jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)))


def summarise(results: dict[str, Outcome]) -> dict[str, Any]:
    """Per rule and task: cosines averaged over training and keys, final loss at the best rate, cost."""
    return {name: _summarise_task(outcome) for name, outcome in results.items()}


def _summarise_task(outcome):
    rules = {}
    for i, rule in enumerate(map(str, outcome.rules)):
        best = _best_rate(outcome.final[i])
        rules[rule] = {
            "cosine": float(outcome.cosine[i, ..., -1].mean()),
            "cosine_start": float(outcome.cosine[i, 0, :, -1].mean()),
            "cosine_end": float(outcome.cosine[i, -1, :, -1].mean()),
            "cosine_one_step": float(outcome.cosine[i, ..., 0].mean()),
            "mean_cosine_one_step": float(outcome.mean_cosine[i, ..., 0].mean()),
            "cosine_with_readout": float(outcome.cosine_all[i].mean()),
            "final": float(outcome.final[i, best].mean()),
            "final_spread": float(outcome.final[i, best].std(ddof=1)),
            "rate": float(outcome.rates[best]),
            "state_floats": int(outcome.state_floats[i]),
            "flops_per_step": int(outcome.flops[i]),
        }
    return {"start": float(outcome.start.mean()), "rules": rules}


def in_words(summary: dict[str, Any]) -> list[str]:
    """The cosines beside the published ones, and the tasks by what each rule learned."""
    get = lambda rule, key: [task["rules"][rule][key] for task in summary.values()]  # noqa: E731
    lines = ["cosine to the exact gradient, range over tasks, of whole sequences | of single steps | published"]
    for rule, (_, _, published) in RULES.items():
        spans = [f"{min(values):.2f} to {max(values):.2f}" for values in map(partial(get, rule), MEASURES)]
        lines.append(
            f"  {rule:14} {spans[0]} | {spans[1]} | " + ("{:.2f} to {:.2f}".format(*published) if published else "none")
        )
    for name, task in summary.items():
        ranked = sorted(task["rules"].items(), key=lambda item: item[1]["final"])
        lost = ", ".join(f"{rule} {entry['final']:.3f}" for rule, entry in ranked)
        lines.append(f"{name}: loss per step from {task['start']:.3f} to {lost}")
    return lines


def plot(results: dict[str, Outcome], path: Path) -> None:
    """Above: cosine over training, published ranges at the side. Then final losses. Below: windows and cost."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 15.5), layout="constrained")
    figure.suptitle("Gradients forward in time: what each online rule keeps, learns and costs", fontsize=17)
    above, below = figure.subfigures(2, 1, height_ratios=(3, 1))
    rows = above.subplots(3, len(results), squeeze=False)
    for axes, (name, outcome) in zip(rows.T, results.items(), strict=True):
        _plot_training(axes[0], name, outcome)
        _plot_windows(axes[1], outcome)
        _plot_losses(axes[2], name, outcome)
    rows[0, 0].set_ylabel("cosine to the exact gradient\nof a sequence (cell's params)")
    rows[1, 0].set_ylabel("cosine, mean over training\nsolid: one sequence, dashed: their mean")
    rows[0, 0].legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(0, 0.93), ncols=2)
    costs = below.subplots(1, 2)
    _plot_cost(costs[0], results, "state_floats", "floats in the state")
    _plot_cost(costs[1], results, "flops", "flops a step, the rule's own")
    rows = np.concatenate((rows.ravel(), costs))
    for ax in rows.flat:
        ax.title.set_fontweight("bold")
        ax.spines[["top", "right"]].set_visible(False)
    harness.write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))


def _plot_training(ax, name, outcome):
    last = outcome.updates[-1]
    for i, (rule, (_, colour, published)) in enumerate(RULES.items()):
        values = outcome.cosine[i, ..., -1]
        ax.plot(outcome.updates, values.mean(axis=1), color=colour, marker="o", markersize=4, label=rule, **_line(rule))
        ax.fill_between(outcome.updates, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.18, linewidth=0)
        if published:
            place = last * (1.06 + 0.05 * i)
            ax.plot([place, place], published, color=colour, linewidth=6, alpha=0.75, solid_capstyle="butt")
    ax.text(last * 1.2, 1.0, "published", ha="center", va="bottom", fontsize=9, color="0.35")
    ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.set(title=name, xlabel="updates by exact gradients", ylim=(-0.1, 1.08), xlim=(-0.02 * last, 1.36 * last))
    ax.set_xticks(outcome.updates)


def _line(rule):
    """ "No leak" wide and behind: it all but hides SnAp-1."""
    return {"linewidth": 6, "zorder": 1} if rule == "RFLO, no leak" else {"linewidth": 2}


def _plot_losses(ax, name, outcome):
    for i, (_, colour, _) in enumerate(RULES.values()):
        final = outcome.final[i, _best_rate(outcome.final[i])]
        ax.barh(i, final.mean(), color=colour, alpha=0.45)
        ax.plot(final, np.full(len(final), i), "o", color=colour, markersize=5)
    ax.axvline(outcome.start.mean(), color="0.4", linestyle="--", linewidth=1)
    ax.set_yticks(range(len(RULES)), RULES if ax.get_subplotspec().is_first_col() else [""] * len(RULES))
    ax.invert_yaxis()
    ax.set(title="final held-out loss", xlabel=f"loss per step ({TASKS[name]}); dashed: untrained")


def _plot_windows(ax, outcome):
    for i, (rule, (_, colour, _)) in enumerate(RULES.items()):
        alone = outcome.cosine[i].mean(axis=(0, 1))
        ax.plot(outcome.windows, alone, color=colour, marker="o", markersize=4, **_line(rule))
        ax.plot(outcome.windows, outcome.mean_cosine[i].mean(axis=(0, 1)), color=colour, linewidth=1.2, linestyle="--")
    ax.set(title="over the window of losses", xlabel="steps summed", xscale="log", ylim=(-0.1, 1.08))
    ax.set_xticks(outcome.windows, outcome.windows)
    ax.minorticks_off()


def _plot_cost(ax, results, what, label):
    """Bars of the first task; the others differ in their inputs alone."""
    values = getattr(next(iter(results.values())), what)
    for i, (_, colour, _) in enumerate(RULES.values()):
        ax.barh(i, max(values[i], 1), color=colour, alpha=0.75)
        ax.text(max(values[i], 1) * 1.15, i, f"{values[i]:,}", va="center", fontsize=9)
    ax.set_yticks(range(len(RULES)), RULES)
    ax.invert_yaxis()
    ax.set(title="cost: " + label, xscale="log", xlabel=f"{label} ({next(iter(results))})")
    ax.set_xlim(10, values.max() * 8)


def main(arguments: list[str]) -> int:
    config = harness.parse(Config, arguments, "python -m experiments online", __doc__)
    out, progress = Path(config.out), harness.Progress()
    results = run(config, progress)
    progress("figure")
    plot(results, out / "figure.png")
    summary = summarise(results)
    harness.write_results(out, config, results)
    harness.write_json(out / "summary.json", summary)
    print("\n".join(in_words(summary)))
    print(WHY)
    progress(f"wrote config.json, arrays.npz, summary.json and figure.png to {out}")
    return 0

"""Online estimators on four tasks: cosine to the exact gradient over training, final loss and cost."""

from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import descent, harness, options, text
from experiments.text import KEEP
from jaxbptt import gradients

from . import rules
from .cosines import measure_cosines
from .figure import plot
from .summary import summarise
from .tasks import DELAY, RATES, TASKS, Task, estimate, make_tasks, train


@options.config
class Config:
    task: tuple = options.choices("all", TASKS, "tasks")
    text: str | None = options.file("a text file", shown="CPython's documentation")
    keep: tuple = options.choices("letters", KEEP, "kinds of characters of the text that stay; letters always do")
    hidden: int = options.size(64, "units N of the Elman net", least=rules.RANK)
    gain: float = options.number(1.0, "gain of its recurrent weights at the start", above=0)
    length: int = options.size(32, "steps T of a sequence", least=DELAY + 1)
    updates: int = options.size(160, "parameter updates, at least one for each record")
    records: int = options.size(4, "times after the start that cosines are measured")
    batch: int = options.size(2, "sequences an update")
    sequences: int = options.size(6, "sequences a cosine is measured on, each with its own signs")
    keys: int = options.size(3, "trainings: weights, data and signs", least=2)
    seed: int = options.seed()
    out: str = options.out("online")


class Exact(NamedTuple):
    """Training by exact gradients, at every rate and key."""

    start: np.ndarray  # [L, D] loss before
    final: np.ndarray  # [L, D] and after
    along: Any  # params at the best rate, leaves [E, D, …]


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
    final: np.ndarray  # [R, L, D] after; RTRL by BPTT, whose gradient is the same; NaN: not trained
    state_floats: np.ndarray  # [R]
    flops: np.ndarray  # [R] per step
    size: np.ndarray  # [] units N
    sequences: np.ndarray  # [] that a cosine is measured on


def run(config: Config, progress: Any = harness.QUIET) -> dict[str, Any]:
    """Every task, in JAX's default float, and the "alphabet" where text is one."""
    options.require_size("updates", config.updates, least=config.records)
    symbols, alphabet = text.load_text(config.text, config.keep)
    options.require_size("length", config.length, most=len(symbols) // 10 - 2)
    tasks = make_tasks(config.hidden, config.length, config.gain, symbols, len(alphabet.characters))
    results: dict[str, Any] = {name: _run_task(name, tasks[name], config, progress) for name in config.task}
    return results | ({"alphabet": alphabet} if "text" in config.task else {})


def _run_task(name, task: Task, config, progress):
    keys = jax.random.split(jax.random.key(config.seed), config.keys)
    begin = jax.jit(jax.vmap(task.model.init))(keys)
    concrete = jax.tree.map(lambda leaf: leaf[0], begin)
    # Made outside jit, as SnAp's patterns need; h_0 = 0 and A_0 = 0 for any params, so it serves them all.
    states = {rule: make.init(task.model, concrete, key=keys[0]) for rule, make in rules.RULES.items()}
    costs = [make.cost(task.model, concrete) for make in rules.RULES.values()]

    def train_exactly():
        start, found, final = train(task, config, keys, begin, lambda *call: gradients.bptt(task.model, *call[:-1])[1])
        best = descent.find_best_rates(final)
        return Exact(start, final, jax.tree.map(lambda *leaves: np.stack([leaf[best] for leaf in leaves]), *found))

    def train_online(rule):
        return train(task, config, keys, begin, partial(estimate, rules.RULES[rule], states[rule]))[2]

    todo = {f"{name}: training by exact gradients": train_exactly}
    (exact,) = progress.sweep(todo, Exact(0, 0, begin)).values()
    estimated = [rule for rule in states if rule not in {rules.EXACT, *rules.UNTRAINED}]
    todo = {f"{name}: training by {rule}": partial(train_online, rule) for rule in estimated}
    finals = {rules.EXACT: exact.final, **dict(zip(estimated, progress.sweep(todo, 0).values(), strict=True))}
    finals |= {rule: np.full_like(exact.final, np.nan) for rule in rules.UNTRAINED}
    windows = [2**i for i in range(12) if 2**i < config.length] + [config.length]
    measure = measure_cosines(task, config, keys, states, windows)
    every = config.updates // config.records
    todo = {
        f"{name}: cosines after {i * every} updates": partial(measure, jax.tree.map(itemgetter(i), exact.along))
        for i in range(config.records + 1)
    }
    rows = progress.sweep(todo, (0, 0, 0)).values()
    cosines = (np.stack(column, axis=1) for column in zip(*rows, strict=True))
    return Outcome(
        np.array(list(rules.RULES)),
        every * np.arange(config.records + 1),
        np.array(windows),
        *cosines,
        np.array(RATES),
        exact.start[0],
        np.stack([finals[rule] for rule in rules.RULES]),
        np.array([cost.state_floats for cost in costs]),
        np.array([cost.flops for cost in costs]),
        np.array(config.hidden),
        np.array(config.sequences),
    )


EXPERIMENT = harness.Experiment(
    name="online",
    purpose="gradients forward in time on four tasks: cosine to the exact one, final loss and cost",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=plot,
    float64=False,
    takes="5 min",
    alt={
        "figure.png": (
            "From the top, for each task: the cosine of every online rule's gradient to the exact one before and after "
            "training, a row a rule, beside published ranges, RTRL at 1, then the sum of Kronecker products and the "
            "sketch, UORO among the lowest; the cosine over the window of summed losses; the final held-out loss of "
            "every rule as bars with single keys as dots; the floats and the flops a step of each rule, where RTRL "
            "needs by far the most."
        ),
    },
)

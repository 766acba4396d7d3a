"""Truncation on real text: what is cut and kept, bias and spread at equal cost, and training by each scheme."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from experiments import harness, text
from experiments.truncation_figure import best_rates, plot, summarise
from jaxbptt import cells, gradients, truncation
from jaxbptt.checks import require_probability, require_size
from jaxbptt.models import sequence_model, softmax_cross_entropy
from jaxbptt.terms import gradient_terms
from jaxbptt.trajectories import unroll

RATES = (0.02, 0.035, 0.06, 0.1)  # of Adam at the start; it falls to 0 along a cosine; every method gets its best
CLIP = 1.0  # of the norm of an update's gradient, as the d2l book trains
RECORDS, MEASUREMENTS = 20, 4  # of the held-out loss, of the lag profile for the adaptive scheme
LAGS = (2, 3, 4, 6, 8, 12, 16, 24, 32)  # the adaptive lag is rounded up to one of these: one compilation each
WINDOWS = (2, 4, 8, 14, 24, 44, 72)  # K whose bias is measured
MEAN_LENGTHS = (1.5, 2, 3, 4, 6, 9, 14, 24)  # 1 / (1 − π) whose spread is measured
SEQUENCES = 8  # on which bias and spread are measured
HELD_OUT = 64  # sequences of the last tenth of the text
SHOWN = 32  # steps of the tables


@dataclass(frozen=True)
class Config:
    cell: str = field(default="elman", metadata={"choices": ("elman", "gru", "lstm"), "help": "which cell"})
    text: str | None = field(default=None, metadata={"help": "a text file", "shown": "CPython's documentation"})
    hidden: int = field(default=32, metadata={"help": "hidden units H"})
    length: int = field(default=96, metadata={"help": "steps T of a sequence"})
    window: int = field(default=7, metadata={"help": "K of regular truncation; the others cost the same"})
    tolerance: float = field(default=0.2, metadata={"help": "relative bias the adaptive scheme allows"})
    updates: int = field(default=500, metadata={"help": "parameter updates"})
    batch: int = field(default=4, metadata={"help": "sequences an update"})
    keys: int = field(default=8, metadata={"help": "trainings of each scheme: weights, batches and cuts"})
    draws: int = field(default=200, metadata={"help": "draws of the cuts, for bias and spread"})
    seed: int = field(default=0, metadata={"help": "seed of everything random"})
    out: str = field(default="results/truncation", metadata={"help": "folder of the results"})


class Tables(NamedTuple):
    """What is kept under full, regular and randomised truncation, on S steps of text, by the trained model."""

    letters: np.ndarray  # [S] read at steps 1 … S
    norms: np.ndarray  # [S, S] of the (t, k) table
    weights: np.ndarray  # [3, S, S]
    cuts: np.ndarray  # [3, S] True where the link into step t is cut


class Errors(NamedTuple):
    """Of the gradient of the cell's parameters on one sequence, over the rms norm of the exact one; rms over sequences.

    Cost: steps back a loss, the mean over t of the number of steps k that L_t is carried back to.
    """

    windows: np.ndarray  # [W] K
    window_cost: np.ndarray  # [W]
    carried: np.ndarray  # [W] bias, the state carried across
    zero_state: np.ndarray  # [W] bias, every window from h_0 = 0
    lags: np.ndarray  # [L]
    lag_cost: np.ndarray  # [L]
    lag: np.ndarray  # [L] bias
    keeps: np.ndarray  # [P] π
    random_cost: np.ndarray  # [P]
    spread: np.ndarray  # [P] rms about the mean of the draws
    mean_error: np.ndarray  # [P] of the mean of the draws: spread / √draws when there is no bias
    text_spread: np.ndarray  # scalar: the exact gradients about their mean over the sequences


class Training(NamedTuple):
    """M methods, R rates, D keys (the same weights and batches for every method), E records."""

    methods: np.ndarray  # [M] names; randomised: as many steps back as carried; randomised_wide: as long a mean window
    cost: np.ndarray  # [M] steps back a loss; of adaptive at its best rate
    rates: np.ndarray  # [R]
    updates: np.ndarray  # [E]
    losses: np.ndarray  # [M, R, D, E] held-out nats per symbol, the state carried through the sequence
    lags: np.ndarray  # [R, E] the adaptive scheme used


def run(config: Config, progress: Any = lambda message: None) -> dict[str, Any]:
    """{"training", "tables", "errors"}: training in float32, the rest in float64 (the caller enables x64)."""
    symbols = _symbols(config)
    cell = getattr(cells, config.cell)(len(text.ALPHABET), config.hidden)
    model = sequence_model(cell, len(text.ALPHABET), loss=softmax_cross_entropy, reduction="mean")
    train, held_out = jnp.asarray(symbols[: -(len(symbols) // 10)]), jnp.asarray(symbols[-(len(symbols) // 10) :])
    training, params = _train(model, config, train, held_out, progress)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.result_type(float)), params)
    progress("the (t, k) tables")
    tables = _tables(model, params, config, symbols)
    windows = _draw_windows(train, jax.random.key(config.seed + 1), SEQUENCES, config.length)
    return {"training": training, "tables": tables, "errors": _errors(model, params, config, windows, progress)}


def _symbols(config):
    for name, least in {"hidden": 1, "length": 3, "batch": 1, "keys": 2, "draws": 2}.items():
        require_size(name, getattr(config, name), least=least)
    require_size("updates", config.updates, least=RECORDS)
    require_size("window", config.window, least=2, most=config.length)
    require_probability("tolerance", config.tolerance)
    available = text.load_text(config.text)
    if config.length > (most := len(available) // 10 - 2):
        raise ValueError(f"length: got T = {config.length}, expected at most {most} (a tenth of the text, held out)")
    return text.encode(available)


def keep_probabilities(window: int) -> dict[str, float]:
    """π for (K + 1)/2 steps back a loss, as windows of K have, and for windows of mean length K; both with T → ∞."""
    return {"randomised": 1 - 2 / (window + 1), "randomised_wide": 1 - 1 / window}


def _routes(config):
    """(model, params, inputs, targets, key) -> (C, grads), of every scheme without a lag to choose."""
    regular = partial(truncation.windowed, length=config.window)
    routes = {
        "full": lambda *call: gradients.bptt(*call[:-1]),
        "carried": lambda *call: regular(*call[:-1]),
        "zero_state": lambda *call: regular(*call[:-1], carry_state=False),
    }
    for name, keep in keep_probabilities(config.window).items():
        routes[name] = lambda *call, keep=keep: truncation.randomised(*call[:-1], keep=keep, key=call[-1])
    return routes


def _draw_windows(symbols, key, count, length):
    """[count, T + 1] symbols from anywhere in the text."""
    starts = jax.random.randint(key, (count,), 0, len(symbols) - length)
    return symbols[starts[:, None] + jnp.arange(length + 1)[None]]


def _pairs(windows, dtype):
    return jax.nn.one_hot(windows[:, :-1], len(text.ALPHABET), dtype=dtype), windows[:, 1:]


def _train(model, config, train, held_out, progress):
    """(Training, the parameters that full BPTT found at its best rate, first key)."""
    every = config.updates // RECORDS
    held_out = _pairs(_draw_windows(held_out, jax.random.key(config.seed), HELD_OUT, config.length), jnp.float32)
    keys = jax.random.split(jax.random.key(config.seed), config.keys)
    adam = optax.chain(optax.clip_by_global_norm(CLIP), optax.scale_by_adam())

    def advance(route, state, rate, key, done):
        def update(state, step):
            params, moments = state
            batch_key, cut_key = jax.random.split(jax.random.fold_in(key, step))
            batch = _pairs(_draw_windows(train, batch_key, config.batch, config.length), jnp.float32)
            each = jax.vmap(partial(route, model, params))(*batch, jax.random.split(cut_key, config.batch))[1]
            moved, moments = adam.update(jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), each), moments)
            now = rate * (1 + jnp.cos(step.astype(rate.dtype) * (np.pi / (every * RECORDS)))) / 2
            return (jax.tree.map(lambda leaf, move: leaf - now * move, params, moved), moments), None

        state = jax.lax.scan(update, state, done + jnp.arange(every))[0]
        losses = jax.vmap(lambda *pair: gradients.run_forward(model, state[0], *pair, None)[1])(*held_out)
        return state, jnp.mean(losses)

    def trainer(route):
        over_keys = jax.vmap(partial(advance, route), in_axes=(0, None, 0, None))
        return jax.jit(jax.vmap(over_keys, in_axes=(0, 0, None, None)))

    def follow(choose, state, rates):
        """Held-out losses [R, D, RECORDS]; choose(i, state) is the trainer of the updates up to record i."""
        losses = [None] * RECORDS
        for i in range(RECORDS):
            state, losses[i] = choose(i, state)(state, rates, keys, i * every)
        return np.stack(losses, axis=-1), state

    rates = jnp.asarray(RATES, jnp.float32)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), jax.vmap(model.init)(keys))
    begin = params, jax.vmap(adam.init)(params)
    begin = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], len(RATES), axis=0), begin)
    losses, found = {}, None
    for name, route in _routes(config).items():
        progress(f"training, {name}")
        run_on = trainer(route)
        losses[name], state = follow(lambda i, state, run_on=run_on: run_on, begin, rates)
        if name == "full":
            best = int(best_rates(losses[name][None])[0])
            found = jax.tree.map(lambda leaf, best=best: leaf[best, 0], state[0])

    measured = jax.jit(jax.vmap(partial(_wanted_lag, model, config, train)))
    trainers, used, rows = {}, np.zeros((len(RATES), RECORDS), int), []

    def adapt(r, i, state):
        lag = used[r, i - 1]
        if i % (RECORDS // MEASUREMENTS) == 0:
            wanted = np.max(measured(jax.tree.map(lambda leaf: leaf[0], state[0]), keys))
            lag = min(next(lag for lag in LAGS if lag >= wanted), config.length)
        used[r, i] = lag
        if lag not in trainers:
            trainers[lag] = trainer(lambda *call: truncation.lag(*call[:-1], steps=int(lag)))
        return trainers[lag]

    for r in range(len(RATES)):
        progress(f"training, adaptive, rate {RATES[r]:g}")
        alone, rate = jax.tree.map(lambda leaf, r=r: leaf[r : r + 1], (begin, rates))
        rows.append(follow(partial(adapt, r), alone, rate)[0])
    losses["adaptive"] = np.concatenate(rows)
    stacked = np.stack(list(losses.values()))
    cost = [_count(truncation.window_weights(config.length, K)) for K in (config.length, config.window, config.window)]
    cost += list(_random_cost(np.array(list(keep_probabilities(config.window).values())), config.length))
    lags = used[best_rates(stacked)[-1]]
    cost.append(np.mean([_count(truncation.sliding_weights(config.length, 1, int(lag))) for lag in lags]))
    names, updates = np.array(list(losses)), every * np.arange(1, RECORDS + 1)
    return Training(names, np.array(cost), np.array(RATES), updates, stacked, used), found


def _wanted_lag(model, config, train, params, key):
    """L for the tolerance, from the mean lag profile of SEQUENCES sequences."""
    windows = _draw_windows(train, key, SEQUENCES, config.length)
    measure = partial(truncation.lag_profile, model, lags=min(LAGS[-1], config.length))
    profiles = jax.vmap(measure, in_axes=(None, 0, 0))(params, *_pairs(windows, jnp.float32))
    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), profiles)
    return truncation.choose_lag(mean.norms, config.tolerance, kept=mean.kept).lag


def _count(weights):
    """Steps back a loss of a table [T, T + 1]; the column of h_0 is no step."""
    return float(np.mean(np.sum(np.asarray(weights)[:, 1:] != 0, axis=1)))


def _random_cost(keep, length):
    """E of the steps back a loss for every π: the mean over t of 1 + π + … + π^{t−1}."""
    return np.mean((1 - np.power.outer(keep, np.arange(1, length + 1))).T / (1 - keep), axis=0)


def _tables(model, params, config, symbols):
    steps = min(SHOWN, config.length)
    window = symbols[config.length : config.length + steps + 1]  # the state before it is one the text leads to
    before, _ = _pairs(symbols[None, : config.length + 1], params.readout.b_y.dtype)
    initial = jax.tree.map(lambda leaf: leaf[-1], unroll(model, params, before[0]).states)
    inputs, targets = _pairs(window[None], params.readout.b_y.dtype)
    norms = jax.jit(partial(gradient_terms, model))(params, inputs[0], jnp.asarray(targets[0]), initial=initial).norms
    keep = keep_probabilities(config.window)["randomised"]
    drawn = truncation.draw_cuts(jax.random.key(config.seed), steps, keep)
    done = np.arange(steps)
    cuts = np.stack([done < 0, (done > 0) & (done % config.window == 0), drawn])
    regular, randomised = truncation.window_weights(steps, config.window), truncation.random_weights(drawn, keep)
    weights = np.stack([np.tri(steps), regular[:, 1:], randomised[:, 1:]])
    letters = np.array([text.ALPHABET[symbol] for symbol in window[:-1]])
    return Tables(letters, np.asarray(norms), weights, cuts)


def _errors(model, params, config, windows, progress):
    inputs, targets = _pairs(windows, params.readout.b_y.dtype)
    flat = lambda grads: ravel_pytree(grads.cell)[0]  # noqa: E731
    rms = lambda vectors: float(np.sqrt(np.mean(np.sum(np.square(vectors), axis=-1))))  # noqa: E731
    # One sequence at a time: each holds all its tables.
    each = lambda route: np.asarray(  # noqa: E731
        jax.jit(lambda data: jax.lax.map(lambda one: route(*one), data))((inputs, targets))
    )
    progress("bias of the deterministic schemes")
    exact = each(lambda *pair: flat(gradients.bptt(model, params, *pair)[1]))
    unit = rms(exact)
    sizes, lags = ([size for size in all_sizes if size < config.length] for all_sizes in (WINDOWS, LAGS))
    tables = [truncation.window_weights(config.length, size) for size in sizes]
    tables += [truncation.sliding_weights(config.length, 1, lag) for lag in lags]
    by_table = lambda x, y, table: flat(truncation.weighted_gradient(model, params, x, y, table)[1])  # noqa: E731
    kept = each(lambda *pair: jax.vmap(partial(by_table, *pair))(jnp.stack(tables)))
    bias, cost = np.array([(rms(kept[:, i] - exact) / unit, _count(table)) for i, table in enumerate(tables)]).T
    reset = partial(truncation.windowed, model, params, carry_state=False)
    zero_state = [rms(each(lambda *pair, K=K: flat(reset(*pair, length=K)[1])) - exact) / unit for K in sizes]

    progress(f"spread over {config.draws} draws of the cuts")
    keeps, spread, mean_error = 1 - 1 / np.array(MEAN_LENGTHS), [], []
    keys = jax.random.split(jax.random.key(config.seed + 2), (SEQUENCES, config.draws))
    random = partial(truncation.randomised, model, params)
    draw = jax.jit(lambda keep, x, y, keys: jax.vmap(lambda key: flat(random(x, y, keep=keep, key=key)[1]))(keys))
    for keep in keeps:
        drawn = np.stack([draw(keep, *one) for one in zip(inputs, targets, keys, strict=True)])  # [S, draws, |θ|]
        mean = drawn.mean(axis=1)
        spread.append(rms(drawn - mean[:, None]) * np.sqrt(config.draws / (config.draws - 1)) / unit)
        mean_error.append(rms(mean - exact) / unit)
    regular = np.array(sizes), cost[: len(sizes)], bias[: len(sizes)], np.array(zero_state)
    by_lag = np.array(lags), cost[len(sizes) :], bias[len(sizes) :]
    at_random = keeps, _random_cost(keeps, config.length), np.array(spread), np.array(mean_error)
    return Errors(*regular, *by_lag, *at_random, np.asarray(rms(exact - exact.mean(axis=0)) / unit))


def main(arguments: list[str]) -> int:
    config = harness.parse(Config, arguments, "python -m experiments truncation", __doc__)
    jax.config.update("jax_enable_x64", True)
    out, progress = Path(config.out), harness.Progress()
    results = run(config, progress)
    plot(results, out / "figure.png")
    summary = summarise(results)
    harness.write_results(out, config, results)
    harness.write_json(out / "summary.json", summary)
    print("\n".join(summary["verdict"]))
    progress(f"wrote config.json, arrays.npz, summary.json and figure.png to {out}")
    return 0

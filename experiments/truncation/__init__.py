"""Truncation on real text: what is cut and kept, bias and spread at equal cost, and training by each scheme."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from experiments import harness, nets, options, text

from .errors import Errors, measure_errors
from .figure import plot
from .summary import summarise
from .tables import Tables, measure_tables
from .training import RECORDS, train_all
from .windows import SEQUENCES, draw_windows


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


def run(config: Config, progress: Any = harness.QUIET) -> dict[str, Any]:
    """{"training", "tables", "errors"}: training in float32, the rest in float64 (the caller enables x64)."""
    symbols = _read_symbols(config)
    model = nets.make_text_model(nets.make_text_cell(config.cell, config.hidden))
    last_tenth = len(symbols) // 10
    train, held_out = jnp.asarray(symbols[:-last_tenth]), jnp.asarray(symbols[-last_tenth:])
    training, params = train_all(model, config, train, held_out, progress)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.result_type(float)), params)
    windows = draw_windows(train, jax.random.key(config.seed + 1), SEQUENCES, config.length)
    tables = {"the (t, k) tables": lambda: measure_tables(model, params, config, symbols)}
    errors = {"bias and spread": lambda: measure_errors(model, params, config, windows, progress)}
    (tables,) = progress.sweep(tables, Tables(*Tables._fields)).values()
    (errors,) = progress.sweep(errors, Errors(*Errors._fields)).values()
    return {"training": training, "tables": tables, "errors": errors}


def _read_symbols(config):
    for name, least in {"hidden": 1, "length": 3, "batch": 1, "keys": 2, "draws": 2}.items():
        options.require_size(name, getattr(config, name), least=least)
    options.require_size("updates", config.updates, least=RECORDS)
    options.require_size("window", config.window, least=2, most=config.length)
    options.require_probability("tolerance", config.tolerance)
    available = text.load_text(config.text)
    if config.length > (most := len(available) // 10 - 2):
        raise ValueError(f"length: got T = {config.length}, expected at most {most} (a tenth of the text, held out)")
    return text.encode(available)


EXPERIMENT = harness.Experiment(
    name="truncation",
    purpose="what truncated gradients keep, their bias and spread at equal cost, and training by each on text",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=plot,
)

"""Truncation on real text: what is cut and kept, bias and spread at equal cost, and training by each scheme."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments import harness, nets, options, text
from experiments.text import KEEP

from .errors import Errors, measure_errors
from .figure import plot
from .summary import summarise
from .tables import Tables, measure_tables
from .training import RECORDS, train_all
from .windows import SEQUENCES, draw_windows


@options.config
class Config:
    cell: str = options.choice("elman", ("elman", "gru", "lstm"), "which cell")
    text: str | None = options.file("a text file", shown="CPython's documentation")
    keep: tuple = options.choices("letters", KEEP, "kinds of characters of the text that stay; letters always do")
    hidden: int = options.size(32, "hidden units H")
    length: int = options.size(96, "steps T of a sequence", least=3)
    window: int = options.size(7, "steps K of regular truncation, at most T; the others cost the same", least=2)
    tolerance: float = options.number(0.2, "relative bias the adaptive scheme allows", above=0, most=1)
    updates: int = options.size(500, "parameter updates", least=RECORDS)
    batch: int = options.size(4, "sequences an update")
    keys: int = options.size(8, "trainings of each scheme: weights, batches and cuts", least=2)
    draws: int = options.size(200, "draws of the cuts, for bias and spread", least=2)
    seed: int = options.seed()
    out: str = options.out("truncation")


def run(config: Config, progress: Any = harness.QUIET) -> dict[str, Any]:
    """{"training", "tables", "errors", "alphabet"}: training in float32, the rest in float64 (x64 is on)."""
    symbols, alphabet = _read_symbols(config)
    model = nets.make_text_model(nets.make_text_cell(config.cell, len(alphabet.characters), config.hidden))
    last_tenth = len(symbols) // 10
    train, held_out = jnp.asarray(symbols[:-last_tenth]), jnp.asarray(symbols[-last_tenth:])
    training, params = train_all(model, config, train, held_out, progress)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.result_type(float)), params)
    windows = draw_windows(train, jax.random.key(config.seed + 1), SEQUENCES, config.length)
    tables = {"the (t, k) tables": lambda: measure_tables(model, params, config, symbols, alphabet)}
    errors = {"bias and spread": lambda: measure_errors(model, params, config, windows, progress)}
    (tables,) = progress.sweep(tables, Tables(*Tables._fields)).values()
    (errors,) = progress.sweep(errors, Errors(*Errors._fields)).values()
    return {"training": training, "tables": tables, "errors": errors, "alphabet": alphabet}


def _read_symbols(config):
    options.require_size("window", config.window, most=config.length)
    available, alphabet = text.load_text(config.text, config.keep)
    if config.length > (most := len(available) // 10 - 2):
        raise ValueError(f"length: got T = {config.length}, expected at most {most} (a tenth of the text, held out)")
    return available, alphabet


EXPERIMENT = harness.Experiment(
    name="truncation",
    purpose="what truncated gradients keep, their bias and spread at equal cost, and training by each on text",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=plot,
    takes="1 min",
    alt={
        "figure.png": (
            "Above, the norms of the terms of the gradient by loss step and parameter step for the full, the regularly "
            "and the randomly truncated gradient, with the cuts drawn through the text and what is dropped left grey. "
            "Below, bias and spread over the steps a loss is carried back; the held-out loss while training by each "
            "scheme; each scheme's final loss less that of regular truncation, with intervals over keys."
        ),
    },
)

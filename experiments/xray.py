"""The main job: on real text, prove the gradient of a character model and show where it goes."""

import importlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxbptt
from jaxbptt.jacobians import prefix_products, step_jacobians
from jaxbptt.report import XRay
from jaxbptt.trajectories import unroll

from . import assembled, files, harness, nets, options, text
from .text import KEEP

CELLS = ("elman", "lstm", "gru")
SLOWEST_FIRST = ("lstm", "gru", "elman")  # started in this order, so that no core waits for the slowest at the end
WARM_UP = 50  # symbols read before step 1, so that h_0 is a state the text leads to and not zero
WRONG = 0.1  # nats: a singular value is wrong when it is off by more than this, about 10 %


@options.config
class Config:
    cell: tuple = options.choices("all", CELLS, "cells")
    text: str | None = options.file("a text file", shown="CPython's documentation")
    keep: tuple = options.choices("letters", KEEP, "kinds of characters of the text that stay; letters always do")
    hidden: int = options.size(64, "hidden units H")
    length: int = options.size(256, "steps T")
    offset: int = options.size(0, "symbols of the text skipped", least=0)
    gain: float = options.number(1.0, "gain of the recurrent scheme")
    scheme: str = options.choice("gaussian", nets.SCHEMES, "recurrent scheme")
    forget_bias: float = options.number(1.0, "an LSTM's forget bias")
    seed: int = options.seed("seed of the weights")
    out: str = options.out("xray")


@dataclass(frozen=True)
class Result:
    """One cell seen through, and what people get who assemble the product of its Jacobians."""

    xray: XRay
    assembled: np.ndarray  # [N] ln σ of dh_T/dh_0 by a decomposition of the product assembled in float64
    assembled_float32: np.ndarray  # [N] the same in float32

    def _asdict(self) -> dict[str, np.ndarray]:
        return {**self.xray.arrays(), "assembled": self.assembled, "assembled_float32": self.assembled_float32}


def run(config: Config, progress: Any = lambda message: None) -> dict[str, Any]:
    """Every cell of the config, in float64 (the caller enables x64), and the text's alphabet."""
    symbols, alphabet = _read_symbols(config)
    size = len(alphabet.characters)
    run_cell = lambda name: _run_cell(name, config, symbols, size, progress)
    # Side by side: much of a compilation, and LAPACK, keeps one core busy.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        started = {name: pool.submit(run_cell, name) for name in sorted(config.cell, key=SLOWEST_FIRST.index)}
        pool.submit(importlib.import_module, "jaxbptt.plotting")  # half a second that a core has to spare by then
        return {name: started[name].result() for name in config.cell} | {"alphabet": alphabet}


def _read_symbols(config):
    available, alphabet = text.load_text(config.text, config.keep)
    needed = WARM_UP + config.length + 1
    if config.offset + needed > len(available):
        got = f"{len(available)} symbols in the text, {config.offset} of them skipped"
        raise ValueError(
            f"length: got T = {config.length}, expected at most what is left ({got}, {WARM_UP + 1} kept back)"
        )
    return available[config.offset : config.offset + needed], alphabet


def _run_cell(name, config, symbols, size, progress):
    gates = {"forget_bias": config.forget_bias} if name == "lstm" else {}
    cell = nets.make_text_cell(name, size, config.hidden, recurrent=nets.SCHEMES[config.scheme](config.gain), **gates)
    model = nets.make_text_model(cell)

    def prepare(seed, symbols):
        params, one_hot = model.init(jax.random.key(seed)), nets.encode_one_hot(symbols, size)
        inputs, h_0 = one_hot[WARM_UP:-1], nets.settle(model, params, one_hot[:WARM_UP])
        chain = step_jacobians(model, params, unroll(model, params, inputs, initial=h_0))
        return params, inputs, h_0, [prefix_products(chain.astype(dtype))[-1] for dtype in (chain.dtype, jnp.float32)]

    progress(f"{name}: weights and inputs")
    # One program, where each small one would be compiled by itself; of any seed, so that it is found in the cache.
    params, inputs, h_0, products = jax.jit(prepare)(np.asarray(config.seed), np.asarray(symbols))
    progress(f"{name}: proof, singular values, tables")
    found = jaxbptt.xray(model, params, inputs, np.asarray(symbols[WARM_UP + 1 :]), initial=h_0)
    plain, plain_float32 = (np.asarray(product)[None] for product in products)
    return Result(
        xray=found,
        assembled=assembled.decompose(plain)[0],
        assembled_float32=assembled.decompose(plain_float32, np.float64)[0],
    )


def summarise(results: dict[str, Any], config: Config) -> harness.Summary:
    """The verdict on every cell; the exit code says whether every gradient is proved."""
    read, results = text.take_alphabet(results)
    judged = {name: judge(result) for name, result in results.items()}
    lines = [*read, *(f"{name}\n  " + "\n  ".join(entry["verdict"]) for name, entry in judged.items())]
    return harness.Summary(lines, judged, exit_code=0 if all(entry["proved"] for entry in judged.values()) else 1)


def judge(result: Result) -> dict[str, Any]:
    """The numbers and the verdict of the x-ray, and how many singular values an assembled product gets wrong."""
    final = result.xray.log_sigma[-1]
    wrong, wrong_float32 = (_count_wrong(each, final) for each in (result.assembled, result.assembled_float32))
    sentence = f"An assembled product gets {wrong} of {len(final)} singular values wrong ({wrong_float32} in float32)."
    return {
        **result.xray.summary,
        "assembled_wrong_float64": wrong,
        "assembled_wrong_float32": wrong_float32,
        "verdict": [*result.xray.verdict, sentence],
    }


def _count_wrong(assembled, log_sigma):
    """How many are off by more than WRONG; −inf beside −inf is right."""
    with np.errstate(invalid="ignore"):
        right = (assembled == log_sigma) | (np.abs(assembled - log_sigma) <= WRONG)
    return int(np.sum(~right))


def plot(results: dict[str, Any], path: Path) -> None:
    """One column a cell."""
    from jaxbptt import plotting

    results = text.take_alphabet(results)[1]
    names = [name.capitalize() if name == "elman" else name.upper() for name in results]
    files.write_figure(path, plotting.xray(*(result.xray for result in results.values()), names=names), dpi=100)


EXPERIMENT = harness.Experiment(
    name="xray",
    purpose="the main job: prove the gradient of a character model and show where it goes",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=plot,
    takes="20 s",
    alt={
        "figure.png": (
            "One column for each cell, headed by its verdict (of one cell alone, the four panels in a square). From "
            "the top: the singular values of dh_t/dh_0 over the step t, a fan of lines on a logarithmic axis with the "
            "slope of the largest and, shaded, where an assembled product is noise; the norm of every term of the "
            "gradient by loss step t and parameter step k, a triangle that fades away from its diagonal; the share of "
            "the gradient's norm by lag, with the lags of 50, 90 and 99 %; the same share for the inputs."
        )
    },
)

"""An experiment whose points devices and processes share, cheap to compile; a program, too.

Its first 9 points are one function, the last 5 another one; `--pause` is slept on the host after every point.
"""

import signal
import sys
import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import __main__ as entry
from experiments import files, harness, options

GAINS = np.linspace(0.1, 3, 14)
FIRST = 9


@options.config
class Config:
    value: int = options.size(1, "which run")
    pause: float = options.number(0.0, "seconds", least=0)
    out: str = options.out("toy")


class Point(NamedTuple):
    path: np.ndarray
    more: dict


class Result(NamedTuple):
    path: np.ndarray
    last: np.ndarray


def orbit(seed, gain):
    start = jax.random.normal(jax.random.key(seed), (4,))
    path = jax.lax.scan(lambda x, _: (jnp.tanh(gain * x), x), start, length=20)[1]
    return {"path": path, "last": path[-1, 0]}


def count(result):
    return {"path": jnp.cumsum(result["path"], axis=0), "last": result["last"]}


def finish(pause, result):
    time.sleep(pause)
    return Point(result["path"], {"last": np.sin(result["last"])})


def make_todo(config=None, stage=orbit):
    config = config or Config()
    first, then = partial(stage, config.value), partial(stage, config.value)
    stages = [(first,)] * FIRST + [(then, count)] * (len(GAINS) - FIRST)
    end = partial(finish, config.pause)
    return {f"gain {gain:.3g}": harness.Traced(each, gain, end) for each, gain in zip(stages, GAINS, strict=True)}


LIKE = Point(0, {"last": 0})


def run(config, progress=harness.QUIET):
    points = list(progress.sweep_traced(make_todo(config), LIKE).values())
    columns = [point.path for point in points], [point.more["last"] for point in points]
    return {"toy": Result(*map(np.stack, columns))}


EXPERIMENT = harness.Experiment(
    name="toy",
    purpose="a toy",
    description="A toy.",
    config=Config,
    run=run,
    summarise=lambda results, config: harness.Summary([f"value {config.value}"], {"value": config.value}),
    plot=lambda results, path: files.write_atomically(path, lambda file: file.write(results["toy"].path.tobytes())),
    keeps_compiled=False,
    spread=True,
)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a script it is ignored
    entry.NAMES, entry.find_experiment = ("toy",), lambda name: EXPERIMENT
    entry.run_command(["toy", *sys.argv[1:]])

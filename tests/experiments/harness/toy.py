"""An experiment of three points that costs nothing, and what may be said of its folder at any moment."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import files, harness, options

POINTS = 3


@options.config
class Config:
    value: int = options.size(1, "which run")
    text: str | None = options.file("a file", shown="none")
    out: str = options.out("toy")


class Point(NamedTuple):
    numbers: np.ndarray
    more: dict


class Result(NamedTuple):
    numbers: np.ndarray


def make_experiment(done: Callable[[int], None] = lambda i: None, **changed) -> harness.Experiment:
    """`done(i)` is called as point i is computed."""

    def compute(config, i):
        done(i)
        return Point(np.full(3, 10 * config.value + i), {"i": np.array(i)})

    def run(config, progress=harness.QUIET):
        todo = {f"point {i}, value {config.value}": partial(compute, config, i) for i in range(POINTS)}
        points = progress.sweep(todo, Point(0, {"i": 0}))
        return {"toy": Result(np.stack([point.numbers for point in points.values()]))}

    def plot(results, path):
        files.write_atomically(path, lambda file: file.write(results["toy"].numbers.tobytes()))

    whole = harness.Experiment(
        name="toy",
        purpose="a toy",
        description="A toy.",
        config=Config,
        run=run,
        summarise=lambda results, config: harness.Summary([f"value {config.value}"], {"value": config.value}),
        plot=plot,
        float64=False,
    )
    return whole._replace(**changed)


def run_toy(out: Path, *options: str, experiment: harness.Experiment | None = None) -> int:
    return harness.run_experiment(experiment or make_experiment(), ["--no-cache", "--out", str(out), *options])


def read_set(out: Path) -> int:
    """The value of the run whose whole set, and nothing else of it, lies in `out`; an AssertionError otherwise."""
    record = json.loads((out / "run.json").read_text())
    there = {path.name for path in out.iterdir()} - {"notes.txt", ".hidden"}
    assert there == {*record["files"], "run.json"}
    assert set(record["files"]) == {"arrays.npz", "config.json", "figure.png", "summary.json"}
    for name, digest in record["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest, name
    value = record["config"]["value"]
    assert json.loads((out / "config.json").read_text())["value"] == value
    assert json.loads((out / "summary.json").read_text()) == {"value": value}
    with np.load(out / "arrays.npz") as arrays:
        expected = arrays["toy.numbers"]
    np.testing.assert_array_equal(expected, np.repeat(10 * value + np.arange(POINTS), 3).reshape(POINTS, 3))
    assert (out / "figure.png").read_bytes() == expected.tobytes()
    return value


def read_points(out: Path) -> int:
    """How many whole points an unfinished run has kept."""
    kept = list(out.with_name(f"{out.name}.partial").glob("points/*.npz"))
    for path in kept:
        with np.load(path) as point:
            assert len(point["leaf.numbers"]) == 3
    return len(kept)


def names_beside(out: Path) -> set[str]:
    return {path.name for path in out.parent.iterdir()}

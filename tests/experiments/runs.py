"""A tiny run of an experiment as `python -m experiments NAME …` makes it, and what it left."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import __main__ as entry

WITH_SUMMARY = {"config.json", "arrays.npz", "summary.json", "figure.png", "run.json"}
WITHOUT_SUMMARY = WITH_SUMMARY - {"summary.json"}


class Run(NamedTuple):
    code: int
    said: str  # stdout
    progress: str  # stderr
    files: set[str]
    arrays: dict[str, np.ndarray]
    summary: Any


def run_tiny(name: str, options: str, out: Path, promotion: str = "strict") -> Run:
    """Of the options in one string; `promotion` of dtypes ("standard" for optax, which counts its steps in int32)."""
    said, progress = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(progress),
        jax.numpy_dtype_promotion(promotion),
    ):
        code = entry.main([name, *options.split(), "--no-cache", "--force", "--out", str(out)])
    files = {path.name for path in out.iterdir()}
    arrays, summary = {}, None
    if "arrays.npz" in files:
        with np.load(out / "arrays.npz", allow_pickle=False) as file:
            arrays = dict(file)
    for found in files & {"summary.json", "benchmark.json", "identities.json"}:
        summary = json.loads((out / found).read_text())
    if "figure.png" in files:
        assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    return Run(code, said.getvalue(), progress.getvalue(), files, arrays, summary)

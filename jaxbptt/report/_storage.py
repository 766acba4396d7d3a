"""A report on the disk: arrays.npz, summary.json and figure.png, each written whole or not at all."""

import importlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}  # as JSON has no number for them
ARRAYS, SUMMARY, FIGURE = "arrays.npz", "summary.json", "figure.png"


def write_report(folder: Path, arrays: Mapping[str, np.ndarray], text: Any, report: Any) -> None:
    """The three files."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / ARRAYS, lambda file: np.savez_compressed(file, allow_pickle=False, **arrays))
    written = json.dumps(_to_json(text), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_whole(folder / SUMMARY, lambda file: file.write(written.encode()))
    # Only here: drawing needs matplotlib.
    figure = importlib.import_module("jaxbptt.plotting").xray(report)
    write_whole(folder / FIGURE, lambda file: figure.savefig(file, format="png", dpi=130))


def read_report(folder: Path) -> tuple[dict[str, np.ndarray], Any]:
    """(arrays, text); raise unless the folder holds both files."""
    try:
        with np.load(folder / ARRAYS, allow_pickle=False) as file:
            arrays = dict(file)
        return arrays, _from_json(json.loads((folder / SUMMARY).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise ValueError(
            f"folder: got {folder} ({reason}), expected one that XRay.save wrote ({ARRAYS} and {SUMMARY})"
        ) from error


def write_whole(path: Path, write: Callable[[Any], Any]) -> None:
    """`write` into a temporary file beside `path`, then rename: a reader sees the old file or the new one, whole."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _to_json(value):
    if isinstance(value, Mapping):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _from_json(value):
    if isinstance(value, dict):
        return {key: _from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    return NOT_FINITE.get(value, value) if isinstance(value, str) else value

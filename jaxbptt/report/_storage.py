"""A report on the disk: arrays.npz, figure.png and, last, summary.json: where it is, all three are of one report."""

import importlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}  # as JSON has no number for them
ARRAYS, SUMMARY, FIGURE = "arrays.npz", "summary.json", "figure.png"


def write_report(folder: Path, arrays: Mapping[str, np.ndarray], text: Any, report: Any) -> None:
    """The three files, written beside their places first; an older report loses its summary before anything else."""
    # Only here: drawing needs matplotlib.
    figure = importlib.import_module("jaxbptt.plotting").xray(report)
    written = json.dumps(_to_json(text), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    contents: dict[str, Callable[[Any], Any]] = {
        ARRAYS: lambda file: np.savez_compressed(file, allow_pickle=False, **arrays),
        FIGURE: lambda file: figure.savefig(file, format="png", dpi=130),
        SUMMARY: lambda file: file.write(written.encode()),
    }
    folder.mkdir(parents=True, exist_ok=True)
    beside = {name: folder / f".{name}.partial" for name in contents}  # what a process that died has left is replaced
    try:
        for name, write in contents.items():
            with beside[name].open("wb") as file:
                write(file)
        (folder / SUMMARY).unlink(missing_ok=True)
        for name in contents:
            beside[name].replace(folder / name)
    finally:
        for path in beside.values():
            path.unlink(missing_ok=True)


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

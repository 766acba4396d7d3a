"""Results on the disk: every file is written whole or not at all."""

import dataclasses
import json
import math
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_results(out: Path, config: Any, results: Mapping[str, Any]) -> None:
    """arrays.npz with every field of every named result as "name.field", and config.json."""
    fields = {f"{name}.{key}": value for name, result in results.items() for key, value in result._asdict().items()}
    write_arrays(out / "arrays.npz", fields)
    write_json(out / "config.json", dataclasses.asdict(config))


def write_json(path: Path, value: Any) -> None:
    """Strict JSON: a number that is not finite becomes null."""
    text = json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """A compressed .npz of plain arrays (never pickled)."""
    plain = {name: np.asarray(array) for name, array in arrays.items()}
    if any(array.dtype.hasobject for array in plain.values()):
        raise TypeError("arrays: got an object array, expected plain numbers or strings")
    write_atomically(path, lambda file: np.savez_compressed(file, **plain))


def write_figure(path: Path, figure: Any, dpi: int) -> None:
    """A matplotlib figure as PNG."""
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=dpi))


def write_atomically(path: Path, write: Callable[[Any], Any]) -> None:
    """`write` into a temporary file beside `path`, then rename: a reader sees the old file or the new one, whole."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # its bytes before its name, also where the power fails
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def _finite(value):
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value

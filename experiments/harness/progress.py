"""How far a run is, on stderr; the points of a sweep, each computed once and kept on the disk as soon as it is done."""

import hashlib
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import files


class Quiet:
    """Says nothing and keeps nothing: the progress of a `run` that is called as a function."""

    def __call__(self, message: str) -> None:
        pass

    def sweep(self, todo: Mapping[str, Callable[[], Any]], like: Any) -> dict[str, Any]:
        """What every function of `todo` returns, as NumPy arrays."""
        return {name: _on_host(make()) for name, make in todo.items()}


QUIET = Quiet()


class Progress:
    """Lines with the seconds since the start; on a terminal a bar of the points, if tqdm is installed."""

    def __init__(self, points: Path):
        self.start, self._points, self._bar = time.monotonic(), points, None
        self.seconds_before = 0.0  # that the points took which were there already

    def __call__(self, message: str) -> None:
        line = f"[{time.monotonic() - self.start:5.1f} s] {message}"
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.write(line, file=sys.stderr)

    def sweep(self, todo: Mapping[str, Callable[[], Any]], like: Any) -> dict[str, Any]:
        """What every function of `todo` returns, as NumPy arrays; one whose point is kept is not called.

        Args:
          todo: by the name of the point.
          like: a pytree of the structure that they return; its leaves do not matter.
        """
        found = {name: point for name in todo if (point := self._read(name, like)) is not None}
        if found:
            self(f"{len(found)} of {len(todo)} points are there already")
        missing = [name for name in todo if name not in found]
        start, self._bar = time.monotonic(), _make_bar(len(todo), len(found))
        try:
            for done, name in enumerate(missing):
                left = (time.monotonic() - start) / done * (len(missing) - done) if done else None
                self._say(name, len(found), len(todo), left)
                begun = time.monotonic()
                found[name] = _on_host(todo[name]())
                self._write(name, found[name], time.monotonic() - begun)
        finally:
            if self._bar is not None:
                self._bar.close()
                self._bar = None
        return {name: found[name] for name in todo}

    def _say(self, name, done, of, left):
        if self._bar is None:
            self(f"{name} ({done} of {of} done{'' if left is None else f', about {in_words(left)} left'})")
        else:
            self._bar.set_postfix_str(name)
            self._bar.update(done - self._bar.n)

    def _read(self, name, like):
        path = self._path(name)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                kept = dict(arrays)
        except Exception:  # a broken file raises whatever its bytes happen to mean
            return None
        paths, structure = _paths(like)
        if str(kept.pop("point", "")) != name or list(kept) != ["seconds", *paths]:
            return None
        self.seconds_before += float(kept.pop("seconds"))
        return jax.tree.unflatten(structure, kept.values())

    def _write(self, name, point, seconds):
        paths, _ = _paths(point)
        leaves = dict(zip(paths, jax.tree.leaves(point), strict=True))
        files.write_arrays(self._path(name), {"point": np.array(name), "seconds": np.array(seconds), **leaves})

    def _path(self, name):
        short = re.sub(r"\W+", "-", name)[:60].strip("-")
        return self._points / f"{short}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.npz"


def _make_bar(total, done):
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, initial=done, unit="point", file=sys.stderr, leave=False, dynamic_ncols=True)


def _paths(tree):
    with_paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    return [f"leaf{jax.tree_util.keystr(path)}" for path, _ in with_paths], structure


def _on_host(tree):
    return jax.tree.map(np.asarray, tree)


def in_words(seconds: float) -> str:
    """A time in its usual unit: s up to 90 s, min up to 90 min, h."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds > 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"

"""How far a run is, on stderr; the points of a sweep, each computed once and kept on the disk as soon as it is done."""

import hashlib
import io
import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import files

from . import hosts, points


class Quiet:
    """Says nothing and keeps nothing: the progress of a `run` that is called as a function."""

    def __call__(self, message: str) -> None:
        pass

    def sweep(self, todo: Mapping[str, Callable[[], Any]], like: Any) -> dict[str, Any]:
        """What every function of `todo` returns, as NumPy arrays."""
        return {name: _on_host(make()) for name, make in todo.items()}

    def sweep_traced(self, todo: Mapping[str, points.Traced], like: Any) -> dict[str, Any]:
        """The same of points that are traced functions of arrays."""
        rounds = points.Rounds(hosts.ALONE)
        return {name: _on_host(rounds.compute([point])[0]) for name, point in todo.items()}


QUIET = Quiet()


class Progress:
    """Lines with the seconds since the start; on a terminal a bar of the points, if tqdm is installed.

    Args:
      folder: of the points.
      group: the processes of the run; all but process 0 say nothing and leave the folder alone.
    """

    def __init__(self, folder: Path, group: hosts.Group = hosts.ALONE):
        self.start, self._points, self._bar, self._group = time.monotonic(), folder, None, group
        self.seconds_before = 0.0  # that the points took which were there already

    def __call__(self, message: str) -> None:
        line = f"[{time.monotonic() - self.start:5.1f} s] {message}"
        if self._group.process_id:
            return
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
        found = self._find_kept(todo, like)
        rounds = [(name,) for name in todo if name not in found]
        return self._sweep(todo, found, rounds, lambda names: [todo[names[0]]()])

    def sweep_traced(self, todo: Mapping[str, points.Traced], like: Any) -> dict[str, Any]:
        """The same of points that are traced functions of arrays: one on each device of all processes at once."""
        found = self._find_kept(todo, like)
        found |= self._hear_kept(found, todo, like)
        missing = {name: point for name, point in todo.items() if name not in found}
        rounds, computing = points.make_rounds(missing, self._group.places), points.Rounds(self._group)
        if idle := points.describe_idle(rounds, self._group.places):
            self(idle)
        return self._sweep(todo, found, rounds, lambda names: computing.compute([todo[name] for name in names]))

    def _sweep(self, todo, found, rounds, compute):
        begun_with, start = len(found), time.monotonic()
        self._bar = None if self._group.process_id else _make_bar(len(todo), begun_with)
        missing = len(todo) - begun_with
        try:
            for names in rounds:
                done = len(found) - begun_with
                left = (time.monotonic() - start) / done * (missing - done) if done else None
                self._say(names, len(found), len(todo), left)
                begun = time.monotonic()
                computed = [_on_host(point) for point in compute(names)]
                for name, point in zip(names, computed, strict=True):
                    found[name] = point
                    self._write(name, point, (time.monotonic() - begun) / len(names))
        finally:
            if self._bar is not None:
                self._bar.close()
                self._bar = None
        return {name: found[name] for name in todo}

    def _say(self, names, done, of, left):
        what = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
        if self._bar is None:
            self(f"{what} ({done} of {of} done{'' if left is None else f', about {in_words(left)} left'})")
        else:
            self._bar.set_postfix_str(what)
            self._bar.update(done - self._bar.n)

    def _find_kept(self, todo, like):
        """The points that are on the disk, which only process 0 looks at."""
        if self._group.process_id:
            return {}
        found = {name: point for name in todo if (point := self._read(name, like)) is not None}
        if found:
            self(f"{len(found)} of {len(todo)} points are there already")
        return found

    def _hear_kept(self, found, todo, like):
        """Those of process 0: others may see another disk."""
        if self._group.processes == 1:
            return {}
        names = json.loads(hosts.tell(self._group, json.dumps(list(found)).encode()))
        every = (hosts.tell(self._group, self._path(name).read_bytes() if name in found else b"") for name in names)
        return {name: _decode(io.BytesIO(content), name, like)[0] for name, content in zip(names, every, strict=True)}

    def _read(self, name, like):
        try:
            with self._path(name).open("rb") as file:
                point, seconds = _decode(file, name, like)
        except Exception:  # a broken file raises whatever its bytes happen to mean
            return None
        self.seconds_before += seconds
        return point

    def _write(self, name, point, seconds):
        if self._group.process_id:
            return
        paths, _ = _paths(point)
        leaves = dict(zip(paths, jax.tree.leaves(point), strict=True))
        files.write_arrays(self._path(name), {"point": np.array(name), "seconds": np.array(seconds), **leaves})

    def _path(self, name):
        short = re.sub(r"\W+", "-", name)[:60].strip("-")
        return self._points / f"{short}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.npz"


def describe_points(partial: Path) -> str:
    """What is kept of an unfinished run, for the end of a line."""
    count = len(list(partial.glob("points/*.npz")))
    what = "1 point is" if count == 1 else f"{count} points are"
    return f"; {what} kept in {partial} (--resume continues)" if count else ""


def _decode(file, name, like):
    """(point, seconds that it took) of its file; an exception where it holds anything else."""
    with np.load(file, allow_pickle=False) as arrays:
        kept = dict(arrays)
    paths, structure = _paths(like)
    if str(kept.pop("point")) != name or list(kept) != ["seconds", *paths]:
        raise ValueError(f"point: got another one, expected {name}")
    seconds = float(kept.pop("seconds"))
    return jax.tree.unflatten(structure, kept.values()), seconds


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

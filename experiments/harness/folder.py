"""The folder of a run: a reader finds the whole set of a finished run or none, whenever the process dies.

While a run lasts, OUT.partial holds all of it:
  run.json   what it is; the lock of the folder is held as long as the process lives
  points/    a file for every point of a sweep that is done
  results/   the files of the set, run.json last; then the folder takes OUT's place in one step
"""

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import files

try:
    import fcntl
except ImportError:  # Windows: two runs at once into one folder are not kept apart there
    fcntl = None

RECORD = "run.json"
PARTIAL = ".partial"
ROOM = 16 * 2**20  # bytes
AT_CURRENT_FOLDER, EXCHANGE = -100, 2  # of Linux's renameat2


class Finished(Exception):
    """What --resume asks for is done, with this exit code."""

    def __init__(self, line: str, exit_code: int):
        super().__init__(line)
        self.exit_code = exit_code


class Folder(NamedTuple):
    out: Path
    partial: Path
    lock: int  # its file descriptor
    made: tuple[Path, ...]  # parents that were not there, outermost first

    @property
    def points(self) -> Path:
        return self.partial / "points"

    @property
    def staged(self) -> Path:
        return self.partial / "results"

    @property
    def former(self) -> Path:  # `out` on its way out, where it cannot be exchanged in one step
        return self.partial / "former"


def begin(out: Path, identity: Mapping[str, Any], known: Sequence[str], *, resume: bool, force: bool) -> Folder:
    """The folder of a run that is to end in `out`, locked, with room to write, the points of its former part in it.

    Args:
      out: the folder of the results.
      identity: of the run: "id", "config", "versions", "started", ...
      known: names of the files that a set may hold.
      resume: continue an unfinished run of this id.
      force: replace a finished run; begin an unfinished one anew unless `resume`.

    Raises:
      ValueError: a run that may not be written here; nothing has changed.
      Finished: `resume`, and the run of this id is finished.
    """
    _require_place(out)
    folder = _make(out.resolve() if out.is_symlink() else out)
    try:
        _require_room(folder)
        _end_what_was_begun(folder)
        continued = _choose(folder, identity, known, resume, force)
        _require_exchange(folder)
        if not continued:
            shutil.rmtree(folder.points, ignore_errors=True)
        files.write_json(folder.partial / RECORD, {**identity, "process": os.getpid()})
        folder.points.mkdir(exist_ok=True)
    except BaseException:
        leave(folder)
        raise
    return folder


def commit(folder: Folder, record: Mapping[str, Any]) -> None:
    """Write the record of the staged files and put them in the place of `out`."""
    files.write_json(folder.staged / RECORD, record)
    _sync(folder.staged)
    _put_in_place(folder)
    _sync(folder.out.parent)
    _end_what_was_begun(folder)


def count_points(folder: Folder) -> int:
    """Points that are done."""
    return len(list(folder.points.glob("*.npz")))


def leave(folder: Folder) -> None:
    """Give the lock back; nothing stays of a run of which no point is done."""
    if not count_points(folder):
        discard(folder)
    os.close(folder.lock)


def discard(folder: Folder) -> None:
    """Remove what a run of no points has begun; a set that is on its way to its place stays."""
    if not folder.staged.exists() and not folder.former.exists():
        shutil.rmtree(folder.partial, ignore_errors=True)
        _remove_empty(folder.made)


def read_record(folder: Path) -> dict[str, Any] | None:
    """run.json of a folder; None where there is none of ours that can be read."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and set(found) >= {"id", "experiment", "config", "started"} else None


def _read_finished(folder):
    """The same of a finished run, whose record names its files."""
    record = read_record(folder)
    return record if record is not None and isinstance(record.get("files"), dict) else None


def _require_place(out):
    try:
        place = out.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise ValueError(f"out: got {out}, which leads nowhere ({error})") from None
    if out.name.endswith(PARTIAL):
        raise ValueError(f"out: got {out}, where an unfinished run keeps its points; expected a name without {PARTIAL}")
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: got {out}, a file; expected a folder")
    if Path.cwd().is_relative_to(place) or os.path.ismount(place):
        what = "a mount point" if os.path.ismount(place) else "the folder you are in, or one above it"
        raise ValueError(f"out: got {out}, {what}; expected a folder that can be replaced, such as {out / 'results'}")


def _make(out):
    """The partial folder, locked; that of a living run is refused."""
    partial = out.with_name(f"{out.name}{PARTIAL}")
    made = tuple(parent for parent in reversed(out.parents) if not parent.exists())
    try:
        while True:
            partial.mkdir(parents=True, exist_ok=True)
            lock = os.open(os.devnull if fcntl is None else partial, os.O_RDONLY)
            try:
                if fcntl is not None:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                process = (read_record(partial) or {}).get("process", "unknown")
                raise ValueError(f"out: {out} is being written by another run (process {process})") from None
            if fcntl is None or (partial.exists() and os.path.samestat(os.fstat(lock), os.stat(partial))):
                return Folder(out, partial, lock, made)
            os.close(lock)  # another run removed it in between
    except OSError as error:
        _remove_empty(made)
        raise ValueError(f"out: cannot make {partial}: {error.strerror}") from None


def _require_room(folder):
    free = shutil.disk_usage(folder.partial).free
    if free < ROOM:
        raise ValueError(f"out: {folder.out} has room for {free / 2**20:.1f} MiB, expected at least {ROOM >> 20} MiB")
    try:
        files.write_atomically(folder.partial / "probe", lambda file: file.write(bytes(2**16)))
        (folder.partial / "probe").unlink()
    except OSError as error:
        raise ValueError(f"out: cannot write to {folder.partial}: {error.strerror}") from None


def _require_exchange(folder):
    """Raise where the system will not let `out` be moved aside: a mount point, a lower layer of a container's disk."""
    if folder.out.exists():
        try:
            folder.out.rename(folder.former)
            folder.former.rename(folder.out)
        except OSError as error:
            raise ValueError(f"out: {folder.out} cannot be replaced ({error.strerror}); name another folder") from None


def _remove_empty(made):
    for parent in reversed(made):
        if parent.exists() and not any(parent.iterdir()):
            parent.rmdir()


def _sync(folder):
    """Names reach the disk before what comes next."""
    if fcntl is not None:  # Windows has no such call for a folder
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _end_what_was_begun(folder):
    """Whatever a run did before it died: finish its swap, or remove what was no point yet."""
    ours = read_record(folder.partial)
    if _is_of(folder.staged, ours):
        _put_in_place(folder)
    elif folder.former.exists() and not folder.out.exists():
        folder.former.rename(folder.out)
    for former in (folder.staged, folder.former):
        if former.exists():
            _carry_over(former, folder.out)
            shutil.rmtree(former)
    if _is_of(folder.out, ours):
        shutil.rmtree(folder.points, ignore_errors=True)  # all of them are in the set
        (folder.partial / RECORD).unlink()
    for place in (folder.partial, folder.points):
        for unfinished in place.glob(".*"):
            unfinished.unlink()


def _is_of(folder, run):
    """Whether the folder holds the whole set of this run."""
    record = _read_finished(folder)
    return run is not None and record is not None and record["started"] == run["started"]


def _put_in_place(folder):
    """`staged` and `out` change places: in one step where the system can."""
    if not folder.out.exists():
        folder.staged.rename(folder.out)
        return
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    places = (os.fsencode(folder.staged), os.fsencode(folder.out))
    if rename and not rename(AT_CURRENT_FOLDER, places[0], AT_CURRENT_FOLDER, places[1], EXCHANGE):
        return
    folder.out.rename(folder.former)  # a run that dies here is finished by the next one
    folder.staged.rename(folder.out)


def _carry_over(former, out):
    """What somebody else put beside a former set stays."""
    record = _read_finished(former)
    if record is None:
        return  # no set of ours, or one that was refused if anything lay beside it
    ours = {*record["files"], RECORD}
    for entry in former.iterdir():
        if entry.name not in ours and not (out / entry.name).exists():
            entry.rename(out / entry.name)


def _choose(folder, identity, known, resume, force):
    """Whether points are continued from; raise where this run may not be written."""
    out, finished = folder.out, _read_finished(folder.out)
    unfinished = read_record(folder.partial) if count_points(folder) else None
    if unfinished is None and count_points(folder) and not force:
        raise ValueError(f"out: {folder.partial} holds points and no {RECORD} that says of what; --force begins anew")
    if unfinished is not None and not (force and not resume):
        different = differences(unfinished, identity)
        if different:
            raise ValueError(
                f"out: {folder.partial} holds {count_points(folder)} points of another run ({different}); its own"
                " options continue it, --force begins anew"
            )
        if resume or finished is None:
            return True
        raise ValueError(
            f"out: {out} holds a finished run, {folder.partial} {count_points(folder)} points of another one of these"
            " options; --resume continues it, --force begins anew"
        )
    different = "" if finished is None else differences(finished, identity)
    if finished is not None and resume and not different:
        failed = f", which failed: {finished['failure']}" if finished.get("failure") else ""
        raise Finished(f"{out} holds the finished run {finished['id']} of these options{failed}", finished["exit_code"])
    if finished is not None and not force:
        what = f"another finished run ({different})" if different else "a finished run of these options"
        raise ValueError(f"out: {out} holds {what}; --force replaces it, --out names another folder")
    if finished is None and out.exists():
        strangers = sorted(entry.name for entry in out.iterdir() if entry.name not in known)
        if strangers:
            more = ", ..." if len(strangers) > 1 else ""
            raise ValueError(f"out: {out} holds other things ({strangers[0]}{more}); expected a new or an empty folder")
        if any(out.iterdir()) and not force:
            raise ValueError(f"out: {out} holds results without a record; --force replaces them")
    return False


def differences(there, here):
    """What sets two runs apart, in words; "" where nothing does."""
    if there["id"] == here["id"]:
        return ""
    pairs = [
        f"{name} {there.get(part, {}).get(name)}, not {here[part].get(name)}"
        for part in ("config", "versions", "settings")
        for name in here[part]
        if there.get(part, {}).get(name) != here[part].get(name) and name != "out"
    ]
    return "; ".join(pairs[:3]) or f"of {there.get('experiment')}"

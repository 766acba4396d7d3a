"""Finished runs on the disk: a folder with a run.json that names its files, each of them as it was written."""

import hashlib
import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

RECORD = "run.json"
UNFINISHED = ".partial"  # how the folder of a run ends while it lasts
VERDICTS = ("HOLDS: ", "FAILS: ", "CANNOT TELL")  # how a line with a claim begins
TEXT = "text: "  # how the line on what was read begins
SET_IN = re.compile(r"[\w ,.=-]{1,40}\n  \S")  # a name, and below it what is said of it
PNG = b"\x89PNG\r\n\x1a\n"  # the signature; with the header it has 24 bytes at least
FIELDS: dict[str, Any] = {
    "id": str,
    "experiment": str,
    "config": dict,
    "versions": dict,
    "device": dict,
    "flags": dict,
    "started": str,
    "seconds": int | float,
    "peak_memory_bytes": int | None,  # not every system says
    "lines": list,
    "exit_code": int,
    "files": dict,
}


class Run(NamedTuple):
    """One finished run."""

    folder: Path
    record: dict[str, Any]  # of run.json
    started: datetime
    numbers: dict[str, Any]  # JSON file: what is in it; the files of findings, not config and record

    @property
    def name(self) -> str:
        """Of its folder: two runs of an experiment have two."""
        return self.folder.name

    @property
    def lines(self) -> list[str]:
        """What was printed."""
        return "\n".join(self.record["lines"]).splitlines()

    @property
    def verdict(self) -> str:
        """The first claim; without any, the first finding, and how many more there are of its kind.

        A finding is a line that is neither a heading nor what was read of a text, or a name with what is said of it set
        in below; a longer table is none, if there is anything else.
        """
        entries = [entry.strip() for entry in self.record["lines"] if entry.strip() and not entry.startswith(TEXT)]
        single = [entry for entry in entries if "\n" not in entry and not entry.endswith(":")]
        named = [entry.replace("\n  ", ": ", 1).partition("\n")[0] for entry in entries if SET_IN.match(entry)]
        findings = self.claims[::2] or single or named or entries or self.lines or [""]
        return findings[0] + (f" (and {len(findings) - 1} more)" if len(findings) > 1 else "")

    @property
    def claims(self) -> list[str]:
        """The lines of claims, each with the line of its number below."""
        lines = self.lines
        places = [place for place, line in enumerate(lines) if line.startswith(VERDICTS)]
        return [line for place in places for line in lines[place : place + 2]]


class Refused(NamedTuple):
    """A folder that is not shown."""

    name: str
    reason: str


def collect(folder: Path, order: Sequence[str]) -> tuple[list[Run], list[Refused]]:
    """The runs in `folder`/*/, by experiment in the given order, and what was left out.

    Raises:
      ValueError: no such folder, or no finished run in it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; python -m experiments NAME writes one")
    found, refused = [], []
    for path in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if not any(path.glob("*.json")):
            continue  # not of a run: the reference of the library, say
        try:
            found.append(read(path))
        except ValueError as error:
            refused.append(Refused(path.name, str(error)))
    if not found:
        left = f" ({len(refused)} left out, {refused[0].name}: {refused[0].reason})" if refused else ""
        raise ValueError(f"{folder}: no finished run in it{left}; python -m experiments NAME makes one")
    rank = {name: place for place, name in enumerate(order)}
    return sorted(found, key=lambda run: (rank.get(run.record["experiment"], len(rank)), run.name)), refused


def read(folder: Path) -> Run:
    """The run of one folder.

    Raises:
      ValueError: it is not a finished run with all its files as they were written; says why.
    """
    if folder.name.endswith(UNFINISHED):
        raise ValueError("not finished; --resume goes on with it")
    if not (folder / RECORD).is_file():
        raise ValueError(f"no {RECORD}: written by an older version")
    record = _load(folder / RECORD)
    if not isinstance(record, dict):
        raise ValueError(f"{RECORD}: got {type(record).__name__}, expected an object")
    for field, kind in FIELDS.items():
        if field not in record:
            raise ValueError(f"{RECORD}: {field} is missing")
        if not isinstance(record[field], kind):
            raise ValueError(f"{RECORD}: {field} is of type {type(record[field]).__name__}")
    if not all(isinstance(line, str) for line in record["lines"]):
        raise ValueError(f"{RECORD}: lines are not all text")
    try:
        started = datetime.fromisoformat(record["started"])
    except ValueError:
        raise ValueError(f"{RECORD}: started is {record['started']!r}, not a time") from None
    for name, digest in record["files"].items():
        _require_unchanged(folder, name, digest)
    for name in record["files"]:
        if name.endswith(".png") and _read(folder / name, lambda data: len(data) < 24 or data[:8] != PNG):
            raise ValueError(f"{name}: not a PNG")
    findings = [name for name in record["files"] if name.endswith(".json") and name not in ("config.json", RECORD)]
    return Run(folder, record, started, {name: _load(folder / name) for name in findings})


def _require_unchanged(folder, name, digest):
    if Path(name).name != name:
        raise ValueError(f"{RECORD}: {name!r} is not a file of the folder")
    if _read(folder / name, hashlib.sha256).hexdigest() != digest:
        raise ValueError(f"{name}: not as this run wrote it (its SHA-256 differs)")


def _load(path):
    try:
        return _read(path, json.loads)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError(f"{path.name}: not JSON") from None


def _read(path, use):
    try:
        return use(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path.name}: {error.strerror}") from None

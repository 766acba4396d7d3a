"""Folders of finished runs as the harness leaves them, without running anything."""

import hashlib
import json
import struct
import zlib
from pathlib import Path
from typing import Any

from experiments import identities
from experiments.identities.identity import Judgement


def png(width: int = 60, height: int = 40) -> bytes:
    """A grey picture."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = (b"\0" + b"\x80" * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def write_run(folder: Path, contents: dict[str, bytes], **changes: Any) -> dict[str, Any]:
    """A run with files of these contents and the record of them; `changes` are fields of the record."""
    folder.mkdir(parents=True)
    config = {"hidden": 32, "cells": ["gru", "lstm"], "text": None, "out": f"results/{folder.name}"}
    contents = {"config.json": json.dumps(config).encode(), **contents}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    record = {
        "id": "0123456789ab",
        "experiment": folder.name,
        "config": config,
        "versions": {"jaxbptt": "0.2.0", "jax": "0.10.2", "python": "3.11.7", "source": "abc"},
        "device": {"platform": "cpu", "kind": "cpu", "count": 1, "cores": 2, "cpu": "a & b <c>"},
        "flags": {"XLA_FLAGS": "--one=1 --two"},
        "git": {"commit": "444c5cc", "clean": False},
        "started": "2026-11-26T09:12:00+00:00",
        "seconds": 41.34,
        "peak_memory_bytes": 3 * 2**29,
        "lines": ["λ_1 = 0.3 nats per step"],
        "exit_code": 0,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
    }
    (folder / "run.json").write_text(json.dumps(record | changes))
    return record | changes


def judgements() -> list[Judgement]:
    """Of every row, as if it had been judged to be what is expected."""
    residuals = {"holds": 2e-16, "conditional": 3e-15, "fails": 0.61}
    return [
        Judgement(row, row.expected, residuals[row.expected], None, None, None) for row in identities.load().values()
    ]


def results(folder: Path) -> Path:
    """Four runs, one of them under another name, and what is left out of a page."""
    claims = [
        "HOLDS: a < b",
        "    difference: 0.4 (95% interval 0.1 to 0.7, 4 keys); expected at least 0",
        "FAILS: c & d",
    ]
    interval = lambda value: {"value": value, "low": value - 1, "high": value + 1, "keys": 4}
    nets = {
        "gru": {"rate": 0.01, "loss": interval(3.0), "path": [1, 2, 3, 4]},
        "lstm": {"rate": 0.2, "loss": interval(11.0), "path": []},
    }
    summary = json.dumps({"nets": nets, "best_rate": 0.5, "claims": [{"hypothesis": "a < b " * 9, "holds": True}]})
    pictures = {"figure.png": png(1600, 900), "arrays.npz": b"numbers"}
    write_run(
        folder / "gates",
        {**pictures, "summary.json": summary.encode()},
        exit_code=1,
        started="2026-11-20T10:00:00+00:00",
    )
    write_run(
        folder / "vanishing",
        {**pictures, "theories.png": png()},
        seconds=7.0,
        lines=[f"{i:3}   {'x ' * 90}" for i in range(40)],
    )
    write_run(folder / "once & <again> ü", pictures, experiment="training", lines=["first:", *claims], seconds=1e4)
    judged = judgements()
    said = identities.summarise(judged, identities.Config())
    identities.draw_page(judged, folder / "page.html")
    page = (folder / "page.html").read_bytes()
    (folder / "page.html").unlink()
    files = {"identities.json": json.dumps(said.numbers).encode(), "identities.html": page}
    write_run(folder / "identities", files, lines=list(said.lines), seconds=90.0)
    (folder / "old").mkdir()
    (folder / "old" / "config.json").write_text("{}")
    (folder / "gates.partial").mkdir()
    (folder / "gates.partial" / "run.json").write_text('{"id": "0"}')
    (folder / ".lstm_memory.half").mkdir()
    return folder

"""Real runs of a real sweep, killed at random moments and as they write, while new, overwriting and resuming."""

import hashlib
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
TINY = ("chaos", "--size", "8", "--nets", "2", "--length", "40", "--transient", "10")
PROGRAM = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a script it is ignored, and stays so
runpy.run_module("experiments", run_name="__main__", alter_sys=True)
"""
PROGRESS = re.compile(r"\[ *[\d.]+ s\] ")


def start(out, cache, *options):
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-c", PROGRAM, *TINY, "--out", str(out), *options]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def read_until(pipe, deadline, word):
    """What a process says until the deadline, or up to `word` in it."""
    said = b""
    while (left := deadline - time.monotonic()) > 0 and word not in said:
        if select.select([pipe], [], [], left)[0]:
            more = os.read(pipe.fileno(), 2**16)
            if not more:
                break
            said += more
    return said


def require_whole(folder):
    """The seed of the finished run in a folder; None where there is none. Anything between fails."""
    if not folder.exists():
        return None
    record = json.loads((folder / "run.json").read_text())
    assert {path.name for path in folder.iterdir()} == {*record["files"], "run.json"}
    for name, digest in record["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, f"{name} is of another run"
    assert json.loads((folder / "config.json").read_text()) == record["config"]
    return record["config"]["seed"]


def read_points(folder):
    kept = list(folder.with_name("chaos.partial").glob("points/*.npz"))
    for path in kept:
        with np.load(path) as point:
            assert len(dict(point)) > 1
    return len(kept)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "sigwait"), reason="no POSIX signals")
def test_random_kills_mix_and_lose_nothing(tmp_path, record_property):
    """Half SIGKILL, half SIGINT; half at random moments, half within 50 ms of the first line of the last writes."""
    count, draw = int(os.environ.get("JAXBPTT_KILLS", "24")), random.Random(0)
    out, cache = tmp_path / "results" / "chaos", tmp_path / "cache"
    ended = {"killed": 0, "interrupted": 0, "finished": 0}
    for _ in range(2):  # the second time nothing is compiled, as in all that follow
        begin, whole = time.monotonic(), start(out, cache, "--force")
        whole.communicate()
        assert whole.returncode == 0
    usual = time.monotonic() - begin
    seed = 0
    for _ in range(count):
        resume, before = draw.random() < 0.5, require_whole(out)
        seed = seed if resume else draw.randrange(2)
        number = draw.choice((signal.SIGKILL, signal.SIGINT))
        run = start(out, cache, "--seed", str(seed), "--force", *["--resume"] * resume)
        word = draw.choice((b"never said", b"s] figure"))
        limit = 3 * usual if word == b"s] figure" else draw.uniform(1, max(2, usual))  # after Python itself has started
        said = read_until(run.stderr, time.monotonic() + limit, word)
        if word in said:
            time.sleep(draw.uniform(0, 0.05) if draw.random() < 0.5 else draw.uniform(0, usual / 2))
        run.send_signal(number)
        said = (said + run.communicate()[1]).decode()
        others = [
            line for line in said.splitlines() if line and not PROGRESS.match(line) and "finished run" not in line
        ]
        after, kept = require_whole(out), read_points(out)
        done = max((int(found) for found in re.findall(r"\((\d+) of \d+ done", said)), default=0)
        if "points of another run (seed" in said:  # the start before this one died before it had discarded them
            assert after == before
        elif run.returncode == 0:
            ended["finished"] += 1
            assert after == seed
        else:
            ended["killed" if number == signal.SIGKILL else "interrupted"] += 1
            assert run.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 128 + signal.SIGINT)
            assert len(others) == (number == signal.SIGINT), others
            staged = out.with_name("chaos.partial") / "results" / "run.json"
            assert kept >= done or after == seed or staged.exists()
            assert after in (before, seed)
        assert {path.name for path in out.parent.iterdir()} <= {"chaos", "chaos.partial"}
    last = start(out, cache, "--seed", "7", "--force")
    last.communicate()
    assert last.returncode == 0
    assert require_whole(out) == 7
    assert [path.name for path in out.parent.iterdir()] == ["chaos"], "left-overs after the next start"
    record_property(
        "table", f"{count} kills of a run of {usual:.1f} s: {ended}; 0 mixed, lost or unreadable, 0 left over"
    )

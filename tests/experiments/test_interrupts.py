"""Signals, sent to processes of their own."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import interrupts

ROOT = Path(__file__).parents[2]
PROGRAM = """
import signal, sys
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)  # in the background of a script SIGINT is ignored, and stays so
from experiments import interrupts
interrupts.fill_closed_streams()
interrupts.watch("experiments")
from tests.experiments.harness import toy
import jax

def wait(i):
    if i == 2:
        print("waiting", flush=True)
        jax.jit(lambda x: jax.lax.fori_loop(0, 2**31 - 1, lambda i, x: x * 1.5, x))(1.0).block_until_ready()

raise SystemExit(toy.run_toy(__import__("pathlib").Path(sys.argv[1]), experiment=toy.make_experiment(wait)))
"""


@pytest.mark.skipif(not hasattr(signal, "sigwait"), reason="no sigwait")
def test_a_signal_ends_a_run_that_nobody_listens_to(tmp_path):
    """As in `2>&1 | tee log`, where Ctrl-C ends tee, too; stdout is closed from the start."""
    run = subprocess.Popen(
        ["bash", "-c", 'exec "$@" >&-', "bash", sys.executable, "-c", PROGRAM, str(tmp_path / "toy")],
        cwd=ROOT,
        stderr=subprocess.PIPE,
    )
    while b"2 of 3 done" not in run.stderr.readline():
        pass
    run.stderr.close()
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=30) == 130


def test_a_signal_that_was_ignored_stays_ignored(monkeypatch):
    monkeypatch.setattr(interrupts.signal, "getsignal", lambda number: signal.SIG_IGN)
    monkeypatch.setattr(interrupts.signal, "pthread_sigmask", lambda *call: pytest.fail("blocked"))
    interrupts.watch("experiments")


@pytest.mark.skipif(not hasattr(signal, "sigwait"), reason="no sigwait")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_at_once_in_one_line_and_keeps_its_points(number, tmp_path):
    out = tmp_path / "toy"
    run = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(out)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout.readline() == "waiting\n"
    time.sleep(0.2)
    start = time.monotonic()
    run.send_signal(number)
    _, error = run.communicate(timeout=30)
    assert time.monotonic() - start < 5
    assert run.returncode == 128 + number
    lines = [line for line in error.splitlines() if line and not re.match(r"\[ *[\d.]+ s\]", line)]
    assert lines == [f"experiments: interrupted; 2 points are kept in {out}.partial (--resume continues)"]
    assert os.listdir(tmp_path) == ["toy.partial"]

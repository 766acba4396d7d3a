"""Ctrl-C and SIGTERM: one line and the usual exit code, at once, whatever the main thread is waiting for.

Nothing needs to be undone, because what is on the disk is whole at every moment.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

PATIENCE = 10  # seconds for a worker to end


class _Ending:
    describe: Callable[[], str] = staticmethod(lambda: "")
    worker: subprocess.Popen | None = None


def pass_on_to(worker: subprocess.Popen) -> None:
    """Let a process that does the work end first, with a line of its own, of which this one needs none."""
    _Ending.worker = worker


def describe_with(describe: Callable[[], str]) -> None:
    """Let the line end with what `describe` returns then."""
    _Ending.describe = staticmethod(describe)


def end_at_once(program: str, number: int) -> None:
    """Say so, and end the process with 128 + the number of the signal."""
    if _Ending.worker is not None:
        _end_worker(_Ending.worker, number)
    try:
        words = _Ending.describe()
    except Exception:  # it looks at files that the main thread is moving
        words = ""
    try:
        descriptor = sys.stderr.fileno()
        start = "\n" if os.isatty(descriptor) else ""  # the terminal has written ^C
        os.write(descriptor, f"{start}{program}: interrupted{words}\n".encode())
    finally:  # nobody may be reading
        os._exit(128 + number)


def _end_worker(worker, number):
    try:
        worker.send_signal(number)
        worker.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        worker.kill()
    finally:
        os._exit(128 + number)


def fill_closed_streams() -> None:
    """Of stdin, stdout and stderr, let what is closed lead nowhere, and not into the next file that is opened."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115, for as long as the process lives
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def watch(program: str) -> None:
    """Wait for both signals in a thread of its own, so that neither a compilation nor a long computation is in the way.

    To be called before any other thread is started: they inherit that these signals are not theirs.
    """
    if not hasattr(signal, "sigwait"):  # Windows: Python's own KeyboardInterrupt
        return
    signals = {each for each in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(each) != signal.SIG_IGN}
    if not signals:  # as under nohup, or in the background of a script
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    threading.Thread(target=lambda: end_at_once(program, signal.sigwait(signals)), daemon=True).start()

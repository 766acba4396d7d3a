"""Ctrl-C and SIGTERM: one line and the usual exit code, at once, whatever the main thread is waiting for.

Nothing needs to be undone, because what is on the disk is whole at every moment.
"""

import os
import signal
import threading
from collections.abc import Callable


class _Ending:
    describe: Callable[[], str] = staticmethod(lambda: "")


def describe_with(describe: Callable[[], str]) -> None:
    """Let the line end with what `describe` returns then."""
    _Ending.describe = staticmethod(describe)


def end_at_once(program: str, number: int) -> None:
    """Say so, and end the process with 128 + the number of the signal."""
    try:
        words = _Ending.describe()
    except Exception:  # it looks at files that the main thread is moving
        words = ""
    os.write(2, f"\n{program}: interrupted{words}\n".encode())
    os._exit(128 + number)


def watch(program: str) -> None:
    """Wait for both signals in a thread of its own, so that neither a compilation nor a long computation is in the way.

    To be called before any other thread is started: they inherit that these signals are not theirs.
    """
    if not hasattr(signal, "sigwait"):  # Windows: Python's own KeyboardInterrupt
        return
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    threading.Thread(target=lambda: end_at_once(program, signal.sigwait(signals)), daemon=True).start()

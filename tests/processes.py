"""Several processes on this machine as one run, for tests: started together, with a free port and an end."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LIMIT = 300  # seconds until those that are left are killed: the machine may be busy


class Ended(NamedTuple):
    code: int  # that of a process which LIMIT has killed: −9
    out: str
    error: str
    seconds: float  # from the start of all


def find_port() -> int:
    """One on which nobody listens."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


def start(words: Sequence[str], **environment: str) -> subprocess.Popen:
    """python WORDS in the repository's root."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(processes: Sequence[subprocess.Popen], limit: float = LIMIT) -> list[Ended]:
    """What each said, when all have ended."""
    begun, ended = time.monotonic(), []
    for each in processes:
        try:
            said = each.communicate(timeout=max(0.1, begun + limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            each.kill()
            said = each.communicate()
        ended.append(Ended(each.returncode, *said, time.monotonic() - begun))
    return ended


def run(make: Callable[[int, int, str], Sequence[str]], count: int, limit: float = LIMIT) -> list[Ended]:
    """`count` processes at once of python make(i, count, "127.0.0.1:PORT"); `-c` and a program are words, too."""
    address = f"127.0.0.1:{find_port()}"
    return wait([start(make(i, count, address)) for i in range(count)], limit)

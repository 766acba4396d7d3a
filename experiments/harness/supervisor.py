"""The command of one of several processes: it starts itself as a worker, and turns the worker's end into one line.

Where a process of a run dies or never comes, JAX's distributed runtime ends all others by abort() in a thread of C++,
with pages of its own log, and nothing public can keep it from that in the process itself. So the command is two
processes: the worker does the work, and what native code writes goes to a file; the supervisor uses no device, waits,
reads that file if the worker does not end by itself, and passes on signals. The worker ends when its supervisor does.

Exit codes: the worker's own; 3: a process of the run is gone, or never came.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from experiments import interrupts

from . import folder, hosts
from .progress import describe_points

GONE = 3
WORKER = "JAXBPTT_WORKER"  # in the environment of a worker: the folder that it shares with its supervisor
LOG = "native.log"
FATAL = "distributed service detected fatal errors"
MET, AGREED = "met", "agreed"  # how far the processes have come, as files of that folder
MARGIN = 60  # seconds beyond the time-out, for Python and JAX to start


def is_worker() -> bool:
    """Whether a supervisor has started this process."""
    return WORKER in os.environ


def supervise(name: str, arguments: Sequence[str], address: str, group: hosts.Group, timeout: int, out: Path) -> int:
    """Run this command line, which ends with `arguments`, in a worker; the exit code.

    Raises:
      ValueError: the address is of no use, or there is no such command line.
    """
    if not arguments or sys.orig_argv[-len(arguments) :] != list(arguments):
        raise ValueError(f"coordinator: got {address} in a function call, expected it on a command line")
    _require_address(address, group)
    with tempfile.TemporaryDirectory(prefix="jaxbptt-") as shared:
        worker = subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]],
            env={**os.environ, WORKER: shared},
            stdin=subprocess.PIPE,  # its end tells the worker that this process has ended
            start_new_session=True,  # Ctrl-C of a terminal comes to this process alone, which passes it on
        )
        interrupts.pass_on_to(worker)
        try:
            code = worker.wait(timeout + MARGIN)
        except subprocess.TimeoutExpired:
            if not Path(shared, AGREED).exists():
                worker.kill()
            code = worker.wait()
        log = Path(shared, LOG).read_text(errors="replace") if Path(shared, LOG).exists() else ""
        if code >= 0 and not (code == 1 and FATAL in log):  # abort(), exit(1) in older versions
            return code
        line, code = _explain(Path(shared), log, address, group, timeout, code)
    place = out.resolve() if out.is_symlink() else out
    kept = "" if group.process_id else describe_points(place.with_name(f"{place.name}{folder.PARTIAL}"))
    print(f"experiments {name}: {line}{kept}", file=sys.stderr)
    return code


def begin_work() -> None:
    """In a worker: let what native code writes go to the log, and end with the supervisor."""
    log = os.open(Path(os.environ[WORKER], LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream, number in (("stdout", 1), ("stderr", 2)):
        kept = os.dup(number)
        os.dup2(log, number)
        setattr(sys, stream, open(kept, "w", buffering=1, encoding="utf-8", errors="replace"))  # noqa: SIM115
    os.close(log)

    def end_with_supervisor():
        with contextlib.suppress(OSError):
            os.read(0, 1)
        os._exit(GONE)

    threading.Thread(target=end_with_supervisor, daemon=True).start()


def report(stage: str) -> None:
    """In a worker: how far the processes have come."""
    Path(os.environ[WORKER], stage).touch()


def _require_address(address, group):
    """Its name resolves; process 0 can listen there."""
    host, port = hosts.split_address(address)
    try:
        socket.getaddrinfo(host, port)
    except OSError as error:
        raise ValueError(f"coordinator: got {address}, whose name does not resolve ({error.strerror})") from None
    if group.process_id == 0:
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind(("", port))
            except OSError as error:
                raise ValueError(
                    f"coordinator: got {address}, process 0 cannot listen there ({error.strerror})"
                ) from None


def _explain(shared, log, address, group, timeout, code):
    """(line, exit code) of a worker that did not end by itself, by what native code wrote."""
    if "newer incarnation" in log or "ALREADY_EXISTS" in log:
        return f"process_id: got {group.process_id}, which two processes have; expected each once", 2
    if not (shared / MET).exists():
        what = f"not all of {group.processes} processes came to {address} within {timeout} s"
        return f"{what}; expected each of --process-id 0 … {group.processes - 1} once, --num-processes alike", GONE
    if code == -signal.SIGKILL and not (shared / AGREED).exists():
        return f"the processes met at {address}, but no message passes between them", GONE
    unhealthy = re.search(r"(?:unhealthy|heartbeats?)[^:]*:\n((?:\S*\d+\n)+)", log)
    if unhealthy:
        gone = ", ".join(re.findall(r"(\d+)\n", unhealthy[1]))
        return f"process {gone} of {group.processes} is gone", GONE
    if "leader task" in log or "Socket closed" in log:
        return f"process 0 of {group.processes} is gone", GONE
    if FATAL in log:
        return f"a process of {group.processes} is gone", GONE
    last = next((line for line in log.splitlines() if re.match(r"[EF]\d{4} ", line)), "")
    return f"this process was ended by signal {-code}{f' ({last[:200]})' if last else ''}", GONE

"""Several processes, each with devices of its own, as one run: who is there, and what they tell each other.

JAX's own distributed runtime is what joins them. Process 0 alone touches the folder of the results; all call the same
collectives in the same order, and each compares with process 0 what the run is before anything is computed.
"""

import json
import re
import socket
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from . import folder

HEARTBEAT = 20  # seconds after which a process that does not answer is gone
PAUSE = 0.2  # seconds between two looks whether process 0 listens


class Gone(Exception):
    """A process of the run is not there (any more): exit code 3."""


class Group(NamedTuple):
    """The processes of a run, from the side of one."""

    process_id: int = 0
    processes: int = 1
    devices: int = 1  # of each process, for the points of a sweep

    @property
    def places(self) -> int:
        """Points that are computed at once."""
        return self.processes * self.devices

    def find_devices(self) -> list[Any]:
        """The devices of all processes, in their order."""
        by_process = [[each for each in jax.devices() if each.process_index == i] for i in range(self.processes)]
        return [each for own in by_process for each in own[: self.devices]]


ALONE = Group()


def make_cpu_devices(count: int, given_flags: str) -> None:
    """Let JAX have `count` devices where its platform is the CPU, unless XLA's flag has said how many, or it runs."""
    if count > 1 and "host_platform_device_count" not in given_flags:
        try:
            jax.config.update("jax_num_cpu_devices", count)
        except RuntimeError:  # it has begun with as many as it has
            return


def lacks_devices(count: int) -> str:
    """A line where JAX finds fewer devices here than `count`; else ""."""
    there = jax.local_devices()
    if count <= len(there):
        return ""
    return f"devices: got {count}, expected at most {len(there)} ({there[0].platform} devices that JAX finds here)"


def join(address: str, group: Group, timeout: int) -> None:
    """Meet the other processes; the process aborts where they do not come within `timeout` seconds."""
    begun = time.monotonic()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if group.process_id:
        _await_coordinator(address, timeout)
    left = max(1, round(timeout - (time.monotonic() - begun)))
    jax.distributed.initialize(
        coordinator_address=address,
        num_processes=group.processes,
        process_id=group.process_id,
        initialization_timeout=left,
        heartbeat_timeout_seconds=HEARTBEAT,
    )


def agree(group: Group, identity: Mapping[str, Any], problem: str) -> None:
    """Compare with process 0 what the run is, and hear what each process lacks; one line in each process.

    Raises:
      ValueError: they are not of one run, or one of them has a `problem`.
    """
    own = {**identity, "problem": problem, "group": [group.processes, group.devices]}
    every = [json.loads(said) for said in exchange(json.dumps(own).encode())]
    lines = [f"process {i}: {said['problem']}" for i, said in enumerate(every) if said["problem"]]
    for i, said in enumerate(every):
        different = folder.differences(said, every[0])
        for name, here, there in zip(("num_processes", "devices"), said["group"], every[0]["group"], strict=True):
            different = different or ("" if here == there else f"{name} {here}, not {there}")
        if different:
            lines.append(f"process {i} has another run than process 0 ({different})")
    if lines:
        raise ValueError("; ".join(lines))


def exchange(message: bytes) -> list[bytes]:
    """What every process says, in all of them."""
    lengths = _collect(np.array(len(message), np.int32))
    padded = np.frombuffer(message.ljust(int(lengths.max()), b"\0"), np.uint8)
    every = _collect(padded)
    return [bytes(row[:length].tobytes()) for row, length in zip(every, lengths, strict=True)]


def tell(group: Group, message: bytes = b"") -> bytes:
    """What process 0 says, in all of them."""
    return message if group.processes == 1 else exchange(message if group.process_id == 0 else b"")[0]


def gather(tree: Any) -> Any:
    """Every leaf, sharded over the processes' devices, whole and on the host of every one."""
    jax.block_until_ready(tree)  # what fails up to here is a computation of our own
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    try:
        return multihost_utils.process_allgather(tree, tiled=True)
    except Exception as error:
        raise Gone(_shorten(error)) from None


def leave() -> None:
    """Part from the others, when all have done their part; none waits for another one from now on."""
    jax.distributed.shutdown()


def split_address(address: str) -> tuple[str, int]:
    """(host, port); [::1]:80 is one of IPv6."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _collect(array):
    """[processes, ...] of what every process has; as many as process 0 says."""
    count = jax.process_count()
    first = [next(each for each in jax.devices() if each.process_index == i) for i in range(count)]
    sharding = NamedSharding(Mesh(np.array(first), ("processes",)), PartitionSpec("processes"))
    try:
        rows = jax.make_array_from_callback((count, *array.shape), sharding, lambda index: array[None])
        return np.asarray(multihost_utils.process_allgather(rows, tiled=True))
    except Exception as error:
        raise Gone(_shorten(error)) from None


def _await_coordinator(address, timeout):
    """So that a wrong address is told from a process that is missing."""
    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection(split_address(address), timeout=max(PAUSE, end - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() + PAUSE > end:
                what = f"coordinator: got {address}, where process 0 does not listen after {timeout} s"
                raise Gone(f"{what} ({error.strerror or error})") from None
        time.sleep(PAUSE)


def _shorten(error: Exception) -> str:
    first = re.sub(r"\[external\S*\] ", "", str(error).partition("\n")[0])  # without a place in XLA's source
    return f"a process of the run is gone ({first[:200]})"

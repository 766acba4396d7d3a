"""What a command line asks of how a run is made, apart from what the run is: none of it is part of its id."""

from typing import Any

from experiments import options

from . import hosts


@options.config
class RunOptions:
    resume: bool = options.flag("continue an unfinished run of the same options")
    force: bool = options.flag("replace a finished run; begin an unfinished one anew")
    no_cache: bool = options.flag("compile anew: leave the compilation cache alone")


@options.config
class SpreadOptions(RunOptions):
    """Of an experiment whose points several devices share."""

    devices: int = options.size(1, "devices of this process that share the points", most=2**16)
    coordinator: str | None = options.text("host:port of process 0, where several processes meet", shown="none")
    process_id: int | None = options.size(None, "which of them this is; 0 keeps the results", least=0, shown="none")
    num_processes: int | None = options.size(None, "processes of the run, one command each", most=2**16, shown="none")
    timeout: int = options.size(60, "seconds until all processes are to be there", most=86400)


OF_SPREAD = tuple(name for name in SpreadOptions.__dataclass_fields__ if name not in RunOptions.__dataclass_fields__)


def refuse_spread(name: str, arguments: Any, able: str) -> None:
    """Raise where devices or processes are named to an experiment that cannot use them; `able` can."""
    for option in OF_SPREAD:
        word = "--" + option.replace("_", "-")
        if any(given.partition("=")[0] == word for given in arguments):
            raise ValueError(f"{option}: {name} runs on one device of one process; {able} can be spread over several")


def find_group(asked: SpreadOptions) -> hosts.Group:
    """The processes of the run, as this one is told.

    Raises:
      ValueError: the options do not fit together.
    """
    numbers = {"process_id": asked.process_id, "num_processes": asked.num_processes}
    if asked.coordinator is None:
        for name, value in numbers.items():
            if value is not None:
                raise ValueError(f"coordinator: got none, expected host:port, as {name} is {value}")
        return hosts.Group(devices=asked.devices)
    for name, value in numbers.items():
        if value is None:
            raise ValueError(f"{name}: got none, expected an integer, as coordinator is {asked.coordinator}")
    try:
        host, port = hosts.split_address(asked.coordinator)
    except ValueError:
        host, port = "", 0
    if not (host and 0 < port < 2**16):
        raise ValueError(f"coordinator: got {asked.coordinator!r}, expected host:port with a port of 1 … 65535")
    if asked.process_id >= asked.num_processes:
        raise ValueError(f"process_id: got {asked.process_id}, expected 0 … {asked.num_processes - 1}")
    return hosts.Group(asked.process_id, asked.num_processes, asked.devices)

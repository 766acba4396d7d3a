"""The toolkit against its peers, side by side: time, memory, and how near the machine's own speed."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from experiments import harness, options

from . import cases, exponents, figure, machine, online, report, suites

SUITES = ("gradients", "jacobians", "terms", "spectra", "online", "scaling")
QUICK = {"lengths": (256,), "sizes": (32, 128), "seconds": 0.2}


def names(text: str) -> tuple[str, ...]:
    """ "tanh,lstm" as names."""
    return tuple(text.split(","))


@dataclass(frozen=True)
class Config:
    suite: str = field(default="all", metadata={"choices": ("all", *SUITES), "help": "what to measure"})
    cells: tuple = field(
        default=("tanh", "lstm", "gru"), metadata={"type": names, "shown": "tanh,lstm,gru", "help": "cells"}
    )
    lengths: tuple = field(
        default=(128, 1024, 8192), metadata={"type": options.integers, "shown": "128,1024,8192", "help": "steps T"}
    )
    sizes: tuple = field(
        default=(32, 64, 128, 256), metadata={"type": options.integers, "shown": "32,64,128,256", "help": "units N"}
    )
    batches: tuple = field(default=(1, 32), metadata={"type": options.integers, "shown": "1,32", "help": "sequences B"})
    seconds: float = field(default=2.0, metadata={"help": "time for a case's rounds, of which there are 5 at least"})
    quick: bool = field(default=False, metadata={"help": "T 256, N 32 and 128, 0.2 s a case"})
    out: str = field(default="results/benchmark", metadata={"help": "folder of the results"})


def run(config: Config, progress: Any = lambda message: None) -> dict[str, Any]:
    """{"environment": machine, versions and rooflines, "config": …, "rows": one for each contestant of each case}."""
    config = dataclasses.replace(config, **QUICK) if config.quick else config
    for name in ("lengths", "sizes", "batches"):
        for value in getattr(config, name):
            options.require_size(name, value)
    for cell in config.cells:
        if cell not in cases.MAKERS:
            raise ValueError(f"cells: got {cell!r}, expected some of {', '.join(cases.MAKERS)}")
    progress("roofline")
    rooflines = machine.measure_rooflines()
    measure = {
        "gradients": suites.gradient_rows,
        "jacobians": suites.jacobian_rows,
        "terms": suites.term_rows,
        "spectra": exponents.spectrum_rows,
        "online": online.online_rows,
        "scaling": suites.scaling_rows,
    }
    chosen = SUITES if config.suite == "all" else (config.suite,)
    rows = [row for name in chosen for row in measure[name](config, progress)]
    environment = {**machine.describe(), "roofline": rooflines}
    return {"environment": environment, "config": dataclasses.asdict(config), "rows": rows}


def summarise(results: dict[str, Any], config: Config) -> harness.Summary:
    """The rows as they are, and as a table."""
    return harness.Summary([report.render(results)], results)


EXPERIMENT = harness.Experiment(
    name="benchmark",
    purpose="speed and memory beside Flax, Equinox, PyTorch, clvlib, lyapax and chaotax, if installed",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=figure.plot,
    float64=False,
    keeps_arrays=False,
    summary_file="benchmark.json",
)

"""The toolkit against its peers, side by side: time, memory, and how near the machine's own speed.

The exit code is 1 where two of our own ways to one result differ or fail; what a peer does is its row. Without a peer
the rows are of JAX's own ways beside ours, which is said, with exit code 0.
"""

import dataclasses
from typing import Any

from experiments import harness, options

from . import cases, exponents, figure, frameworks, machine, modern, online, report, suites

SUITES = ("gradients", "adapters", "wide", "modern", "jacobians", "terms", "spectra", "online", "scaling")
QUICK = {"lengths": (256,), "sizes": (32, 128), "seconds": 0.2}


@options.config
class Config:
    suite: tuple = options.choices("all", SUITES, "what is measured")
    cells: tuple = options.choices("all", cases.MAKERS, "cells")
    lengths: tuple = options.sizes((128, 1024, 8192), "steps T")
    sizes: tuple = options.sizes((32, 64, 128, 256), "units N")
    batches: tuple = options.sizes((1, 32), "sequences B")
    dtypes: tuple = options.choices("float32", cases.DTYPES, "dtypes of the gradients")
    seconds: float = options.number(1.0, "seconds of a case's rounds, of which there are 5 at least", least=0)
    quick: bool = options.flag("T 256, N 32 and 128, 0.2 s a case")
    out: str = options.out("benchmark")


def run(config: Config, progress: Any = lambda message: None) -> dict[str, Any]:
    """{"environment": machine, versions and rooflines, "config": …, "rows": one for each contestant of each case}."""
    config = dataclasses.replace(config, **QUICK) if config.quick else config
    progress("roofline")
    environment, before = machine.describe(), machine.measure_rooflines()
    measure = {
        "gradients": suites.gradient_rows,
        "adapters": frameworks.adapter_rows,
        "wide": suites.wide_rows,
        "modern": modern.modern_rows,
        "jacobians": suites.jacobian_rows,
        "terms": suites.term_rows,
        "spectra": exponents.spectrum_rows,
        "online": online.online_rows,
        "scaling": suites.scaling_rows,
    }
    rows = [row for name in config.suite for row in measure[name](config, progress)]
    progress("roofline, again")
    runs = [before, machine.measure_rooflines()]
    environment |= {"roofline": {name: max(run[name] for run in runs) for name in before}, "roofline_runs": runs}
    return {"environment": environment, "config": dataclasses.asdict(config), "rows": rows}


def summarise(results: dict[str, Any], config: Config) -> harness.Summary:
    """The rows as they are, and as a table."""
    ours = [row for row in results["rows"] if row["contestant"].startswith("jaxbptt")]
    wrong = any(row["status"] in ("differs", "failed") for row in ours)
    return harness.Summary([report.render(results)], results, exit_code=1 if wrong else 0)


EXPERIMENT = harness.Experiment(
    name="benchmark",
    purpose="speed and memory beside Flax, Equinox, PyTorch, clvlib, lyapax and chaotax, if installed",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=figure.plot,
    float64=False,
    keeps_compiled=False,
    keeps_arrays=False,
    summary_file="benchmark.json",
    takes="60 min",
    alt={
        "figure.png": (
            "Left, a grid of cells by one sequence and a batch, with how many times faster jaxbptt is than each other "
            "library for several lengths and sizes, and a line at 1, equally fast. Right, jaxbptt's speed by size "
            "below the speed of one large matrix product, and its time over T, N and B beside that of plain automatic "
            "differentiation, on logarithmic axes."
        ),
    },
)

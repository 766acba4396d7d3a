"""Settings of a process that traces and compiles for longer than it computes: each program runs once."""

import gc
from collections.abc import MutableMapping
from importlib import metadata

# Of two cores' half a minute of compiling, kernels of fused operations by way of MLIR take a fifth (and half of the
# memory), LLVM's higher optimisation levels another. Matrix products and LAPACK are called, not compiled.
FLAGS = ("--xla_cpu_use_fusion_emitters=false", "--xla_backend_optimization_level=1")
KNOWN_TO = "0.10."  # jaxlib: XLA ends a process that gives it a flag it does not know


def keep_garbage() -> None:
    """No search for cycles among the objects of traces, which takes 5 % of a run and frees next to nothing."""
    gc.disable()


def compile_sooner(environment: MutableMapping[str, str], jaxlib: str | None = None) -> None:
    """Add FLAGS to XLA_FLAGS, except those the user has set; to be called before JAX computes anything.

    Args:
      environment: os.environ; changed where `jaxlib` is a version that knows the flags.
      jaxlib: its version; None: of the one installed.
    """
    if not (metadata.version("jaxlib") if jaxlib is None else jaxlib).startswith(KNOWN_TO):
        return
    given = environment.get("XLA_FLAGS", "")
    added = [flag for flag in FLAGS if flag.split("=")[0] not in given]
    environment["XLA_FLAGS"] = " ".join([*given.split(), *added])

"""Strict everywhere: float64, no silent promotion of dtype or rank; warnings are errors (pyproject.toml).

The tests compile much and run little, so XLA compiles quickly and optimises little here: a third of the time.
JAX_DISABLE_MOST_OPTIMIZATIONS=0 in the environment runs them as users' programs run.
"""

import importlib.util
import mmap
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # processes side by side: LAPACK's threads would wait for each other
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # read as JAX is imported; subprocesses inherit it

import jax

SLOW_TO_COMPILE = "xla_cpu_use_fusion_emitters"


def is_known(flag):
    """Whether the installed jaxlib knows an XLA flag: XLA ends the process at one it does not know."""
    for library in Path(importlib.util.find_spec("jaxlib").origin).parent.glob("libjax_common*"):
        with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(flag.encode()) >= 0
    return False


given = os.environ.get("XLA_FLAGS", "")  # read as JAX first compiles
if jax.config.read("jax_disable_most_optimizations") and SLOW_TO_COMPILE not in given and is_known(SLOW_TO_COMPILE):
    os.environ["XLA_FLAGS"] = f"{given} --{SLOW_TO_COMPILE}=false"

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
    """The processes of one run share what they compile: calls outside jit compile the same programs again and again."""
    if not hasattr(config, "workerinput"):
        config.compiled = os.environ["JAXBPTT_TESTS_COMPILED"] = tempfile.mkdtemp(prefix="jaxbptt-tests-")
    jax.config.update("jax_compilation_cache_dir", os.environ["JAXBPTT_TESTS_COMPILED"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)


def pytest_unconfigure(config):
    if hasattr(config, "compiled"):
        shutil.rmtree(config.compiled, ignore_errors=True)

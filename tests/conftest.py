"""Strict everywhere: float64, no silent promotion of dtype or rank, annotations enforced; warnings are errors
(pyproject.toml).

The tests compile much and run little, so XLA compiles quickly and optimises little here: a third of the time.
JAX_DISABLE_MOST_OPTIMIZATIONS=0 in the environment runs them as users' programs run.
"""

import collections
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # processes side by side: LAPACK's threads would wait for each other
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # read as JAX is imported; subprocesses inherit it

import jax
import pytest

SLOW_TO_COMPILE = "--xla_cpu_use_fusion_emitters=false"


def is_known(flag):
    """Whether the installed jaxlib takes an XLA flag: XLA ends the process at one it does not know."""
    code = "import jax; jax.numpy.zeros(1).block_until_ready()"
    return not subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "XLA_FLAGS": flag}, capture_output=True
    ).returncode


given = os.environ.get("XLA_FLAGS", "")  # read as JAX first compiles; the processes of one run inherit it
asked = jax.config.read("jax_disable_most_optimizations") and "PYTEST_XDIST_WORKER" not in os.environ
if asked and SLOW_TO_COMPILE not in given and is_known(SLOW_TO_COMPILE):
    os.environ["XLA_FLAGS"] = f"{given} {SLOW_TO_COMPILE}"

from tests import typecheck  # noqa: E402, after XLA's flags

typecheck.install()  # before anything imports the package

jax.config.update("jax_enable_x64", True)
if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update("jax_num_cpu_devices", 8)  # for what is cut over devices
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


SHARE = 5  # one of so many cases of a `sweep` runs with the fast tests
GOLDEN = (5**0.5 - 1) / 2  # whose multiples lie evenly in (0, 1), so that cases are taken from all over a grid


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    """Of a test marked `sweep` the first case and every few others are fast, the rest are slow."""
    cases = collections.Counter()
    for item in items:
        if (mark := item.get_closest_marker("sweep")) is None:
            continue
        number = cases[test := item.nodeid.partition("[")[0]]
        cases[test] += 1
        if number * GOLDEN % 1 >= 1 / (mark.args[0] if mark.args else SHARE):
            item.add_marker(pytest.mark.slow)


MOST_MAPS = 25_000  # memory maps of a process; the kernel allows 65,530, and every compiled program holds some
CHECK_EVERY = 40  # tests
_run_tests = 0


def pytest_runtest_teardown(item):
    """Forget what is compiled before the process has too many memory maps: it would end in a segmentation fault."""
    global _run_tests
    _run_tests += 1
    maps = Path("/proc/self/maps")
    if _run_tests % CHECK_EVERY == 0 and maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


def pytest_configure(config):
    """The processes of one run share what they compile: calls outside jit compile the same programs again and again."""
    if not hasattr(config, "workerinput"):
        config.compiled = os.environ["JAXBPTT_TESTS_COMPILED"] = tempfile.mkdtemp(prefix="jaxbptt-tests-")
    jax.config.update("jax_compilation_cache_dir", os.environ["JAXBPTT_TESTS_COMPILED"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)


def pytest_unconfigure(config):
    if hasattr(config, "compiled"):
        shutil.rmtree(config.compiled, ignore_errors=True)


def pytest_terminal_summary(terminalreporter):
    """Print what tests recorded as rows of a table, also those of other processes."""
    reports = terminalreporter.stats.get("passed", [])
    rows = [value for report in reports for name, value in report.user_properties if name == "table"]
    for line in rows:
        terminalreporter.write_line(line)

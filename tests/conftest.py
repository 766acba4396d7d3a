"""Strict everywhere: float64, no silent promotion of dtype or rank; warnings are errors (pyproject.toml)."""

import os
import shutil
import tempfile

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # processes side by side: LAPACK's threads would wait for each other

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
    """The processes of one run share what they compile: calls outside jit compile the same programs again and again."""
    if not hasattr(config, "workerinput"):
        config.compiled = os.environ["JAXBPTT_TESTS_COMPILED"] = tempfile.mkdtemp(prefix="jaxbptt-tests-")
    jax.config.update("jax_compilation_cache_dir", os.environ["JAXBPTT_TESTS_COMPILED"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def pytest_unconfigure(config):
    if hasattr(config, "compiled"):
        shutil.rmtree(config.compiled, ignore_errors=True)

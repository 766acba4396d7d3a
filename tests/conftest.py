"""Strict everywhere: float64, no silent promotion of dtype or rank; warnings are errors (pyproject.toml)."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # processes side by side: LAPACK's threads would wait for each other

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

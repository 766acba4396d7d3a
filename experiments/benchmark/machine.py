"""What the numbers were measured on, and its roofline."""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from .timing import Contestant, race

PACKAGES = (
    *("jax", "jaxlib", "numpy", "flax", "equinox", "dm-haiku", "torch", "clvlib", "lyapax", "chaotax", "braintrace"),
    *("recurrentgemma", "mlstm-kernels", "xlstm", "fla-core", "mambapy", "accelerated-scan", "lru-pytorch"),
)
# On cores that others share a long product never runs undisturbed, a short one sometimes does: each size gets its turn.
ROOFLINE_SIZES = {"cpu": (256, 512, 1024, 2048)}
ROOFLINE_SIZES_ON_ACCELERATOR = (4096, 8192)
ROOFLINE_RACE = {"seconds": 0.5, "tolerance": 0.0}
FLAGS = ("XLA_FLAGS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")  # what else decides how many threads there are


def describe() -> dict[str, Any]:
    """Machine, its load over the last minute, date, versions (null: not installed) and settings."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu": _cpu_model(),
        "cores": _count_cores(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "flags": {name: os.environ[name] for name in FLAGS if name in os.environ},
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "default_matmul_precision": jax.config.jax_default_matmul_precision,
        "versions": {name: _version(name) for name in PACKAGES},
    }


def measure_rooflines() -> dict[str, float]:
    """Flops per second of square matrix products, by dtype: the fastest of half a second of each size."""
    with jax.enable_x64(True):
        return {dtype.__name__: _measure_roofline(dtype) for dtype in (jnp.float32, jnp.float64)}


def roofline_sizes() -> tuple[int, ...]:
    """Rows of the products, smallest first."""
    return ROOFLINE_SIZES.get(jax.default_backend(), ROOFLINE_SIZES_ON_ACCELERATOR)


def square_product(size: int, dtype: Any = jnp.float32) -> Contestant:
    """A @ B of n = `size`, which takes 2 n³ flops; never compared."""
    matrices = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
    return Contestant(lambda a, b: a @ b, tuple(matrices), None, note=f"{size} × {size}")


def _measure_roofline(dtype):
    fastest = 0.0
    for size in roofline_sizes():
        product = square_product(size, dtype)._replace(convert=lambda _: 0.0)
        row = race([("product", lambda product=product: product)], **ROOFLINE_RACE)[0]
        fastest = max(fastest, 2 * size**3 / row["fastest"])
    return fastest


def _count_cores():
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model():
    """From /proc/cpuinfo where there is one."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )

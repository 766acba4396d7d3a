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

PACKAGES = ("jax", "jaxlib", "numpy", "flax", "equinox", "torch", "clvlib", "lyapax", "chaotax", "braintrace")
ROOFLINE_SIZE = {"cpu": 2048}
ROOFLINE_RACE = {"seconds": 1.0, "tolerance": 0.0}
ROOFLINE_SIZE_ON_ACCELERATOR = 8192


def describe() -> dict[str, Any]:
    """Machine, date, versions (null: not installed) and JAX's settings."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "default_matmul_precision": jax.config.jax_default_matmul_precision,
        "versions": {name: _version(name) for name in PACKAGES},
    }


def measure_rooflines() -> dict[str, float]:
    """Flops per second of one large matrix product, by dtype: the fastest of a second of them."""
    with jax.enable_x64(True):
        return {dtype.__name__: _measure_roofline(dtype) for dtype in (jnp.float32, jnp.float64)}


def roofline_size() -> int:
    """Rows of the large product."""
    return ROOFLINE_SIZE.get(jax.default_backend(), ROOFLINE_SIZE_ON_ACCELERATOR)


def large_product(dtype: Any = jnp.float32) -> Contestant:
    """A @ B, which takes 2 n³ flops; never compared."""
    size = roofline_size()
    matrices = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
    return Contestant(lambda a, b: a @ b, tuple(matrices), None, note=f"{size} × {size}")


def _measure_roofline(dtype):
    rows = race([("large product", lambda: large_product(dtype)._replace(convert=lambda _: 0.0))], **ROOFLINE_RACE)
    return 2 * roofline_size() ** 3 / rows[0]["fastest"]


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

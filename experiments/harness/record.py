"""What a run is (its id: options and versions) and what it ran on."""

import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import jaxbptt

LIBRARIES = ("jax", "jaxlib", "numpy", "optax")  # whose versions may move a number
FLAGS = ("XLA_FLAGS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION", "JAX_DISABLE_MOST_OPTIMIZATIONS")
FLAGS += ("JAX_PLATFORMS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
COUNT = "host_platform_device_count"  # XLA's flag of how many devices there are moves no number
ROOT = Path(__file__).parents[2]


def identify(name: str, config: Any) -> dict[str, Any]:
    """What a run is, before it begins: "id" is a hash of its options (not of `out`), versions and JAX's settings.

    Of a file among the options its contents count, not its place.
    """
    values = json.loads(json.dumps(dataclasses.asdict(config)))  # as they are read back
    versions = _versions()
    counted = {key: value for key, value in values.items() if key != "out"}
    for field in dataclasses.fields(config):
        if field.metadata.get("file") and values[field.name] is not None:
            counted[field.name] = _hash_of_file(Path(values[field.name])) or values[field.name]
    settings = {
        "backend": _backend(),
        "xla_flags": " ".join(sorted(flag for flag in os.environ.get("XLA_FLAGS", "").split() if COUNT not in flag)),
        "float64": bool(jax.config.jax_enable_x64),
        "matmul_precision": jax.config.jax_default_matmul_precision,
    }
    essence = json.dumps([name, counted, versions, settings], sort_keys=True)
    return {
        "id": hashlib.sha256(essence.encode()).hexdigest()[:12],
        "experiment": name,
        "config": values,
        "versions": versions,
        "settings": settings,
        "started": datetime.now(UTC).isoformat(timespec="microseconds"),
    }


def describe_machine() -> dict[str, Any]:
    """Where a run took place: device, flags, git commit."""
    devices = jax.devices()
    return {
        "device": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "cores": os.cpu_count(),
            "cpu": _cpu(),
        },
        "flags": {name: os.environ[name] for name in FLAGS if name in os.environ},
        "git": _git(),
    }


def peak_memory() -> int | None:
    """Most bytes that the process and its first device have held; None: the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return own + ((jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0))


def hash_file(path: Path) -> str:
    """SHA-256 of its bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _hash_of_file(path):
    """None of a pipe, which can be read once, and where reading fails: who needs it says what is wrong."""
    try:
        return hash_file(path) if path.is_file() else None
    except OSError:
        return None


def _backend():
    try:
        return jax.default_backend()
    except Exception as error:  # JAX has several for a platform that is not there
        raise ValueError(f"JAX finds no device: {str(error).partition(chr(10))[0]}") from None


def _versions():
    known = {name: metadata.version(name) for name in LIBRARIES}
    return {"jaxbptt": jaxbptt.__version__, **known, "python": platform.python_version(), "source": _hash_of_source()}


def _hash_of_source():
    """Of the library and the experiments as they are now: an edit between two parts of a run makes it another one."""
    folders = (Path(jaxbptt.__file__).parent, Path(__file__).parents[1])
    digest = hashlib.sha256()
    for path in sorted(path for folder in folders for path in folder.rglob("[!.]*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _cpu():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _git():
    """{"commit", "clean"}; None outside a repository."""

    def ask(*words):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # in a hook
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

    try:
        if not (ROOT / ".git").exists():
            return None
        return {"commit": ask("rev-parse", "HEAD").strip(), "clean": not ask("status", "--porcelain")}
    except (OSError, subprocess.CalledProcessError):
        return None

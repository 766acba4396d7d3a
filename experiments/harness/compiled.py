"""JAX's persistent compilation cache in the user's cache folder: what is compiled once is not compiled again.

A process that is killed while JAX writes an entry leaves a part of it, which JAX would then meet at every later run
with a warning and never replace. So new entries are looked at before the first is read.
"""

import contextlib
import hashlib
import os
import platform
import sys
import zlib
from pathlib import Path

import jax

LARGEST = 2 * 2**30  # bytes kept, the newest ones
LEAST_SECONDS = 0.1  # of compiling, for a program to be kept
CHECKED = "checked"  # a file as old as the last look
ZSTANDARD = b"\x28\xb5\x2f\xfd"  # what a stream of it begins with


def keep_compiled() -> None:
    """Switch the cache on, unless the user has set one; without a folder to write to there is none."""
    if jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        folder = _user_folder() / "jaxbptt" / _machine()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # JAX runs what it reads there
        tidy(folder)
    except (OSError, RuntimeError):  # a user without a home
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)


def tidy(folder: Path) -> None:
    """Remove entries that are not whole, of those since the last call, and the oldest ones beyond `LARGEST` bytes."""
    stamp = folder / CHECKED
    since = stamp.stat().st_mtime_ns if stamp.exists() else 0
    stamp.touch()
    entries = [(path, path.stat()) for path in folder.iterdir() if path != stamp and path.is_file()]
    total = 0
    for path, status in sorted(entries, key=lambda entry: entry[1].st_mtime_ns, reverse=True):
        total += status.st_size
        with contextlib.suppress(FileNotFoundError):  # another process tidies, too
            if total > LARGEST or (status.st_mtime_ns >= since and not _is_whole(path.read_bytes())):
                path.unlink()


def _is_whole(entry):
    try:
        if entry.startswith(ZSTANDARD):
            _decompress_zstandard(entry)
        else:
            zlib.decompress(entry)
    except Exception:  # every library has its own
        return False
    return True


def _decompress_zstandard(entry):
    try:
        from compression import zstd  # Python 3.14
    except ImportError:
        import zstandard

        zstandard.ZstdDecompressor().decompress(entry)
    else:
        zstd.decompress(entry)


def _user_folder():
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home()))
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _machine():
    """What a program was compiled for may not run elsewhere: folders in the user's home are shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return hashlib.sha256(features.encode()).hexdigest()[:12]

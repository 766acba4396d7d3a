"""What the machine has: the memory that a gradient may take, and the cache in which a block of steps is fast."""

import os

import jax

LEAST_MEMORY = 2**28  # bytes: what is given without asking, where nothing is known or little is free
SHARE = 4  # of what is free, one part in so many
LEAST_CACHE = 2**20  # bytes: where the system does not tell


def default_memory() -> int:
    """Bytes: a quarter of what is free on the default device, as a power of two, so that it is the same for most calls.

    On a CPU that is the memory nobody uses, not even for files; the pages of files that could be given back are left.
    """
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        free = statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    else:
        free = _ask("SC_AVPHYS_PAGES") * _ask("SC_PAGE_SIZE")
    return max(LEAST_MEMORY, 2 ** ((free // SHARE).bit_length() - 1) if free >= SHARE else 0)


def cache_size() -> int:
    """Bytes of the second-level caches of the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(LEAST_CACHE, cores * _ask("SC_LEVEL2_CACHE_SIZE"))


def _ask(name):
    """A number of the system; 0 where it does not tell."""
    try:
        return max(0, os.sysconf(name))
    except (ValueError, OSError, AttributeError):  # AttributeError: not a POSIX system
        return 0

"""Memory of the process: freed blocks are kept for the next batch instead of being returned to the system.

Activations are large, so that glibc maps each from the system and unmaps it when it is freed: every batch then faults
in the same pages again. A thread's own arena does so with any setting, because its heaps are bounded (64 MiB). All
threads therefore share the first arena, so that the engine's thread keeps its memory.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
"""Parameters of `mallopt(3)`."""

KEPT = 2**31 - 1
"""Free bytes beyond which memory is returned: effectively never."""

LARGEST = 2**30
"""Largest block, in bytes, that is served from the kept memory; larger ones are mapped individually."""


def keep_freed_memory() -> bool:
    """Keeps freed memory for the rest of the process. Returns whether the C library supports it (glibc does).

    It must be called before other threads start: a thread that already has its own arena keeps it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    settings = ((_M_MMAP_THRESHOLD, LARGEST), (_M_TRIM_THRESHOLD, KEPT), (_M_TOP_PAD, 2**26), (_M_ARENA_MAX, 1))
    return all(bool(mallopt(name, value)) for name, value in settings)

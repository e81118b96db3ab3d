"""Memory of the process: freed blocks are kept for the next batch instead of being returned to the system.

Activations are large, so glibc maps each from the system and unmaps it when it is freed: every batch then pays for the
same pages again. A thread's own arena does so whatever it is told, since its heaps are bounded (64 MiB): so that the
engine's thread keeps its memory, all threads share the first arena.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
"""Parameters of `mallopt(3)`."""

KEPT = 2**31 - 1
"""Bytes that may stay free before any are returned: in effect, what the process has used once."""

LARGEST = 2**30
"""Largest block, in bytes, that comes from the kept memory; larger ones are mapped one by one."""


def keep_freed_memory() -> bool:
    """Keeps freed memory for the rest of the process. Returns whether the C library knows how (glibc does).

    To be called before other threads are started: one that has an arena of its own by then stays with it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    settings = ((_M_MMAP_THRESHOLD, LARGEST), (_M_TRIM_THRESHOLD, KEPT), (_M_TOP_PAD, 2**26), (_M_ARENA_MAX, 1))
    return all(bool(mallopt(name, value)) for name, value in settings)

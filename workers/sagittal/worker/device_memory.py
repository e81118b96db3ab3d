"""Memory of processes and of the device that a worker runs on."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from prometheus_client import Gauge

MIB = 2**20
"""Bytes."""

_PROC = Path("/proc")
#: Where a container's bound on memory is; the first is that of cgroup 2.
_BOUNDS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def watch_memory(gauge: Gauge, device: torch.device) -> None:
    """Lets a gauge with the labels device and kind show the memory that is used, and that there is, in bytes."""
    for kind, read in _readers(device).items():
        gauge.labels(str(device), kind).set_function(read)


def _readers(device: torch.device) -> Mapping[str, Callable[[], float]]:
    if device.type == "cuda":
        return {"used": lambda: _cuda(device)[1] - _cuda(device)[0], "total": lambda: _cuda(device)[1]}
    if (_PROC / "self" / "statm").exists():
        return {"used": resident_bytes, "total": usable_bytes}
    return {}


def _cuda(device: torch.device) -> tuple[int, int]:
    """Returns free and total bytes of a GPU, other processes' use included."""
    free, total = torch.cuda.mem_get_info(device)
    return free, total


def resident_bytes(pid: int | str = "self") -> int:
    """Returns the bytes that a process holds in memory; 0 if nothing is known of it."""
    try:
        pages = int((_PROC / str(pid) / "statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def unshared_bytes(pid: int) -> int:
    """Returns the bytes that a process holds in memory, those shared with others by parts; 0 if nothing is known."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def usable_bytes() -> int:
    """Returns the bytes that this process may use: those of the machine, or fewer in a container."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    bounds = (path.read_text().strip() for path in _BOUNDS if path.exists())
    return min([machine, *(int(bound) for bound in bounds if bound.isdigit())])

"""Memory of the device that a worker runs on, read when it is asked for."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from prometheus_client import Gauge

_STATM = Path("/proc/self/statm")
#: Where a container's bound on memory is; the first is that of cgroup 2.
_BOUNDS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def watch_memory(gauge: Gauge, device: torch.device) -> None:
    """Lets a gauge with the labels device and kind show the memory that is used, and that there is, in bytes."""
    for kind, read in _readers(device).items():
        gauge.labels(str(device), kind).set_function(read)


def _readers(device: torch.device) -> Mapping[str, Callable[[], float]]:
    if device.type == "cuda":
        return {"used": lambda: _cuda(device)[1] - _cuda(device)[0], "total": lambda: _cuda(device)[1]}
    if _STATM.exists():
        return {"used": _resident, "total": _total}
    return {}


def _cuda(device: torch.device) -> tuple[int, int]:
    """Returns free and total bytes of a GPU, other processes' use included."""
    free, total = torch.cuda.mem_get_info(device)
    return free, total


def _resident() -> float:
    """Returns the bytes that this process holds in memory."""
    return float(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _total() -> float:
    """Returns the bytes that this process may use: those of the machine, or fewer in a container."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    bounds = (path.read_text().strip() for path in _BOUNDS if path.exists())
    return float(min([machine, *(int(bound) for bound in bounds if bound.isdigit())]))

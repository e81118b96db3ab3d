"""The devices that a worker runs on, and their memory."""

import os
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from prometheus_client import Gauge

from sagittal.models.sources import ModelUnavailable

EVERY_GPU = "cuda:*"
"""Name for all GPUs that this process may use."""


def named_devices(wish: str) -> Sequence[str]:
    """Returns the devices of a comma-separated setting. Raises ModelUnavailable if there are none."""
    names = [name.strip() for name in wish.split(",") if name.strip()]
    if EVERY_GPU not in names:
        return names
    if not (count := _count_gpus()):
        raise ModelUnavailable(f"the device {EVERY_GPU!r} selects every GPU, and there is none; set SAGITTAL_DEVICE")
    return [f"cuda:{index}" for index in range(count)]


def _count_gpus() -> int:
    """Counts GPUs in a separate process: a process that has used CUDA cannot be forked."""
    fork = get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=_tell_gpus, args=(theirs,))
    process.start()
    theirs.close()
    try:
        return int(ours.recv_bytes())
    except EOFError:
        raise ModelUnavailable("the GPUs cannot be counted: CUDA ended the counting process; see the log") from None
    finally:
        process.join()


def _tell_gpus(connection: Connection) -> None:
    connection.send_bytes(str(torch.cuda.device_count()).encode())


MIB = 2**20
"""Bytes."""

_PROC = Path("/proc")
#: Files with a container's memory limit; the first is that of cgroup 2.
_BOUNDS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def watch_memory(gauge: Gauge, device: torch.device) -> None:
    """Sets a gauge with the labels device and kind to the used and the total memory, in bytes, at each scrape."""
    for kind, read in _readers(device).items():
        gauge.labels(str(device), kind).set_function(read)


def _readers(device: torch.device) -> Mapping[str, Callable[[], float]]:
    if device.type == "cuda":
        return {"used": lambda: _cuda(device)[1] - _cuda(device)[0], "total": lambda: _cuda(device)[1]}
    if (_PROC / "self" / "statm").exists():
        return {"used": resident_bytes, "total": usable_bytes}
    return {}


def _cuda(device: torch.device) -> tuple[int, int]:
    """Returns free and total bytes of a GPU, including the use of other processes."""
    free, total = torch.cuda.mem_get_info(device)
    return free, total


def resident_bytes(pid: int | str = "self") -> int:
    """Returns the resident memory of a process in bytes; 0 if it is unknown."""
    try:
        pages = int((_PROC / str(pid) / "statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def unshared_bytes(pid: int) -> int:
    """Returns the memory of a process in bytes, with shared memory in proportion; 0 if it is unknown."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def usable_bytes() -> int:
    """Returns the memory that this process may use, in bytes: that of the machine, or of its container."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    bounds = (path.read_text().strip() for path in _BOUNDS if path.exists())
    return min([machine, *(int(bound) for bound in bounds if bound.isdigit())])

"""Several devices: one worker process for each, so that each engine has an interpreter of its own.

The processes live and die together: where one ends by itself, the others are drained and the whole ends with its
status, so that whatever watches over this process starts all of them anew. Their jobs are safe: leases run out.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType

import structlog
import torch

from sagittal.models.sources import ModelUnavailable
from sagittal.worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

EVERY_GPU = "cuda:*"
"""Stands for each GPU that this process may use."""

#: Time between two looks at the processes, in seconds.
LOOK = 0.2

_PR_SET_PDEATHSIG = 1


def named_devices(wish: str) -> Sequence[str]:
    """Returns the devices of a comma-separated wish. Raises ModelUnavailable where it stands for none."""
    names = [name.strip() for name in wish.split(",") if name.strip()]
    if EVERY_GPU not in names:
        return names
    if not (count := torch.cuda.device_count()):
        raise ModelUnavailable(f"the device {EVERY_GPU!r} stands for each GPU, and there is none")
    return [f"cuda:{index}" for index in range(count)]


def settings_of(settings: WorkerSettings, device: str, index: int) -> Mapping[str, str]:
    """Returns the environment variables that make a worker the one of a device: name and port are its own."""
    port = settings.metrics_port + index if settings.metrics_port else 0
    return {
        "SAGITTAL_DEVICE": device,
        "SAGITTAL_WORKER_NAME": f"{settings.worker_name}-{index}",
        "SAGITTAL_METRICS_PORT": str(port),
    }


def run_on_each(devices: Sequence[str], settings: WorkerSettings) -> int:
    """Runs a worker on each device until all have ended. Returns the exit status."""
    workers = [_start(settings_of(settings, device, index)) for index, device in enumerate(devices)]

    def drain(_signal: int, _frame: FrameType | None) -> None:
        _drain(workers)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, drain)
    log.info("workers-started", devices=list(devices), pids=[worker.pid for worker in workers])
    while all(worker.poll() is None for worker in workers):
        time.sleep(LOOK)
    _drain(workers)
    statuses = [worker.wait() for worker in workers]
    log.info("workers-stopped", statuses=statuses)
    return next((status for status in statuses if status), 0)


def _start(own: Mapping[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sagittal.worker.start"]
    return subprocess.Popen(command, env={**os.environ, **own}, preexec_fn=_die_with_parent)  # noqa: S603, PLW1509


def _die_with_parent() -> None:
    """Asks the kernel to drain this process when its parent is killed (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _drain(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()

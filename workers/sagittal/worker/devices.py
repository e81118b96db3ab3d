"""Several devices: one worker process for each, so that each engine has an interpreter of its own.

The processes live and die together: if one ends by itself, the others are drained and the whole ends with its status,
so that whatever watches over this process starts all of them anew. Their jobs are safe: leases run out. To the outside
they are one program: one port answers for all of them (`sagittal.worker.process_metrics`), and one SIGTERM drains all.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType

import structlog
import torch

from sagittal.models.sources import ModelUnavailable
from sagittal.runtime.starting import STOPPING
from sagittal.worker.process_metrics import ProcessEndpoint, start_process_metrics
from sagittal.worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

EVERY_GPU = "cuda:*"
"""Stands for each GPU that this process may use."""

#: Time between two looks at the processes, in seconds.
LOOK = 0.2

#: Environment variable with the file descriptor of the socket on which a process answers scrapes and probes. The parent
#: opens the socket, so that no port has to be guessed.
LISTENER = "SAGITTAL_METRICS_LISTENER"

_PR_SET_PDEATHSIG = 1


def named_devices(wish: str) -> Sequence[str]:
    """Returns the devices of a comma-separated wish. Raises ModelUnavailable if it stands for none."""
    names = [name.strip() for name in wish.split(",") if name.strip()]
    if EVERY_GPU not in names:
        return names
    if not (count := torch.cuda.device_count()):
        raise ModelUnavailable(f"the device {EVERY_GPU!r} stands for each GPU, and there is none")
    return [f"cuda:{index}" for index in range(count)]


def inherited_listener() -> socket.socket | None:
    """Returns the socket for scrapes and probes that the parent passed to this process, if it has such a parent."""
    descriptor = os.environ.pop(LISTENER, "")
    return socket.socket(fileno=int(descriptor)) if descriptor else None


def run_on_each(devices: Sequence[str], settings: WorkerSettings) -> int:
    """Runs a worker on each device until all have ended. Returns the exit status.

    Raises:
        OSError: the address of `/metrics` is in use, or a process cannot be started.
    """
    workers = [_DeviceWorker(device, index) for index, device in enumerate(devices)]

    def drain(_signal: int, _frame: FrameType | None) -> None:
        for worker in workers:
            worker.drain()

    for number in STOPPING:
        signal.signal(number, drain)
    if settings.metrics_port:
        endpoints = [worker.endpoint for worker in workers]
        start_process_metrics(settings.metrics_host, settings.metrics_port, endpoints)
    for worker in workers:
        worker.start(settings)
    log.info("workers-started", devices=list(devices), pids=[worker.pid for worker in workers])
    while all(worker.runs for worker in workers):
        time.sleep(LOOK)
    for worker in workers:
        worker.drain()
    statuses = [worker.wait() for worker in workers]
    log.info("workers-stopped", statuses=statuses)
    return next((status for status in statuses if status), 0)


class _DeviceWorker:
    """The worker process of one device."""

    def __init__(self, device: str, index: int) -> None:
        self._device, self._index = device, index
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._process: subprocess.Popen[bytes] | None = None
        self._drained = False
        self.endpoint = ProcessEndpoint(index, device, self._listener.getsockname()[1])

    @property
    def pid(self) -> int:
        """Its process id; 0 before it was started."""
        return self._process.pid if self._process else 0

    @property
    def runs(self) -> bool:
        """Whether it has neither ended nor been drained before its start."""
        return self._process is not None and self._process.poll() is None

    def start(self, settings: WorkerSettings) -> None:
        """Starts the process, unless it was drained already."""
        if not self._drained:
            own = self._own(settings)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sagittal.worker.start"],
                env={**os.environ, **own},
                pass_fds=[self._listener.fileno()],
                process_group=0,  # Ctrl-C reaches the parent alone, which drains each process once
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - it only makes a system call
            )
            if self._drained:  # a signal came while it was started, when there was nothing to end yet
                self._process.terminate()
        self._listener.close()

    def drain(self) -> None:
        """Asks it to drain, once: Python dies of a second SIGTERM that comes while it already exits."""
        if self.runs and not self._drained and self._process is not None:
            self._process.terminate()
        self._drained = True

    def wait(self) -> int:
        """Waits for its end. Returns its exit status, 128 and the number of the signal that killed it included."""
        status = self._process.wait() if self._process else 0
        return 128 - status if status < 0 else status

    def _own(self, settings: WorkerSettings) -> Mapping[str, str]:
        """Returns the environment variables that make a worker the one of this device."""
        return {
            "SAGITTAL_DEVICE": self._device,
            "SAGITTAL_WORKER_NAME": f"{settings.worker_name}-{self._index}",
            LISTENER: str(self._listener.fileno()) if settings.metrics_port else "",
        }


def _die_with_parent() -> None:
    """Asks the kernel to drain this process when its parent is killed (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

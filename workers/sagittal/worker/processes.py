"""The processes of a worker: one per device, restarted when it dies, and killed when it hangs.

They are forked from this process, which imports their modules and uses no thread and no device, so that a restart is
fast. Their jobs are safe: their leases expire. Externally they are one program: one port answers scrapes and probes for
all of them, even while a process restarts, and one SIGTERM drains all.
"""

import faulthandler
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from types import FrameType
from typing import Any

import structlog

from sagittal.process.parent import die_with_parent
from sagittal.process.probes import listen
from sagittal.process.starting import STOPPING, end_on_signals
from sagittal.worker.devices import MIB
from sagittal.worker.hosting.rehearsals import RehearsalRunner
from sagittal.worker.process_metrics import ProcessEndpoint, serve_process_metrics
from sagittal.worker.settings import WorkerSettings
from sagittal.worker.vitals import Vitals, Watched

log = structlog.get_logger(__name__)

_fork = get_context("fork")

#: Exit statuses of a process: stopped, failed by an error of its own, unusable settings, and memory at the ceiling.
STOPPED, CRASHED, USAGE, OUTGROWN = 0, 1, 2, 3

#: Reasons of a restart.
REASONS = ("crashed", "killed", "hung", "memory")

#: Interval between checks of the processes, in seconds.
LOOK = 0.2

#: First and longest pause before a restart, in seconds; it doubles.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0

#: Uptime after which earlier deaths no longer lengthen the pause, in seconds.
HEALTHY_SECONDS = 60.0

#: Time for which an activity must be observed as overdue, in seconds: all processes may have been stopped together.
CERTAIN_SECONDS = 1.0

#: Time for a hanging process to log its stacks, in seconds.
LAST_WORDS = 0.5

#: Time beyond `drain` that a process has to stop, in seconds.
STOP_SECONDS = 30.0


Work = Callable[[WorkerSettings, Watched], None]
"""The main function of a process. It ends by returning, or by SystemExit with one of the statuses."""


class DeviceProcess:
    """The process of one device, across restarts."""

    def __init__(self, settings: WorkerSettings, work: Work, listener: socket.socket | None) -> None:
        """Constructs it without starting a process."""
        self._settings = settings
        self._listener = listener
        self._work = work
        self._rehearsals = RehearsalRunner(settings)
        self._restarts = Counter(dict.fromkeys(REASONS, 0))
        self._process: ForkProcess | None = None
        self._vitals = Vitals()
        self._began = self._again = self._overdue = 0.0
        self._pause = FIRST_PAUSE
        self._hung = False
        self._stop_by = 0.0
        self.status: int | None = None
        """Final exit status, if it is not to be restarted."""

    @property
    def sentinels(self) -> Sequence[Connection | int]:
        """File objects that become readable when the process ends or needs attention."""
        return [self._process.sentinel, *self._rehearsals.sentinels] if self._process is not None else []

    @property
    def pid(self) -> int:
        """Process identifier; 0 if none runs."""
        return (self._process.pid or 0) if self._process is not None else 0

    def drain(self) -> None:
        """Drains the process and prevents restarts. Signals once: a second SIGTERM kills Python while it exits."""
        if self._stop_by:
            return
        self._stop_by = time.monotonic() + self._settings.drain + STOP_SECONDS
        if self._process is not None:
            self._process.terminate()
        elif self.status is None:
            self.status = STOPPED

    def tend(self) -> None:
        """Starts, restarts or kills the process as needed."""
        if self.status is not None:
            return
        if self._process is None:
            if time.monotonic() >= self._again:
                self._start()
        elif self._process.exitcode is None:
            self._watch(self._process)
        else:
            self._ended(self._process.exitcode)

    def _start(self) -> None:
        self._vitals, self._hung, self._began = Vitals(), False, time.monotonic()
        watched = Watched(
            vitals=self._vitals,
            rehearsals=self._rehearsals.open(),
            restarts=dict(self._restarts),
            listener=self._listener,
        )
        self._process = _start(self._work, self._settings, watched)

    def _watch(self, process: ForkProcess) -> None:
        pid, now = process.pid or 0, time.monotonic()
        self._rehearsals.tend(pid)
        overdue = [one for one in (self._vitals.step, self._vitals.load) if one.overdue]
        self._overdue = (self._overdue or now) if overdue else 0.0
        if overdue and now - self._overdue > CERTAIN_SECONDS:
            self._hung = True
            log.error(
                "worker-process-hangs",
                worker=self._settings.worker_name,
                pid=pid,
                doing=[one.doing for one in overdue],
                seconds=round(overdue[0].seconds, 1),
                jobs=self._vitals.jobs,
                remedy="see the stacks of its threads below, SAGITTAL_STALL_SECONDS and SAGITTAL_LOAD_SECONDS",
            )
            os.kill(pid, signal.SIGUSR1)
            time.sleep(LAST_WORDS)
            process.kill()
        elif self._stop_by and now > self._stop_by:
            log.error("worker-process-does-not-stop", worker=self._settings.worker_name, pid=pid)
            process.kill()

    def _ended(self, status: int) -> None:
        """Records the end of a process, and decides whether to restart it."""
        process, self._process = self._process, None
        self._rehearsals.close()
        if self._stop_by or status == USAGE:
            self.status = status
            return
        reason = self._reason(status)
        self._restarts[reason] += 1
        if loading := self._vitals.load.doing:
            self._rehearsals.count(loading)
        self._pause = FIRST_PAUSE if time.monotonic() - self._began > HEALTHY_SECONDS else self._pause
        log.error(
            "worker-process-ended",
            worker=self._settings.worker_name,
            pid=process.pid if process else None,
            reason=reason,
            status=status,
            doing=[one.doing for one in (self._vitals.step, self._vitals.load) if one.doing],
            jobs=self._vitals.jobs,
            again_in_seconds=self._pause,
        )
        self._again = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _reason(self, status: int) -> str:
        if self._hung:
            return "hung"
        if status == OUTGROWN:
            return "memory"
        return "killed" if status < 0 else "crashed"


class Endpoint:
    """The process that answers scrapes and probes for several devices: it uses threads, which the parent must not."""

    def __init__(self, listener: socket.socket, endpoints: Sequence[ProcessEndpoint]) -> None:
        """Constructs it without starting a process."""
        self._listener = listener
        self._endpoints = endpoints
        self._process: ForkProcess | None = None

    def tend(self) -> None:
        """Starts the process, or restarts it if it died."""
        if self._process is None or self._process.exitcode is not None:
            self._process = _start(_answer, self._listener, self._endpoints)

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()


def run_on_each(devices: Sequence[str], settings: WorkerSettings, work: Work) -> int:
    """Runs a process on each device until all are stopped. Returns the exit status.

    Raises:
        OSError: the address of `/metrics` is in use, or a process cannot be started.
    """
    processes, endpoint = _prepare(devices, settings, work)
    stopping = []

    def stop(number: int, _frame: FrameType | None) -> None:
        stopping.append(number)

    for number in STOPPING:
        signal.signal(number, stop)
    for one in processes:
        one.tend()
    log.info("workers-started", devices=list(devices), pids=[one.pid for one in processes])
    while any(one.status is None for one in processes):
        if stopping or any(one.status == USAGE for one in processes):
            for one in processes:
                one.drain()
        for one in processes:
            one.tend()
        if endpoint is not None:
            endpoint.tend()
        wait([sentinel for one in processes for sentinel in one.sentinels], timeout=LOOK)
    if endpoint is not None:
        endpoint.close()
    statuses = [one.status or STOPPED for one in processes]
    log.info("workers-stopped", statuses=statuses)
    return next((128 - status if status < 0 else status for status in statuses if status), STOPPED)


def _prepare(
    devices: Sequence[str], settings: WorkerSettings, work: Work
) -> tuple[Sequence[DeviceProcess], Endpoint | None]:
    """Returns the processes, none started, with sockets for scrapes and probes if they are enabled."""
    each = settings_of_each(devices, settings)
    if not settings.metrics_port:
        return [DeviceProcess(own, work, None) for own in each], None
    outside = listen(settings.metrics_host, settings.metrics_port)
    if len(each) == 1:
        return [DeviceProcess(own, work, outside) for own in each], None
    inside = [socket.create_server(("127.0.0.1", 0)) for _ in each]
    endpoints = [
        ProcessEndpoint(index, own.device, listener.getsockname()[1])
        for index, (own, listener) in enumerate(zip(each, inside, strict=True))
    ]
    processes = [DeviceProcess(own, work, listener) for own, listener in zip(each, inside, strict=True)]
    return processes, Endpoint(outside, endpoints)


def settings_of_each(devices: Sequence[str], settings: WorkerSettings) -> Sequence[WorkerSettings]:
    """Returns the settings of each device's process: with several, each has its own name and share of the memory."""
    if len(devices) < 2:
        return [settings.model_copy(update={"device": next(iter(devices), "")})]
    return [
        settings.model_copy(
            update={
                "device": device,
                "worker_name": f"{settings.worker_name}-{index}",
                "memory_ceiling_mib": settings.memory_ceiling_bytes() // MIB // len(devices),
            }
        )
        for index, device in enumerate(devices)
    ]


def _start(target: Callable[..., None], *arguments: Any) -> ForkProcess:
    """Forks a process. Signals are blocked until it has installed its handlers."""
    process = _fork.Process(target=_begin, args=(target, os.getpid(), *arguments))
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    return process


def _begin(target: Callable[..., None], parent: int, *arguments: Any) -> None:
    die_with_parent(signal.SIGKILL, parent)
    os.setpgrp()  # Ctrl-C reaches only the parent, which drains each process once
    faulthandler.register(signal.SIGUSR1)
    end_on_signals()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    target(*arguments)


def _answer(listener: socket.socket, endpoints: Sequence[ProcessEndpoint]) -> None:
    """Runs the process that answers for all."""
    thread = serve_process_metrics(listener, endpoints).serving.thread
    if thread is not None:
        thread.join()

"""Rehearsals: a model is first loaded in a separate process, which may crash, hang or exhaust memory.

The process of a device requests them from its parent and continues. The parent forks each rehearsal, kills one that
takes too much time or memory, and counts the deaths of each registration: of rehearsals, and of processes that loaded
it.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import structlog
import torch

from sagittal.core.models import ModelEntry
from sagittal.models.loading import choose_device, rehearse
from sagittal.process.parent import die_with_parent
from sagittal.worker.cpu_quota import usable_processors
from sagittal.worker.devices import MIB, resident_bytes, unshared_bytes
from sagittal.worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

_fork = get_context("fork")

#: Exit status of a completed rehearsal; no library uses it, because a model's code may end the process.
SURVIVED = 86


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A requested rehearsal."""

    registration: str
    """Key of model, version and the requests that reset its count: a changed registration, and LoadModel."""
    entry: Mapping[str, Any]
    from_file: bool
    batch_size: int
    thorough: bool
    """Whether to run all stages of loading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result of a rehearsal."""

    registration: str
    cause: str
    """Cause of its death; empty if it survived."""
    deaths: int
    """Number of deaths of this registration so far."""


class Rehearsals:
    """The side of the process that loads models. Belongs to one thread."""

    def __init__(self, connection: Connection | None = None, deaths: Mapping[str, int] | None = None) -> None:
        """Without a connection, as in a process without a watching parent, nothing is rehearsed."""
        self._connection = connection
        self._deaths = dict(deaths or {})
        self._survived: set[str] = set()

    def deaths(self, registration: str) -> int:
        """Returns the number of processes that died while loading a registration."""
        return self._deaths.get(registration, 0)

    def needed(self, registration: str, *, known: bool) -> bool:
        """Returns whether a model must be rehearsed: no worker has loaded it yet, or loading it killed a process."""
        if self._connection is None or registration in self._survived:
            return False
        return not known or self.deaths(registration) > 0

    def begin(self, registration: str, entry: ModelEntry, *, from_file: bool, batch_size: int) -> None:
        """Requests a rehearsal."""
        request = Request(
            registration=registration,
            entry=entry.model_dump(mode="json"),
            from_file=from_file,
            batch_size=batch_size,
            thorough=self.deaths(registration) > 0,
        )
        self._send({"rehearse": asdict(request)})

    def verdicts(self) -> Iterator[Verdict]:
        """Yields the verdicts since the last call."""
        while self._connection is not None and self._connection.poll():
            verdict = Verdict(**json.loads(self._connection.recv_bytes()))
            if verdict.cause:
                self._deaths[verdict.registration] = verdict.deaths
            else:
                self._survived.add(verdict.registration)
            yield verdict

    def forget(self, registration: str) -> None:
        """Resets the count of deaths of a registration that was loaded."""
        if self._deaths.pop(registration, 0):
            self._send({"forget": registration})

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._connection is not None:
            self._connection.send_bytes(json.dumps(message).encode())


@dataclass(frozen=True, slots=True, eq=False)
class _Running:
    """A running rehearsal."""

    request: Request
    process: ForkProcess
    began: float


class RehearsalRunner:
    """The parent's side, for the process of one device."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._running: list[_Running] = []
        self._connection: Connection | None = None
        self.deaths: dict[str, int] = {}
        """Deaths by registration. They outlive the process."""

    @property
    def sentinels(self) -> Sequence[Connection | int]:
        """Handles that become readable when there is work for `tend`."""
        connections = [self._connection] if self._connection is not None else []
        return [*connections, *(one.process.sentinel for one in self._running)]

    def open(self) -> Rehearsals:
        """Returns the other side, for a new process."""
        self._connection, theirs = _fork.Pipe()
        return Rehearsals(theirs, self.deaths)

    def close(self) -> None:
        """Ends running rehearsals, because their process has ended."""
        for one in self._running:
            one.process.kill()
            one.process.join()
        self._running.clear()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def count(self, registration: str) -> None:
        """Counts a death of a registration."""
        self.deaths[registration] = self.deaths.get(registration, 0) + 1

    def tend(self, pid: int) -> None:
        """Starts requested rehearsals, and ends those that take too much time, or memory beside the process `pid`."""
        with contextlib.suppress(EOFError, OSError):  # the process dies, which its sentinel reports
            while self._connection is not None and self._connection.poll():
                self._follow(json.loads(self._connection.recv_bytes()))
            for one in list(self._running):
                self._judge(one, pid)

    def _follow(self, message: Mapping[str, Any]) -> None:
        if "forget" in message:
            self.deaths.pop(message["forget"], None)
            return
        request = Request(**message["rehearse"])
        process = _fork.Process(target=_perform, args=(self._settings, request, os.getpid()), daemon=True)
        process.start()
        self._running.append(_Running(request, process, time.monotonic()))

    def _judge(self, one: _Running, pid: int) -> None:
        status = one.process.exitcode
        cause = self._excess(one, pid) if status is None else _cause(status)
        if status is None and not cause:
            return
        one.process.kill()
        one.process.join()
        self._running.remove(one)
        registration = one.request.registration
        if cause:
            self.count(registration)
            log.error("rehearsal-died", registration=registration, cause=cause, deaths=self.deaths[registration])
        verdict = Verdict(registration=registration, cause=cause, deaths=self.deaths.get(registration, 0))
        if self._connection is not None:
            self._connection.send_bytes(json.dumps(asdict(verdict)).encode())

    def _excess(self, one: _Running, pid: int) -> str:
        """Returns why a rehearsal must be killed; empty if it need not be."""
        if time.monotonic() - one.began > self._settings.load_seconds:
            return f"it did not end within {self._settings.load_seconds:g} s (SAGITTAL_LOAD_SECONDS)"
        ceiling, beside = self._settings.memory_ceiling_bytes(), resident_bytes(pid)
        took = unshared_bytes(one.process.pid or 0)
        if took + beside > ceiling:
            return (
                f"it took {took // MIB} MiB of memory beside the worker's {beside // MIB} MiB, with a ceiling of "
                f"{ceiling // MIB} MiB (SAGITTAL_MEMORY_CEILING_MIB)"
            )
        return ""


def _cause(status: int) -> str:
    """Returns the cause of death for an exit status; empty if the process survived."""
    if status == SURVIVED:
        return ""
    return f"it died of {signal.Signals(-status).name}" if status < 0 else f"it ended its process with status {status}"


def _perform(settings: WorkerSettings, request: Request, parent: int) -> None:
    """Runs in the process of a rehearsal. An error is no death: the later load raises and reports it again."""
    die_with_parent(signal.SIGKILL, parent)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(OSError):  # if memory runs out, the kernel kills this process first
        Path("/proc/self/oom_score_adj").write_text("1000")
    torch.set_num_threads(settings.threads or usable_processors())
    access = settings.access()
    with contextlib.suppress(Exception):
        rehearse(
            ModelEntry.model_validate(request.entry),
            choose_device(settings.device),
            batch_size=request.batch_size,
            access=access if request.from_file else access.for_registrations(),
            thorough=request.thorough,
        )
    sys.stderr.flush()
    os._exit(SURVIVED)

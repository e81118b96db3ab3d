"""Fault points: a program that meets its fate kills or stops itself there. They wrap the queue that a program uses."""

import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sagittal.core.jobs import Job, JobState, Lease, NewJob, StoredEvent
from sagittal.queue.protocol import JobQueue, LeaseLost, WorkerQueue

#: Where a worker can meet its fate, in the order of a job's life.
WORKER_POINTS = ("before_lease", "after_lease", "mid_run", "after_checkpoint", "before_ack", "after_ack")

#: Where a service can.
SERVICE_POINTS = ("before_submit", "after_submit", "mid_stream", "before_last", "before_cancel", "after_cancel")


class Journal:
    """What a process did, a JSON object a line; every line is on its way to the disk before the process goes on."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def write(self, what: str, **about: object) -> None:
        """Adds a line."""
        os.write(self._file, json.dumps({"what": what, "at": time.time(), **about}).encode() + b"\n")


@dataclass(slots=True)
class Fate:
    """What happens to a process, and where."""

    point: str
    passes: int
    """The how-manieth pass of the point it is."""
    signal: signal.Signals
    journal: Journal
    _left: int = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._left = self.passes

    @classmethod
    def read(cls, text: str, journal: Journal) -> "Fate":
        """Returns the fate in a text such as `after_lease:2:SIGKILL`; an empty one is none."""
        point, _, rest = text.partition(":")
        passes, _, name = rest.partition(":")
        return cls(point, int(passes or 0), signal.Signals[name or "SIGKILL"], journal)

    def reach(self, point: str) -> None:
        """Passes a point, or not."""
        if point != self.point:
            return
        with self._lock:
            self._left -= 1
            met = self._left == 0
        if met:
            self.journal.write("fault", point=point, signal=self.signal.name)
            os.kill(os.getpid(), self.signal)


class PointedWorkerQueue:
    """A worker's side of the queue, with fault points."""

    def __init__(self, queue: WorkerQueue, fate: Fate) -> None:
        self._queue, self._fate, self._journal = queue, fate, fate.journal
        self._appended: set[tuple[str, int]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    def lease(self, models: Sequence[tuple[str, str]], **options: Any) -> Lease | None:
        self._fate.reach("before_lease")
        lease = self._queue.lease(models, **options)
        if lease is not None:
            self._note("leased", lease, attempt=lease.job.attempt)
            self._fate.reach("after_lease")
        return lease

    def append(self, lease: Lease, events: Sequence[bytes]) -> None:
        key = lease.job.job_id, lease.token
        if key in self._appended:
            self._fate.reach("mid_run")
        self._refusable(lease, lambda: self._queue.append(lease, events))
        self._appended.add(key)

    def checkpoint(self, lease: Lease, state: bytes) -> None:
        self._refusable(lease, lambda: self._queue.checkpoint(lease, state))
        self._fate.reach("after_checkpoint")

    def settle(self, lease: Lease, event: bytes, state: JobState, events: Sequence[bytes] = ()) -> None:
        self._fate.reach("before_ack")
        self._refusable(lease, lambda: self._queue.settle(lease, event, state, events))
        self._fate.reach("after_ack")
        self._note("ended", lease)

    def release(self, lease: Lease) -> None:
        self._refusable(lease, lambda: self._queue.release(lease))
        self._note("ended", lease)

    def _refusable(self, lease: Lease, write: Any) -> None:
        try:
            write()
        except LeaseLost:
            self._note("refused", lease)
            raise

    def _note(self, what: str, lease: Lease, **about: object) -> None:
        self._journal.write(what, job=lease.job.job_id, token=lease.token, **about)


class PointedJobQueue:
    """The service's side of the queue, with fault points."""

    def __init__(self, queue: JobQueue, fate: Fate) -> None:
        self._queue, self._fate = queue, fate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    async def submit(self, job: NewJob, accepted: bytes) -> tuple[Job, bool]:
        self._fate.reach("before_submit")
        answer = await self._queue.submit(job, accepted)
        self._fate.reach("after_submit")
        return answer

    async def cancel(self, job_id: str, reason: str) -> Job:
        self._fate.reach("before_cancel")
        job = await self._queue.cancel(job_id, reason)
        self._fate.reach("after_cancel")
        return job

    async def events(self, job_id: str, after_sequence: int = 0) -> AsyncIterator[StoredEvent]:
        async with aclosing(self._queue.events(job_id, after_sequence)) as events:  # type: ignore[type-var]
            async for event in events:
                self._fate.reach("before_last" if event.terminal else "mid_stream")
                yield event

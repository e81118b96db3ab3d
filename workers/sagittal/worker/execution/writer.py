"""Writes the events of running jobs to the queue, on its own thread, so that a slow Redis never blocks the device."""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from sagittal.core.errors import Overloaded, QueueFailed, Unavailable
from sagittal.core.jobs import JobState, Lease
from sagittal.process.supervision import Supervised, Supervisor
from sagittal.queue.protocol import LeaseLost, WorkerQueue
from sagittal.queue.shards import shard_name
from sagittal.worker.execution.trace import job_log

log = structlog.get_logger(__name__)

#: Maximum number of events of a job that are appended in one call.
BATCH = 64

#: First and longest pause before the next attempt while the queue is unavailable, in seconds.
PAUSE, LONGEST_PAUSE = 0.1, 5.0

#: Consecutive failures of the queue, by a bug or damaged data, after which a job is given up.
FAILURES_IN_A_ROW = 5


@dataclass(slots=True, eq=False)
class Outbox:
    """The events of one lease that are not written yet."""

    lease: Lease
    events: deque[bytes] = field(default_factory=deque)
    ending: tuple[bytes, JobState] | None = None
    """The terminal event with the final state."""
    released: bool = False
    checkpoint: bytes | None = None
    """The newest checkpoint, if it is not written yet."""
    closed: threading.Event = field(default_factory=threading.Event)
    """Set when there is nothing more to write: the job is settled, released, or lost."""
    unsure: int = 0
    """Number of first events that were sent without an answer: they are sent again unchanged, and count once."""
    failures: int = 0
    """Consecutive failures of the queue to write it."""
    lost: bool = False
    full: bool = False
    """Whether the queue accepts only the last event of this job."""

    @property
    def waits(self) -> bool:
        """Whether there is something to write."""
        return bool(self.events or self.ending or self.released or self.checkpoint)


@dataclass(frozen=True, slots=True)
class _Part:
    """The next part of an outbox to write, as of one moment, so that later items cannot overtake earlier ones."""

    events: Sequence[bytes]
    checkpoint: bytes | None = None
    """Follows these events; also None if there are more events before it."""
    ending: tuple[bytes, JobState] | None = None
    """Set if these are the last events: one round trip writes both."""
    released: bool = False


class EventWriter:
    """A thread that writes for all jobs, each job's events in order."""

    def __init__(self, queue: WorkerQueue, supervisor: Supervisor) -> None:
        """Constructs the writer; `start` starts its thread.

        Args:
            queue: Destination of the events.
            supervisor: Restarts the thread if it fails.
        """
        self._queue = queue
        self._supervisor = supervisor
        self._outboxes: dict[tuple[str, int], Outbox] = {}
        self._changed = threading.Condition()
        self._stopped = False
        self._away: set[str] = set()
        """Names of the shards that did not answer the last time."""
        self._writing: Supervised | None = None

    def start(self) -> None:
        """Starts the thread."""
        self._writing = self._supervisor.start_thread("event-writer", self._run, may_end=self._is_finished)

    def open(self, lease: Lease) -> Outbox:
        """Returns the outbox of a new lease."""
        outbox = Outbox(lease)
        with self._changed:
            self._outboxes[lease.job.job_id, lease.token] = outbox
        return outbox

    def put(self, outbox: Outbox, event: bytes) -> None:
        """Adds an event, to be written soon."""
        with self._changed:
            if not outbox.full:
                outbox.events.append(event)
                self._changed.notify()

    def checkpoint(self, outbox: Outbox, state: bytes) -> None:
        """Stores a checkpoint after the events before it are written, in place of a waiting one."""
        with self._changed:
            outbox.checkpoint = state
            self._changed.notify()

    def settle(self, outbox: Outbox, event: bytes, state: JobState) -> None:
        """Ends the job after all its events are written."""
        with self._changed:
            outbox.ending = (event, state)
            self._changed.notify()

    def release(self, outbox: Outbox) -> None:
        """Releases the job to the queue after all its events and its checkpoint are written."""
        with self._changed:
            outbox.released = True
            self._changed.notify()

    def drop(self, outbox: Outbox) -> None:
        """Discards a job whose lease is lost: none of its events may be written."""
        with self._changed:
            outbox.lost = True
            self._close(outbox)

    def stop(self, timeout: float) -> None:
        """Stops after everything is written, or after `timeout` seconds."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._writing is not None and self._writing.thread is not None:
            self._writing.thread.join(timeout)

    def _is_finished(self) -> bool:
        with self._changed:
            return self._stopped and not any(box.waits for box in self._outboxes.values())

    def _run(self) -> None:
        pause = PAUSE
        while (work := self._next()) is not None:
            complete, written = self._write_all(work)
            if not complete:
                threading.Event().wait(pause if self._away and not written else PAUSE)
            pause = min(2 * pause, LONGEST_PAUSE) if self._away and not written else PAUSE

    def _write_all(self, work: Sequence[Outbox]) -> tuple[bool, bool]:
        """Writes outboxes, unless their server is away; returns whether all were written, and whether any was."""
        before, self._away = self._away, set()
        written = 0
        for outbox in work:
            server = shard_name(outbox.lease.job.job_id)
            if server in self._away:
                continue
            try:
                written += self._write(outbox)
            except Unavailable as failure:
                self._away.add(server)
                if server not in before:
                    log.warning("queue-away", error=failure.message, shard=server)
        return written == len(work), written > 0

    def _next(self) -> Sequence[Outbox] | None:
        """Waits for outboxes with something to write; None when stopped and everything is written."""
        with self._changed:
            while True:
                ready = [box for box in self._outboxes.values() if box.waits]
                if ready:
                    return ready
                if self._stopped:
                    return None
                self._changed.wait()

    def _write(self, outbox: Outbox) -> bool:
        """Writes the next parts; returns whether the queue was available. Raises Unavailable."""
        try:
            while self._write_part(outbox, self._part(outbox)):
                pass
            outbox.failures = 0
        except QueueFailed as failed:
            self._note_failure(outbox, failed)
            return False
        except LeaseLost:
            job_log(outbox.lease).warning("lease-lost", token=outbox.lease.token)
            self.drop(outbox)
        except Overloaded as full:
            job_log(outbox.lease).warning("job-log-full", error=full.message)
            with self._changed:
                outbox.full, outbox.unsure = True, 0
                outbox.events.clear()
        return True

    def _note_failure(self, outbox: Outbox, failed: QueueFailed) -> None:
        """Gives up a job for which the queue fails repeatedly: its lease expires, and other jobs are written."""
        outbox.failures += 1
        given_up = outbox.failures >= FAILURES_IN_A_ROW
        doing = "leaving its lease to expire" if given_up else "writing it again"
        job_log(outbox.lease).error("job-not-written", error=failed.message, failures=outbox.failures, doing=doing)
        if given_up:
            self.drop(outbox)

    def _part(self, outbox: Outbox) -> _Part:
        with self._changed:
            count = outbox.unsure or min(BATCH, len(outbox.events))
            events = [outbox.events[index] for index in range(count)]
            if len(outbox.events) > count or outbox.unsure:
                return _Part(events)
            return _Part(events, outbox.checkpoint, outbox.ending, outbox.released)

    def _write_part(self, outbox: Outbox, part: _Part) -> bool:
        """Writes a part; returns whether there may be more."""
        if part.ending is not None:
            event, state = part.ending
            self._queue.settle(outbox.lease, event, state, part.events)
            return self._closed(outbox)
        if part.events:
            outbox.unsure = len(part.events)
            self._queue.append(outbox.lease, part.events)
            self._written(outbox, len(part.events))
        if part.checkpoint is not None:
            self._queue.checkpoint(outbox.lease, part.checkpoint)
            with self._changed:
                if outbox.checkpoint is part.checkpoint:
                    outbox.checkpoint = None
        if part.released:
            self._queue.release(outbox.lease)
            return self._closed(outbox)
        return bool(part.events or part.checkpoint is not None)

    def _written(self, outbox: Outbox, count: int) -> None:
        with self._changed:
            outbox.unsure = 0
            for _ in range(min(count, len(outbox.events))):
                outbox.events.popleft()

    def _closed(self, outbox: Outbox) -> bool:
        with self._changed:
            self._close(outbox)
        return False

    def _close(self, outbox: Outbox) -> None:
        self._outboxes.pop((outbox.lease.job.job_id, outbox.lease.token), None)
        outbox.events.clear()
        outbox.unsure = 0
        outbox.ending, outbox.released, outbox.checkpoint = None, False, None
        outbox.closed.set()

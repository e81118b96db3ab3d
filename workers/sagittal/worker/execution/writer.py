"""Writes the events of running jobs to the queue, on a thread of its own: a slow Redis never holds up the device."""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from sagittal.core.errors import Overloaded, QueueFailed, Unavailable
from sagittal.core.jobs import JobState, Lease
from sagittal.process.supervision import Supervised, Supervisor
from sagittal.queue.protocol import LeaseLost, WorkerQueue
from sagittal.worker.execution.trace import job_log

log = structlog.get_logger(__name__)

#: Most events of a job that are appended in one call.
BATCH = 64

#: First and longest pause before writing again when the queue is away, in seconds.
PAUSE, LONGEST_PAUSE = 0.1, 5.0

#: Failures of the queue in a row, by a bug or damaged data, after which a job is given up.
FAILURES_IN_A_ROW = 5


@dataclass(slots=True, eq=False)
class Outbox:
    """The events of one lease that are still to be written."""

    lease: Lease
    events: deque[bytes] = field(default_factory=deque)
    ending: tuple[bytes, JobState] | None = None
    """The terminal event with the state that it ends in."""
    handed_back: bool = False
    checkpoint: bytes | None = None
    """The newest checkpoint, where it is still to be written."""
    closed: threading.Event = field(default_factory=threading.Event)
    """Set when there is nothing more to write: settled, handed back, or lost."""
    unsure: int = 0
    """Events at the front that were sent without an answer: they are sent again just so, and count once."""
    failures: int = 0
    """Times in a row that the queue failed to write it."""
    lost: bool = False
    full: bool = False
    """Whether the queue takes no more events of this job but its last."""

    @property
    def waits(self) -> bool:
        """Whether there is something to write."""
        return bool(self.events or self.ending or self.handed_back or self.checkpoint)


@dataclass(frozen=True, slots=True)
class _Part:
    """What of an outbox is written next, as of one moment: nothing that comes later may overtake what came before."""

    events: Sequence[bytes]
    checkpoint: bytes | None = None
    """Of after these events; None also where there are more events before it."""
    ending: tuple[bytes, JobState] | None = None
    """Set where these are the last events: one round trip writes both."""
    handed_back: bool = False


class EventWriter:
    """One thread that writes for all jobs, each job's events in order."""

    def __init__(self, queue: WorkerQueue, supervisor: Supervisor) -> None:
        """Starts nothing yet; see `start`.

        Args:
            queue: Where the events go.
            supervisor: Starts the thread again if it fails.
        """
        self._queue = queue
        self._supervisor = supervisor
        self._outboxes: dict[tuple[str, int], Outbox] = {}
        self._changed = threading.Condition()
        self._stopped = False
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
        """Adds an event, which is written soon."""
        with self._changed:
            if not outbox.full:
                outbox.events.append(event)
                self._changed.notify()

    def checkpoint(self, outbox: Outbox, state: bytes) -> None:
        """Stores a checkpoint once the events before it are written, in place of one that waits."""
        with self._changed:
            outbox.checkpoint = state
            self._changed.notify()

    def settle(self, outbox: Outbox, event: bytes, state: JobState) -> None:
        """Ends the job once all its events are written."""
        with self._changed:
            outbox.ending = (event, state)
            self._changed.notify()

    def hand_back(self, outbox: Outbox) -> None:
        """Gives the job back to the queue once all its events and its checkpoint are written."""
        with self._changed:
            outbox.handed_back = True
            self._changed.notify()

    def drop(self, outbox: Outbox) -> None:
        """Forgets a job whose lease is lost: nothing of it may be written."""
        with self._changed:
            outbox.lost = True
            self._close(outbox)

    def stop(self, timeout: float) -> None:
        """Stops once everything is written, or after `timeout` seconds."""
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
            try:
                failed = [outbox for outbox in work if not self._write(outbox)]
                if failed:
                    threading.Event().wait(PAUSE)
                pause = PAUSE
            except Unavailable as away:
                log.warning("queue-away", error=away.message, pause_seconds=pause)
                threading.Event().wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _next(self) -> Sequence[Outbox] | None:
        """Waits for outboxes with something to write; None when stopped and all is written."""
        with self._changed:
            while True:
                ready = [box for box in self._outboxes.values() if box.waits]
                if ready:
                    return ready
                if self._stopped:
                    return None
                self._changed.wait()

    def _write(self, outbox: Outbox) -> bool:
        """Writes what waits; returns whether the queue could. Raises Unavailable."""
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
        """Gives a job up that the queue fails for again and again: its lease expires, and neighbours are written."""
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
            return _Part(events, outbox.checkpoint, outbox.ending, outbox.handed_back)

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
        if part.handed_back:
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
        outbox.ending, outbox.handed_back, outbox.checkpoint = None, False, None
        outbox.closed.set()

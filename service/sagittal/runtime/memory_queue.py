"""The queue in one process, for tests and for trying things: the same rules, and nothing outlives the process."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from sagittal.core.costs import Cost
from sagittal.core.errors import UnknownJob
from sagittal.core.jobs import Backlog, Cancellation, Job, JobKind, JobState, Lease, NewJob, StoredEvent, StoredRequest
from sagittal.runtime.job_events import classify, expired_events
from sagittal.runtime.memory_store import MemoryStore
from sagittal.runtime.settings import QueueSettings

#: Events handed over at once.
EVENTS_AT_ONCE = 16


class MemoryJobQueue:
    """A `JobQueue` over a store in this process."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def submit(self, job: NewJob, accepted: bytes) -> tuple[Job, bool]:
        """Accepts a job, or returns the one that the `request_id` belongs to."""
        return self._store.submit(job, accepted)

    async def attach(self, job_id: str, name: str, part: bytes) -> None:
        """Stores a large part of a job that will be submitted."""
        self._store.attach(job_id, name, part)

    async def get(self, job_id: str) -> Job:
        """Returns a job."""
        self._store.sweep()
        return self._store.find(job_id).view()

    async def events(self, job_id: str, after_sequence: int = 0) -> AsyncIterator[StoredEvent]:
        """Yields the events after a sequence number as they come."""
        loop, news, sequence = asyncio.get_running_loop(), asyncio.Event(), after_sequence

        def wake(grown: str) -> None:
            if grown == job_id:
                with contextlib.suppress(RuntimeError):  # the loop has closed: nobody watches any more
                    loop.call_soon_threadsafe(news.set)

        begun, stop = False, self._store.listen(wake)
        try:
            while True:
                news.clear()
                try:
                    record = self._store.find(job_id)
                except UnknownJob as error:
                    raise (expired_events(job_id, sequence) if begun else error) from error
                begun = True
                batch = record.events(sequence, sequence + EVENTS_AT_ONCE)
                for event in batch:
                    yield event
                    sequence = event.sequence
                if not batch:
                    if record.state is not None and sequence >= len(record.log):
                        return
                    with contextlib.suppress(TimeoutError):
                        # not wait_for, which before Python 3.12 may swallow a cancellation
                        async with asyncio.timeout(self._store.settings.sweep_seconds):
                            await news.wait()
                    self._store.sweep()
        finally:
            stop()

    async def stored_events(self, job_id: str) -> Sequence[StoredEvent]:
        """Returns the events so far."""
        return self._store.find(job_id).events(0, None)

    async def request_of(self, job_id: str) -> StoredRequest:
        """Returns what a job was made of."""
        self._store.sweep()
        return self._store.request_of(job_id)

    async def cancel(self, job_id: str, reason: str) -> Job:
        """Cancels a job; one that shares its run leaves it to the others."""
        return self._store.cancel(job_id, reason)

    async def delete(self, job_id: str) -> None:
        """Deletes an ended job."""
        self._store.delete(job_id)

    async def list(
        self,
        *,
        limit: int,
        page_token: str,
        tenant: str = "",
        kind: JobKind | None = None,
        model: str = "",
        states: Sequence[JobState] = (),
        reason: str = "",
    ) -> tuple[Sequence[Job], str]:
        """Returns a page of jobs, newest first."""

        def wanted(job: Job) -> bool:
            asked = ((tenant, job.tenant), (kind, job.kind), (model, job.model), (reason, job.reason))
            return all(not value or value == found for value, found in asked) and (not states or job.state in states)

        return self._store.page(wanted, limit, page_token)

    async def depth(self) -> Mapping[tuple[str, str], int]:
        """Returns queued and running runs by (model, lane)."""
        return {where: backlog.queued + backlog.running for where, backlog in self._store.backlog().items()}

    async def backlog(self) -> Mapping[tuple[str, str], Backlog]:
        """Returns the work by (model, lane)."""
        return self._store.backlog()

    async def costs(self, model: str, version: str, method: str) -> Mapping[str, Cost]:
        """Returns what settings of a method cost on a model."""
        return self._store.ledger.costs(model, version, method)

    async def sweep(self) -> int:
        """Ends what is overdue, requeues what was lost, drops what retention has passed."""
        return self._store.sweep()

    async def ping(self) -> None:
        """Returns at once: the store is here."""

    async def close(self) -> None:
        """Does nothing: the store goes with the process."""


class MemoryWorkerQueue:
    """A `WorkerQueue` over a store in this process."""

    def __init__(self, store: MemoryStore, worker: str) -> None:
        self._store = store
        self._worker = worker

    def lease(self, models: Sequence[tuple[str, str]], *, block_seconds: float, busy: bool = False) -> Lease | None:
        """Takes the next run of these models."""
        until = time.monotonic() + block_seconds
        with self._store.changed:
            while True:
                lease = self._store.take(models, self._worker)
                left = until - time.monotonic()
                if lease is not None or left <= 0:
                    return lease
                self._store.changed.wait(min(left, self._store.settings.sweep_seconds))

    def heartbeat(self, leases: Sequence[Lease]) -> tuple[Sequence[Lease], Sequence[Cancellation]]:
        """Keeps leases alive."""
        answers = [(lease, self._store.keep(lease)) for lease in leases]
        lost = [lease for lease, answer in answers if answer is False]
        return lost, [answer for _, answer in answers if isinstance(answer, Cancellation)]

    def listen(self, *, block_seconds: float) -> bool:
        """Waits for word that a run of this worker may have to end."""
        with self._store.changed:
            return self._store.changed.wait_for(lambda: self._store.called(self._worker), block_seconds)

    def attachment(self, job_id: str, name: str) -> bytes | None:
        """Returns a part that was attached to a job; None where it is no longer kept."""
        return self._store.attachment(job_id, name)

    def append(self, lease: Lease, events: Sequence[bytes]) -> None:
        """Appends events."""
        if events:
            self._store.write(lease, [(classify(event), event) for event in events])

    def checkpoint(self, lease: Lease, state: bytes) -> None:
        """Stores state from which another attempt can go on."""
        self._store.checkpoint(lease, state)

    def settle(self, lease: Lease, event: bytes, state: JobState, events: Sequence[bytes] = ()) -> None:
        """Appends the terminal event and ends the job."""
        if not state.ended:
            raise ValueError(f"a job is settled as completed, failed or cancelled, not {state.value}")
        self._store.settle(lease, event, state, [(classify(each), each) for each in events])

    def release(self, lease: Lease) -> None:
        """Hands a job back unfinished."""
        self._store.release(lease)

    def ping(self) -> None:
        """Returns at once: the store is here."""

    def close(self) -> None:
        """Does nothing: the store goes with the process."""


class MemoryQueue:
    """Both sides of one queue in this process: `jobs` for the service, `worker(name)` for each worker."""

    def __init__(self, settings: QueueSettings | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self._store = MemoryStore(settings or QueueSettings(), clock)
        self.jobs = MemoryJobQueue(self._store)

    def worker(self, name: str) -> MemoryWorkerQueue:
        """Returns the side of a worker of that name."""
        return MemoryWorkerQueue(self._store, name)

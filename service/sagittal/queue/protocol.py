"""The queue's guarantees, as two protocols: one for the service (asyncio) and one for workers (threads).

Every write to a job checks the lease's fencing token in the same atomic step. So a worker that lost its lease can
neither append an event nor settle the job. `docs/guarantees.md` lists the guarantees, and the contract tests check
every implementation against them.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from sagittal.core.errors import Overloaded
from sagittal.core.jobs import (
    EVERY_JOB,
    Backlog,
    Cancellation,
    Cost,
    EventPage,
    Job,
    JobFilter,
    JobState,
    Lease,
    NewJob,
    StoredEvent,
    StoredRequest,
)
from sagittal.queue.batches import Batches
from sagittal.queue.settings import QueueSettings
from sagittal.queue.watch import JobChanges


def never() -> bool:
    """Returns False."""
    return False


class LeaseLost(Exception):
    """The lease is not the job's newest. Nothing was written, and the worker must drop the job."""


class JobQueue(Protocol):
    """The service's side. Every method raises `core.errors.Unavailable` if the store does not answer in time."""

    batches: Batches
    """Named sets of items, whose jobs this queue executes."""

    def place(self, job: NewJob) -> NewJob:
        """Returns the job with an identifier that says where it will be stored; call it once, before `submit`."""
        ...

    async def submit(self, job: NewJob, accepted: bytes) -> tuple[Job, bool]:
        """Accepts a job atomically: stores it, appends `accepted` as event 1, and queues it.

        The queue adds the job's position to `accepted` if other executions are ahead of it.

        Returns the job, and whether it is new. A `request_id` of the same tenant with the same content returns the
        existing job. If the `content_key` has an answer or a running execution, the job shares it as its `cache` policy
        allows, and may already be completed when it is returned. A repeated call after a lost answer is safe.

        Raises:
            AlreadyExists: the `request_id` belongs to a job with different content.
            Overloaded: an admission limit is exceeded.
            ItemKnown: the item of the batch was added before.
            BatchPaused: the batch takes no items until it is resumed.
            NotFound: the batch does not exist.
            FailedPrecondition: the batch is cancelled.
        """
        ...

    async def attach(self, job_id: str, name: str, part: bytes, *, tenant: str) -> None:
        """Stores a large part of a job before the job is submitted under this identifier.

        The part is deleted when the job ends, or after `attachment_seconds` if no job is submitted. A repeated call
        after a lost answer is safe.

        Raises:
            Overloaded: it does not fit (`upload_share` and `tenant_share` of `max_stored_bytes`).
        """
        ...

    async def get(self, job_id: str) -> Job:
        """Returns a job. Raises UnknownJob."""
        ...

    def events(self, job_id: str, after_sequence: int = 0) -> AsyncIterator[StoredEvent]:
        """Yields the events after a sequence number as they arrive, and ends after the terminal event.

        It reads at the caller's pace and buffers only a few events. Raises UnknownJob, or EventsExpired if the job is
        deleted during the iteration.

        A payload is the event that the worker appended, with the job's own identity if the execution is shared. Its
        `sequence` field is not set; the sequence number is that of the `StoredEvent`.
        """
        ...

    async def page(
        self, job_id: str, after_sequence: int = 0, *, limit: int, max_bytes: int, lasting: bool = False
    ) -> EventPage:
        """Returns the events after a sequence number without waiting. Raises UnknownJob.

        Args:
            job_id: The job.
            after_sequence: Sequence number after which to continue; 0 for the beginning.
            limit: Largest number of events to read.
            max_bytes: Largest size of the page in bytes; a single event may exceed it.
            lasting: Whether to omit progress and partial masks if the job has ended. A page may then be empty although
                more events follow.
        """
        ...

    async def request_of(self, job_id: str) -> StoredRequest:
        """Returns a job's request and images; for a job answered from the cache, those of its source.

        Raises:
            UnknownJob: the job does not exist.
            FailedPrecondition: request and images are deleted (`image_retention_seconds`, `max_stored_bytes`).
        """
        ...

    async def cancel(self, job_id: str, reason: str) -> Job:
        """Cancels a job: a queued one ends now; a running one is marked for its worker. Raises UnknownJob."""
        ...

    async def delete(self, job_id: str) -> None:
        """Deletes an ended job. Raises UnknownJob, or FailedPrecondition while the job is queued or running."""
        ...

    async def list(self, wanted: JobFilter = EVERY_JOB, *, limit: int, page_token: str) -> tuple[Sequence[Job], str]:
        """Returns a page of the matching jobs, newest first, and the token of the next page (empty at the end).

        A page may have fewer than `limit` jobs and still a next page, because one call reads a bounded number of jobs.

        Args:
            wanted: Conditions for the jobs.
            limit: Largest number of jobs on the page.
            page_token: Token of the page; empty for the first.
        """
        ...

    async def count(self, wanted: JobFilter, *, page_token: str) -> tuple[Mapping[JobState, int], str]:
        """Returns the numbers of matching jobs by state, among a bounded number, and the token for counting further."""
        ...

    def changes(self, tenant: str) -> AbstractContextManager[JobChanges]:
        """Gives the changes of a tenant's explanations from now on: added, state changed, or gone."""
        ...

    async def backlog(self) -> Mapping[tuple[str, str], Backlog]:
        """Returns the queued and running executions by (model, lane), with the age of the oldest queued one.

        Jobs that share an execution count once.
        """
        ...

    async def stored_bytes(self) -> int:
        """Returns the bytes of requests, images, events and uploads, which `max_stored_bytes` limits."""
        ...

    async def costs(self, model: str, version: str, method: str) -> Mapping[str, Cost]:
        """Returns the cost of each setting of a method on a model, learned from completed jobs."""
        ...

    async def sweep(self) -> int:
        """Ends overdue jobs, requeues lost executions and deletes expired jobs; returns the number of ended jobs.

        Implementations sweep every `sweep_seconds`; call this to sweep immediately.
        """
        ...

    async def ping(self) -> None:
        """Returns when the store answers."""
        ...

    async def close(self) -> None:
        """Closes all connections."""
        ...


class WorkerQueue(Protocol):
    """A worker's side: blocking calls, safe to use from several threads.

    Every method raises `core.errors.Unavailable` if the store does not answer in time.
    """

    def lease(
        self,
        models: Sequence[tuple[str, str]],
        *,
        block_seconds: float,
        busy: bool = False,
        stop: Callable[[], bool] = never,
    ) -> Lease | None:
        """Leases the next execution for these (model, version) pairs, interactive lane first, or one that was lost.

        Returns None if none arrives within `block_seconds`. Waiting costs the store almost nothing.

        Args:
            models: The models whose jobs may be leased.
            block_seconds: Longest time to wait for a job, in seconds.
            busy: Whether the worker is executing anything. An execution whose worker died is a suspect, and only idle
                workers get it. If a suspect has waited for `lease_seconds`, one busy worker at a time gets no other
                execution until it is idle.
            stop: Is called several times a second during the wait, and ends it by returning True.
        """
        ...

    def heartbeat(self, leases: Sequence[Lease]) -> tuple[Sequence[Lease], Sequence[Cancellation]]:
        """Renews leases. Returns the lost ones, and the cancellations of others."""
        ...

    def listen(self, *, block_seconds: float) -> bool:
        """Waits for a notification: an attempt of this worker may have to end, or a model may have changed.

        The next heartbeat and the registry say which. Returns whether there was one. A notification may be lost with
        the connection or arrive without a reason, so a worker also reads both at intervals. Call it from one thread
        only.
        """
        ...

    def attachment(self, job_id: str, name: str) -> bytes | None:
        """Returns a part that was attached to a job; None if it is deleted."""
        ...

    def append(self, lease: Lease, events: Sequence[bytes]) -> None:
        """Appends events: serialized, without sequence numbers, which the queue assigns.

        Raises LeaseLost, or Overloaded if the job's log would exceed `max_log_bytes`. After Unavailable, append the
        same events again: they count once.
        """
        ...

    def checkpoint(self, lease: Lease, state: bytes) -> None:
        """Stores state from which a later attempt can continue. Raises LeaseLost."""
        ...

    def settle(self, lease: Lease, event: bytes, state: JobState, events: Sequence[bytes] = ()) -> None:
        """Appends `events` and then the terminal `event`, and ends the job, in one atomic step.

        Raises LeaseLost, or Overloaded as `append` does; then settle it without `events`. After Unavailable, settle it
        again with the same arguments.
        """
        ...

    def release(self, lease: Lease) -> None:
        """Returns an unfinished job to the queue; the attempt does not count. Raises LeaseLost."""
        ...

    def ping(self) -> None:
        """Returns when the store answers."""
        ...

    def close(self) -> None:
        """Closes all connections."""
        ...


#: Shortest and longest retry delay that is requested, in seconds; computed delays are clamped to this range.
SHORTEST_WAIT, LONGEST_WAIT = 0.5, 300.0

#: Message for each exceeded limit, with the setting that defines it.
FULL = {
    "lane": "the lane has {bound:,} queued jobs, its limit (max_queued)",
    "tenant": "you have {bound:,} queued jobs in this lane, your limit (max_queued_per_tenant)",
    "evaluations": "with this job the lane's queued jobs would need more than {bound:,} model evaluations, its limit "
    "(max_queued_evaluations)",
    "tenant_evaluations": "with this job your queued jobs in this lane would need more than {bound:,} model "
    "evaluations, your limit (max_queued_evaluations_per_tenant)",
    "absent_lane": "no worker serves the model now, and {bound:,} jobs for it are queued in this lane, the limit "
    "(max_queued times absent_share)",
    "absent_tenant": "no worker serves the model now, and {bound:,} of your jobs for it are queued in this lane, your "
    "limit (max_queued_per_tenant times absent_share)",
    "absent_evaluations": "no worker serves the model now, and with this job the queued jobs for it in this lane would "
    "need more than {bound:,} model evaluations, the limit (max_queued_evaluations times absent_share)",
    "absent_tenant_evaluations": "no worker serves the model now, and with this job your queued jobs for it in this "
    "lane would need more than {bound:,} model evaluations, your limit (max_queued_evaluations_per_tenant times "
    "absent_share)",
    "bytes": "the queue stores {bound:,} bytes of requests, images and events, its limit (max_stored_bytes without "
    "upload_share)",
    "tenant_bytes": "your jobs store {bound:,} bytes of requests, images and events, your limit (tenant_share of "
    "max_stored_bytes)",
    "uploads": "the queue stores {bound:,} bytes of uploads, its limit (upload_share of max_stored_bytes)",
    "tenant_uploads": "you store {bound:,} bytes of uploads, your limit (tenant_share of upload_share of "
    "max_stored_bytes); uploads are deleted when their job ends, or after attachment_seconds without a job",
}


def overloaded(what: str, bound: int, seconds: float | None, settings: QueueSettings) -> Overloaded:
    """Returns the error for an exceeded limit; `seconds` is the time until there is room, None if unknown."""
    wait = settings.overload_retry_after if seconds is None else min(max(seconds, SHORTEST_WAIT), LONGEST_WAIT)
    return Overloaded(f"{FULL[what].format(bound=bound)}: try again in {wait:.3g} s", retry_after=wait)

"""What the queue promises, as two protocols: one for the service (asyncio), one for workers (threads).

Every write to a job checks the lease's fencing token in the same atomic step, so a worker that lost its lease can
neither append an event nor settle the job. `docs/guarantees.md` states the promises; the contract tests hold every
implementation to them.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from sagittal.core.errors import Overloaded
from sagittal.core.jobs import (
    Backlog,
    Cancellation,
    Cost,
    EventPage,
    Job,
    JobKind,
    JobState,
    Lease,
    NewJob,
    StoredEvent,
    StoredRequest,
)
from sagittal.queue.settings import QueueSettings


class LeaseLost(Exception):
    """The lease is no longer the job's newest: nothing was written, and the worker must drop the job."""


class JobQueue(Protocol):
    """The service's side. Every method raises `core.errors.Unavailable` when the store cannot be reached in time."""

    async def submit(self, job: NewJob, accepted: bytes) -> tuple[Job, bool]:
        """Accepts a job: stores it, appends `accepted` as event 1, and queues it, all or nothing.

        The queue adds the job's position to `accepted` where it is not the next.

        Returns the job and whether it is new: the same tenant's `request_id` with the same content gives the job that
        exists. A job whose `content_key` was answered before, or is being answered, shares that answer as its `cache`
        policy says; it may come back ended. Safe to call again after a lost answer.

        Raises:
            AlreadyExists: the `request_id` belongs to a job with another content.
            Overloaded: an admission bound is reached.
        """
        ...

    async def attach(self, job_id: str, name: str, part: bytes, *, tenant: str) -> None:
        """Stores a large part of a job that will be submitted under this identifier, apart from its request.

        Parts go when the job has ended, or by themselves if no job comes within `attachment_seconds`. Safe to call
        again after a lost answer.

        Raises:
            Overloaded: there is no room for it (`upload_share` and `tenant_share` of `max_stored_bytes`).
        """
        ...

    async def get(self, job_id: str) -> Job:
        """Returns a job. Raises UnknownJob."""
        ...

    def events(self, job_id: str, after_sequence: int = 0) -> AsyncIterator[StoredEvent]:
        """Yields the events after a sequence number as they come, and ends after the terminal one.

        It reads at the reader's pace, a few events ahead, and holds no more. Raises UnknownJob, and EventsExpired where
        the job goes while it is read.

        A payload is what the worker appended, with the job's own identity where the run is shared. Its `sequence` is
        not set: it is that of the `StoredEvent`.
        """
        ...

    async def page(
        self, job_id: str, after_sequence: int = 0, *, limit: int, max_bytes: int, lasting: bool = False
    ) -> EventPage:
        """Returns the events after a sequence number, without waiting. Raises UnknownJob.

        Args:
            job_id: The job.
            after_sequence: Where to go on; 0 for the beginning.
            limit: Most events to look at.
            max_bytes: Most bytes of the page, if it has more than one event.
            lasting: Leaves progress and partial masks out, if the job has ended. A page may then be empty and the log
                go on.
        """
        ...

    async def request_of(self, job_id: str) -> StoredRequest:
        """Returns what a job was made of; one that was answered from the cache has that of its source.

        Raises:
            UnknownJob: there is no such job.
            FailedPrecondition: request and images are no longer kept (`image_retention_seconds`, `max_stored_bytes`).
        """
        ...

    async def cancel(self, job_id: str, reason: str) -> Job:
        """Cancels a job: a queued one ends now, a running one is marked for its worker. Raises UnknownJob."""
        ...

    async def delete(self, job_id: str) -> None:
        """Deletes an ended job. Raises UnknownJob, FailedPrecondition while it runs."""
        ...

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
        """Returns a page of jobs, newest first, and the token of the next page (empty at the end).

        A page may be short of `limit` with a token to go on: one call looks at a bounded number of jobs.

        Args:
            limit: Most jobs on the page.
            page_token: Where to go on; empty for the beginning.
            tenant: Only jobs of this tenant; empty for all.
            kind: Only jobs of this kind; None for all.
            model: Only jobs of this model; empty for all.
            states: Only jobs in one of these states; empty for all.
            reason: Only jobs that failed for this reason; empty for all.
        """
        ...

    async def depth(self) -> Mapping[tuple[str, str], int]:
        """Returns the number of queued and running runs by (model, lane); jobs that share a run count once."""
        ...

    async def backlog(self) -> Mapping[tuple[str, str], Backlog]:
        """Returns what `depth` does in detail, with the age of the oldest run that waits."""
        ...

    async def costs(self, model: str, version: str, method: str) -> Mapping[str, Cost]:
        """Returns what settings of a method cost on a model, learned from jobs that were completed whole."""
        ...

    async def sweep(self) -> int:
        """Ends what is overdue, requeues what was lost, drops what retention has passed; returns the jobs ended.

        Implementations do this by themselves every `sweep_seconds`; it is here for those who cannot wait.
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

    Every method raises `core.errors.Unavailable` when the store cannot be reached in time.
    """

    def lease(self, models: Sequence[tuple[str, str]], *, block_seconds: float, busy: bool = False) -> Lease | None:
        """Takes the next job of these (model, version) pairs, interactive lane first, or reclaims one that was lost.

        Returns None when none came within `block_seconds`.

        Args:
            models: The models whose jobs may be taken.
            block_seconds: Longest time to wait for a job, in seconds.
            busy: Whether the worker runs anything. A job whose worker died is a suspect, and goes to one that does not.
                Where a suspect has waited for `lease_seconds`, one busy worker at a time gets nothing else until it is
                idle.
        """
        ...

    def heartbeat(self, leases: Sequence[Lease]) -> tuple[Sequence[Lease], Sequence[Cancellation]]:
        """Keeps leases alive. Returns those that are lost, and those to be cancelled."""
        ...

    def listen(self, *, block_seconds: float) -> bool:
        """Waits for word that a run of this worker may have to end, which the next heartbeat then names.

        Returns whether there was any. Word may be lost with a connection, and may come without a cause: a worker beats
        in its own time as well. Belongs to one thread.
        """
        ...

    def attachment(self, job_id: str, name: str) -> bytes | None:
        """Returns a part that was attached to a job; None where it is no longer kept."""
        ...

    def append(self, lease: Lease, events: Sequence[bytes]) -> None:
        """Appends events (serialized, without sequence numbers: the queue gives them).

        Raises LeaseLost, and Overloaded where the job has written all that it may (`max_log_bytes`). After Unavailable
        the same events may be appended again: they count once.
        """
        ...

    def checkpoint(self, lease: Lease, state: bytes) -> None:
        """Stores state from which another attempt can go on. Raises LeaseLost."""
        ...

    def settle(self, lease: Lease, event: bytes, state: JobState, events: Sequence[bytes] = ()) -> None:
        """Appends `events`, then the terminal `event`, and ends the job, all or nothing.

        Raises LeaseLost, and Overloaded as `append` does: then it is settled without `events`. After Unavailable it may
        be settled again in the same way.
        """
        ...

    def release(self, lease: Lease) -> None:
        """Hands a job back unfinished, to be leased again at once; the attempt does not count. Raises LeaseLost."""
        ...

    def ping(self) -> None:
        """Returns when the store answers."""
        ...

    def close(self) -> None:
        """Closes all connections."""
        ...


#: Shortest and longest wait that is asked for, in seconds: a computed one may be of no time, or of a day.
SHORTEST_WAIT, LONGEST_WAIT = 0.5, 300.0

#: What is full, with the setting that bounds it.
FULL = {
    "lane": "the lane holds {bound:,} waiting jobs, the most it may (max_queued)",
    "tenant": "you have {bound:,} jobs waiting in this lane, the most you may (max_queued_per_tenant)",
    "evaluations": "with this job the lane's waiting jobs would need more than {bound:,} model evaluations, the most "
    "they may (max_queued_evaluations)",
    "tenant_evaluations": "with this job your waiting jobs in this lane would need more than {bound:,} model "
    "evaluations, the most they may (max_queued_evaluations_per_tenant)",
    "absent_lane": "no worker serves the model now, and {bound:,} jobs wait for it in this lane, the most that may "
    "(max_queued times absent_share)",
    "absent_tenant": "no worker serves the model now, and {bound:,} jobs of yours wait for it in this lane, the most "
    "that may (max_queued_per_tenant times absent_share)",
    "absent_evaluations": "no worker serves the model now, and with this job those that wait for it in this lane would "
    "need more than {bound:,} model evaluations, the most they may (max_queued_evaluations times absent_share)",
    "absent_tenant_evaluations": "no worker serves the model now, and with this job yours that wait for it in this "
    "lane would need more than {bound:,} model evaluations, the most they may (max_queued_evaluations_per_tenant "
    "times absent_share)",
    "bytes": "the queue stores {bound:,} bytes of requests, images and events, the most it may (max_stored_bytes "
    "without upload_share)",
    "tenant_bytes": "your jobs store {bound:,} bytes of requests, images and events, the most they may (tenant_share "
    "of max_stored_bytes)",
    "uploads": "the queue stores {bound:,} bytes of uploads, the most it may (upload_share of max_stored_bytes)",
    "tenant_uploads": "you store {bound:,} bytes of uploads, the most you may (tenant_share of upload_share of "
    "max_stored_bytes); uploads go when their job has ended, or if no job comes",
}


def overloaded(what: str, bound: int, seconds: float | None, settings: QueueSettings) -> Overloaded:
    """Returns the error of a bound; `seconds` is when there will be room, None where it is not known."""
    wait = settings.overload_retry_after if seconds is None else min(max(seconds, SHORTEST_WAIT), LONGEST_WAIT)
    return Overloaded(f"{FULL[what].format(bound=bound)}: try again in {wait:.3g} s", retry_after=wait)

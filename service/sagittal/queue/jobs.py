"""The service's side of the queue on Redis."""

import asyncio
import contextlib
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import structlog

from sagittal.core.errors import (
    AlreadyExists,
    ArgumentRefused,
    FailedPrecondition,
    QueueFailed,
    SagittalError,
    UnknownJob,
)
from sagittal.core.jobs import (
    EVERY_JOB,
    Backlog,
    Cost,
    EventPage,
    Job,
    JobFilter,
    JobState,
    NewJob,
    StoredEvent,
    StoredRequest,
    encode_labels,
)
from sagittal.process.supervision import Supervised, Supervisor
from sagittal.queue.batches import Batches, ItemKnown, parse_item, refused_item
from sagittal.queue.connection import AsyncRunner, close_async, connect_async
from sagittal.queue.events import Ending, cancelled_event, expired_events, forgotten_request
from sagittal.queue.metrics import UNOBSERVED, QueueObserver
from sagittal.queue.protocol import overloaded
from sagittal.queue.scripts import (
    load_script,
    parse_costs,
    parse_events,
    parse_job,
    parse_request,
    root_key,
    submit_arguments,
    upload_room,
)
from sagittal.queue.settings import MIB, QueueSettings
from sagittal.queue.sweep import (
    AUDIT_SECONDS,
    STANDBY_INTERVALS,
    SWEEPS_IN_A_ROW,
    end_arguments,
    parse_sweep,
    sweep_arguments,
)
from sagittal.queue.watch import LOOK_SECONDS, JobChanges, LogNotifications

log = structlog.get_logger(__name__)

#: Events and bytes per read, which bound the memory of a stream; a single event may exceed the bytes.
EVENTS_AT_ONCE, BYTES_AT_ONCE = 16, MIB
#: Jobs that one call of the script `list` reads: nothing else runs in Redis, and then in the event loop, meanwhile.
JOBS_AT_ONCE = 100
#: Calls of `list` for one page; a page that needs more has fewer jobs than its limit.
MOST_LOOKS = 100

#: Verdicts of `submit` for jobs that need no execution of their own.
SHARED: Mapping[bytes, Literal["cache", "flight"]] = {b"cached": "cache", b"joined": "flight"}


class RedisJobQueue:
    """A `JobQueue` on Redis 7 or Valkey 8 and later."""

    def __init__(
        self,
        settings: QueueSettings,
        observer: QueueObserver = UNOBSERVED,
        supervisor: Supervisor | None = None,
        *,
        shard: int = 0,
    ) -> None:
        """Constructs the queue; it connects on first use.

        Args:
            settings: Its settings, with one server.
            observer: Is notified of what the queue observes.
            supervisor: Starts the background tasks.
            shard: Number of this queue among several, from 0; the names of the tasks of others end with it.
        """
        self._suffix = f"-{shard + 1}" if shard else ""
        self._supervisor = supervisor or Supervisor()
        self._settings = settings
        self._observer = observer
        self._root = root_key(settings)
        self._redis = AsyncRunner(connect_async(settings), settings, self._root, observer)
        client = connect_async(settings.model_copy(update={"max_connections": 1}))
        self._notifications = LogNotifications(client, self._root, self._supervisor, self._suffix)
        self.batches = Batches(self._script, settings)
        self._next_audit = 0.0
        self._candidate = secrets.token_hex(8)
        self._sweeper: Supervised | None = None

    def place(self, job: NewJob) -> NewJob:
        """Returns the job as it is: there is one place."""
        return job

    async def submit(self, job: NewJob, accepted: bytes) -> tuple[Job, bool]:
        """Accepts a job, or returns the one to which the `request_id` belongs."""
        answer = await self._script("submit", *submit_arguments(job, accepted, self._settings))
        verdict, *rest = answer
        if verdict == b"reused":
            raise AlreadyExists(
                f"request_id {job.request_id!r} belongs to job {rest[0].decode()}, which has different content: "
                "choose a new request_id, or send the same request",
                field="spec.request_id",
            )
        if verdict == b"full":
            what, bound, seconds = (part.decode() for part in rest)
            raise overloaded(what, int(bound), float(seconds) if seconds else None, self._settings)
        if verdict == b"item":
            raise ItemKnown(parse_item(job.item, *rest))
        if verdict == b"batch":
            raise refused_item(rest[0], job.batch, self._settings)
        if verdict in SHARED:
            self._observer.shared(job.model, SHARED[verdict])
        return parse_job(rest[0]), verdict != b"same"

    async def attach(self, job_id: str, name: str, part: bytes, *, tenant: str) -> None:
        """Stores a large part of a job that is submitted later."""
        verdict, *rest = await self._script("attach", job_id, name, part, tenant, *upload_room(self._settings))
        if verdict == b"full":
            what, bound = (value.decode() for value in rest)
            raise overloaded(what, int(bound), None, self._settings)

    async def get(self, job_id: str) -> Job:
        """Returns a job."""
        return _found(await self._script("get", job_id), job_id)

    async def events(self, job_id: str, after_sequence: int = 0) -> AsyncIterator[StoredEvent]:
        """Yields the events after a sequence number as they arrive, at the caller's pace."""
        with self._notifications.watch(job_id) as grown:
            await self._notifications.subscribed(job_id, grown)
            sequence, begun = after_sequence, False
            while True:
                grown.clear()
                try:
                    page = await self.page(job_id, sequence, limit=EVENTS_AT_ONCE, max_bytes=BYTES_AT_ONCE)
                except UnknownJob as error:
                    raise (expired_events(job_id, sequence) if begun else error) from error
                begun = True
                for event in page.events:
                    yield event
                    sequence = event.sequence
                    if event.terminal:
                        return
                if page.ended and not page.events:
                    return
                if page.next_sequence is None:
                    # Not wait_for: before Python 3.12 it may swallow the cancellation of a stream.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_SECONDS):
                            await grown.wait()

    async def page(
        self, job_id: str, after_sequence: int = 0, *, limit: int, max_bytes: int, lasting: bool = False
    ) -> EventPage:
        """Returns the events after a sequence number without waiting."""
        answer = await self._script("read", job_id, after_sequence, limit, max_bytes, "1" if lasting else "")
        if not answer:
            raise _unknown(job_id)
        return parse_events(answer)

    async def request_of(self, job_id: str) -> StoredRequest:
        """Returns a job's request and images."""
        answer = await self._script("request", job_id)
        if answer is None:
            raise _unknown(job_id)
        if not answer:
            raise forgotten_request(job_id)
        return parse_request(answer)

    async def cancel(self, job_id: str, reason: str) -> Job:
        """Cancels a job; if others share its execution, it continues for them."""
        return _found(await self._script("cancel", job_id, reason, cancelled_event(reason, time.time())), job_id)

    async def delete(self, job_id: str) -> None:
        """Deletes an ended job with its events and images."""
        answer = (await self._script("delete", job_id, secrets.token_hex(8))).decode()
        if answer == "unknown":
            raise _unknown(job_id)
        if answer != "ok":
            raise FailedPrecondition(f"job {job_id} is {answer}: cancel it, and delete it after it has ended")

    async def list(self, wanted: JobFilter = EVERY_JOB, *, limit: int, page_token: str) -> tuple[Sequence[Job], str]:
        """Returns a page of jobs, newest first."""
        found: list[Job] = []
        for _ in range(MOST_LOOKS):
            page = await self._look(wanted, page_token, limit - len(found))
            found += [parse_job(view) for view in page[1:]]
            page_token = page[0].decode(errors="replace")
            if not page_token or len(found) == limit:
                break
        return found, page_token

    async def count(self, wanted: JobFilter, *, page_token: str) -> tuple[Mapping[JobState, int], str]:
        """Returns the numbers of matching jobs by state, and the token for counting further."""
        counts: Counter[JobState] = Counter()
        for _ in range(MOST_LOOKS):
            page = await self._look(wanted, page_token, 1, count=True)
            for state, number in zip(page[1::2], page[2::2], strict=True):
                counts[JobState(state.decode())] += int(number)
            page_token = page[0].decode(errors="replace")
            if not page_token:
                break
        return counts, page_token

    def changes(self, tenant: str, changes: JobChanges | None = None) -> AbstractContextManager[JobChanges]:
        """Gives the changes of a tenant's explanations from now on, in `changes` if others are in it too."""
        return self._notifications.changes(tenant, changes or JobChanges())

    async def _look(self, wanted: JobFilter, page_token: str, limit: int, *, count: bool = False) -> Any:
        """Returns what one call of the script `list` finds."""
        return await self._script(
            "list",
            page_token,
            limit,
            JOBS_AT_ONCE,
            wanted.tenant,
            wanted.kind.value if wanted.kind else "",
            wanted.model,
            ",".join(state.value for state in wanted.states),
            wanted.reason,
            wanted.method,
            wanted.request_id,
            encode_labels(wanted.labels),
            "" if wanted.created_after is None else repr(wanted.created_after),
            "" if wanted.created_before is None else repr(wanted.created_before),
            "1" if count else "",
        )

    async def backlog(self) -> Mapping[tuple[str, str], Backlog]:
        """Returns the queued and running executions by (model, lane), with the age of the oldest queued one."""
        flat = await self._script("backlog")
        found = {}
        columns = [flat[column::5] for column in range(5)]
        for where, queued, running, oldest, evaluations in zip(*columns, strict=True):
            lane, _, model = where.decode(errors="replace").partition(":")
            found[model, lane] = Backlog(
                queued=int(queued),
                running=int(running),
                oldest_seconds=float(oldest),
                queued_evaluations=int(evaluations),
            )
        return found

    async def stored_bytes(self) -> int:
        """Returns the bytes of requests, images, events and uploads, which `max_stored_bytes` limits."""
        return int(await self._script("stored"))

    async def costs(self, model: str, version: str, method: str) -> Mapping[str, Cost]:
        """Returns the cost of each setting of a method on a model."""
        return parse_costs(await self._script("costs", model, version, method))

    async def sweep(self) -> int:
        """Ends overdue jobs, requeues lost executions and deletes expired jobs; returns the number of ended jobs.

        From the first operation on this queue, it also runs every `sweep_seconds` if no other process sweeps.
        """
        return await self._sweep() or 0

    async def ping(self) -> None:
        """Returns when Redis answers."""
        await self._redis.run(self._redis.client.ping, name="ping")
        self._start_sweeper()

    async def close(self) -> None:
        """Closes all connections."""
        if self._sweeper is not None:
            await self._supervisor.stop_task(self._sweeper)
        await self._notifications.close()
        await close_async(self._redis.client)

    async def _script(self, name: str, *arguments: bytes | str | int | float) -> Any:
        self._start_sweeper()
        return await self._redis.script(load_script(name), *arguments)

    def _start_sweeper(self) -> None:
        if self._sweeper is None:
            self._sweeper = self._supervisor.start_task(f"sweeper{self._suffix}", self._keep_sweeping)

    async def _keep_sweeping(self) -> None:
        intervals = 1
        while True:
            await asyncio.sleep(intervals * self._settings.sweep_seconds)
            intervals = 1
            try:
                if await self._sweep(self._candidate) is None:
                    intervals = STANDBY_INTERVALS
            except SagittalError as error:
                log.warning("sweep-failed", error=error.message)

    async def _sweep(self, candidate: str = "") -> int | None:
        """Returns the number of ended jobs; None if there is a candidate and another process sweeps."""
        ended = 0
        for _ in range(SWEEPS_IN_A_ROW):
            audit = time.monotonic() >= self._next_audit
            arguments = sweep_arguments(self._settings, audit=audit, candidate="" if audit else candidate)
            self._next_audit = max(self._next_audit, time.monotonic() + AUDIT_SECONDS if audit else 0.0)
            swept = parse_sweep(await self._redis.script(load_script("sweep"), *arguments))
            if not swept.elected:
                return None
            for record in swept.quarantined:
                record.report(self._observer)
            for ending in swept.endings:
                ended += await self._end(ending)
            if not swept.more:
                break
        return ended

    async def _end(self, ending: Ending) -> int:
        """Ends a job or execution that a sweep found; returns how many it ended (0 or 1)."""
        try:
            trace_context = await self._redis.script(load_script("end"), *end_arguments(ending, time.time()))
        except (QueueFailed, ArgumentRefused) as error:
            log.error("end-failed", job_id=ending.job_id, error=error.message)  # the others still end
            return 0
        if trace_context is None:
            return 0
        self._observer.ended(ending.reason)
        ending.log(trace_context)
        return 1


def _found(view: Sequence[bytes] | None, job_id: str) -> Job:
    if not view:
        raise _unknown(job_id)
    return parse_job(view)


def _unknown(job_id: str) -> UnknownJob:
    return UnknownJob(f"no job {job_id!r}: it never existed, was deleted, or its retention has passed", field="job_id")

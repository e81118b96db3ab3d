"""Streams the events of jobs to callers, from any sequence number to the terminal event."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

import structlog

from sagittal.core.errors import Expired, InvalidRequest, JobFailed, SagittalError, UnknownJob, from_status
from sagittal.core.jobs import Job, StoredEvent
from sagittal.core.text import shown
from sagittal.process.supervision import Supervisor
from sagittal.process.tracing import JOB_ID, JOB_STATE, current_span
from sagittal.queue.events import is_lasting
from sagittal.queue.protocol import JobQueue
from sagittal.queue.settings import MIB
from sagittal.server.catalogue import ready_workers
from sagittal.server.intake import Acceptance
from sagittal.server.messages import event
from sagittal.server.metrics import ServiceMetrics
from sagittal.server.rpc.access import Caller
from sagittal.server.rpc.layers import Context
from sagittal.server.rpc.streams import stream_is_moving
from sagittal.v1 import explanation_pb2, model_pb2

_log = structlog.get_logger(__name__)


class BackgroundTasks:
    """Runs background tasks that outlive their RPC, such as cancelling the job of a caller that disconnected.

    They run to their end; the service waits for them when it stops.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, work: Coroutine[Any, Any, Any], *, doing: str, job_id: str = "") -> None:
        """Starts a task; a failure is logged, and counted if it is a bug."""
        task = asyncio.create_task(self._finish(work, doing, job_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait(self) -> None:
        """Returns when all tasks have ended."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))

    async def _finish(self, work: Coroutine[Any, Any, Any], doing: str, job_id: str = "") -> None:
        try:
            await work
        except SagittalError as error:
            _log.warning("background-failed", doing=doing, job_id=job_id, reason=error.reason, error=error.message)
        except Exception as error:  # noqa: BLE001 - nothing else reports it
            self._supervisor.note(f"background-{doing}", error)


_TERMINAL = frozenset({"completed", "failed", "cancelled"})

#: Kinds of events that carry no result.
_BEFORE_RESULTS = frozenset({"accepted", "started", "failed", "cancelled"})

#: 32 digits, and two for the shard if it is not the first.
_JOB_ID = re.compile(r"^[0-9a-f]{32}([0-9a-f]{2})?$")

#: Largest sequence number: the queue's scripts count in double precision.
MAX_SEQUENCE = 2**53 - 1

#: Events of a job that `stored_events` reads at once.
_PAGE_EVENTS = 1_000


class Relay:
    """Finds jobs and streams their events."""

    def __init__(self, queue: JobQueue, background: BackgroundTasks, metrics: ServiceMetrics) -> None:
        self._queue = queue
        self._background = background
        self._metrics = metrics

    async def job(self, job_id: str, caller: Caller) -> Job:
        """Returns a job of the caller's tenant.

        Raises:
            InvalidRequest: job_id is empty.
            UnknownJob: the job does not exist or belongs to another tenant; callers cannot distinguish these.
        """
        if not job_id:
            raise InvalidRequest("job_id is not set; give the job_id of the accepted event", field="job_id")
        unknown = f"no job {shown(job_id)}: it never existed, was deleted, or its retention has passed"
        if not _JOB_ID.match(job_id):
            raise UnknownJob(unknown, field="job_id")
        try:
            job = await self._queue.get(job_id)
        except UnknownJob as error:
            raise UnknownJob(unknown, field="job_id") from error
        if job.tenant != caller.tenant:
            raise UnknownJob(unknown, field="job_id")
        return job

    async def events(self, job: Job, after_sequence: int = 0) -> AsyncGenerator[explanation_pb2.ExplanationEvent, None]:
        """Yields the job's events after a sequence number, up to the terminal one. Raises InvalidRequest."""
        if after_sequence > MAX_SEQUENCE:
            text = f"after_sequence is {after_sequence}; give the sequence of an event of this job, or 0"
            raise InvalidRequest(text, field="after_sequence")
        async with _closing(self._queue.events(job.job_id, after_sequence)) as log:
            async for stored in log:
                message = event(stored, job)
                _note(message)
                yield message

    async def accepted(self, accepting: Coroutine[Any, Any, tuple[Job, bool]], *, rpc: str) -> tuple[Job, bool]:
        """Waits until a job is accepted. If the caller disconnects meanwhile, there is no job, or it is cancelled."""
        acceptance = Acceptance(accepting)
        try:
            return await asyncio.shield(acceptance.task)
        except asyncio.CancelledError:
            self.abandon(acceptance, rpc=rpc, drop=True)
            raise

    def abandon(self, acceptance: Acceptance, *, rpc: str, drop: bool) -> None:
        """Lets the acceptance of a job end in the background, and then cancels the job if `drop` is set.

        If the job is not being submitted yet, dropping it ends the acceptance instead, so that calls that end early
        leave no work behind.
        """
        if drop and not acceptance.submitting and not stream_is_moving():
            acceptance.task.cancel()
            return
        self._background.run(self._end_accepting(acceptance.task, rpc, drop=drop), doing="accept")

    async def owned_events(self, job: Job, *, rpc: str) -> AsyncGenerator[explanation_pb2.ExplanationEvent, None]:
        """Yields a job's events; cancels the job if the caller disconnects before the end."""
        try:
            async with aclosing(self.events(job)) as events:
                waiting = True
                async for message in events:
                    if waiting and message.WhichOneof("event") not in _BEFORE_RESULTS:
                        self._metrics.first_result(job)
                        waiting = False
                    yield message
        except (asyncio.CancelledError, GeneratorExit):
            self.drop(job, rpc=rpc)
            raise

    def drop(self, job: Job, *, rpc: str) -> None:
        """Cancels a job whose caller disconnected, unless the stream only moves to another replica."""
        if stream_is_moving():
            return
        self._metrics.jobs_dropped.labels(rpc).inc()
        cancelling = self._queue.cancel(job.job_id, "caller went away")
        self._background.run(cancelling, doing="cancel", job_id=job.job_id)

    async def _end_accepting(self, accepting: asyncio.Task[tuple[Job, bool]], rpc: str, *, drop: bool) -> None:
        job, is_new = await accepting
        if is_new and drop:
            self.drop(job, rpc=rpc)


async def stored_events(queue: JobQueue, job: Job) -> AsyncGenerator[explanation_pb2.ExplanationEvent, None]:
    """Yields the events that a job has now, without waiting for more; for an ended job only the lasting ones."""
    after: int | None = 0
    while after is not None:
        page = await queue.page(job.job_id, after, limit=_PAGE_EVENTS, max_bytes=MIB, lasting=True)
        for stored in page.events:
            yield event(stored, job)
        after = page.next_sequence


def _note(message: explanation_pb2.ExplanationEvent) -> None:
    """Adds a relayed event to the call's span; progress and partial masks are left out."""
    kind = message.WhichOneof("event") or ""
    if not is_lasting(message):
        return
    about: dict[str, str | int] = {JOB_ID: message.job_id, "sagittal.sequence": message.sequence}
    if kind == "cancelled":
        about["sagittal.cancelled.reason"] = message.cancelled.reason
    if kind in _TERMINAL:
        about[JOB_STATE] = kind
        current_span().set({JOB_STATE: kind})
    current_span().note(kind, about)


@asynccontextmanager
async def _closing(log: AsyncIterator[StoredEvent]) -> AsyncGenerator[AsyncIterator[StoredEvent], None]:
    """Closes a log's generator immediately after its reader, not when it is garbage-collected."""
    try:
        yield log
    finally:
        if isinstance(log, AsyncGenerator):
            await log.aclose()


#: Time that a worker has after the deadline to report it, in seconds.
_GRACE = 1.0


def time_left(context: Context, longest: float) -> float:
    """Returns the seconds within which a call must be answered: the smaller of its own deadline and `longest`."""
    remaining = context.time_remaining()
    return longest if remaining is None else min(longest, remaining)


async def outcome(
    relay: Relay, job: Job, model: model_pb2.Model, *, rpc: str, seconds: float
) -> Mapping[str, explanation_pb2.ExplanationEvent]:
    """Waits until a job of this call has completed; returns its events by kind, the newest of each kind.

    A dropped call cancels the job.

    Raises:
        Expired: there was no answer in time.
        SagittalError: the job failed with it.
    """
    structlog.contextvars.bind_contextvars(job_id=job.job_id)
    try:
        async with asyncio.timeout(seconds + _GRACE):
            return await _completed(relay, job, rpc)
    except TimeoutError:
        raise Expired(_too_late(model, seconds)) from None


async def _completed(relay: Relay, job: Job, rpc: str) -> Mapping[str, explanation_pb2.ExplanationEvent]:
    newest: dict[str, explanation_pb2.ExplanationEvent] = {}
    async with aclosing(relay.owned_events(job, rpc=rpc)) as events:
        async for event in events:
            newest[event.WhichOneof("event") or ""] = event
    if "completed" in newest:
        return newest
    if "failed" in newest:
        raise from_status(newest["failed"].failed)
    if "cancelled" in newest:
        raise JobFailed(f"this call's job was cancelled: {newest['cancelled'].cancelled.reason}")
    raise JobFailed("the log of this call's job ended without an answer")


def _too_late(model: model_pb2.Model, seconds: float) -> str:
    workers = ready_workers(model)
    why = f"{workers} workers have {model.name} ready" if workers else f"no worker has {model.name} ready"
    return f"no answer within {seconds:g} s: {why}"

"""AddBatchItems: queues items of a batch as the queue has room, and returns the result of each."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import NoReturn

import structlog

from sagittal.core.bounds import check_bounds
from sagittal.core.errors import (
    InvalidImage,
    InvalidRequest,
    Overloaded,
    SagittalError,
    Unavailable,
    UnknownJob,
    to_status,
)
from sagittal.core.jobs import Job, JobState
from sagittal.core.text import shown
from sagittal.queue.batches import BatchPaused, ItemKnown, ItemState, StoredItem
from sagittal.queue.protocol import JobQueue
from sagittal.queue.settings import MIB
from sagittal.queue.watch import JobChanges
from sagittal.server.intake import Intake, ItemOfBatch
from sagittal.server.messages import explanation, timestamp
from sagittal.server.relay import stored_events
from sagittal.server.rpc.access import Caller
from sagittal.server.rpc.requests import claim_request, release_request
from sagittal.v1 import batch_service_pb2, explanation_pb2

Requests = AsyncIterator[batch_service_pb2.AddBatchItemsRequest]
Response = batch_service_pb2.AddBatchItemsResponse

#: Time after which an item's job is read without a notification, in seconds.
LOOK_SECONDS = 15.0

#: Time between two attempts to queue items that wait, in seconds.
LONGEST_WAIT = 5.0

#: Bytes of an item's events in a response; larger ones are left to GetExplanation.
MOST_EVENT_BYTES = 16 * MIB

ITEM_STATES = {
    ItemState.IN_FLIGHT: batch_service_pb2.BATCH_ITEM_STATE_IN_FLIGHT,
    ItemState.COMPLETED: batch_service_pb2.BATCH_ITEM_STATE_COMPLETED,
    ItemState.FAILED: batch_service_pb2.BATCH_ITEM_STATE_FAILED,
    ItemState.CANCELLED: batch_service_pb2.BATCH_ITEM_STATE_CANCELLED,
}

_ENDED = {
    JobState.COMPLETED: batch_service_pb2.BATCH_ITEM_STATE_COMPLETED,
    JobState.FAILED: batch_service_pb2.BATCH_ITEM_STATE_FAILED,
    JobState.CANCELLED: batch_service_pb2.BATCH_ITEM_STATE_CANCELLED,
}

#: Fields of a specification that items share; an error in them ends the call, and no item fails.
_SHARED_FIELDS = ("spec.model", "spec.model_version", "batch")

#: Fields of a specification that a batch and its items do not set.
_OWN_FIELDS = ("image", "request_id")


def check_common(spec: explanation_pb2.ExplanationSpec, *, of_item: bool = False) -> None:
    """Raises InvalidRequest for fields that items of a batch may not set, or not have in common."""
    for name in ("request_id",) if of_item else _OWN_FIELDS:
        if name in {field.name for field, _ in spec.ListFields()}:
            why = "the key of an item identifies it" if name == "request_id" else "each item has its own"
            raise InvalidRequest(f"spec.{name} is set; {why}: leave it out", field=f"spec.{name}")
    if spec.lane not in (explanation_pb2.LANE_UNSPECIFIED, explanation_pb2.LANE_BATCH):
        text = "spec.lane is set; items are jobs of LANE_BATCH: leave it out"
        raise InvalidRequest(text, field="spec.lane")


def merged(
    common: explanation_pb2.ExplanationSpec, own: explanation_pb2.ExplanationSpec
) -> explanation_pb2.ExplanationSpec:
    """Returns the specification of an item: fields that it sets override those of its batch; labels are added."""
    whole = explanation_pb2.ExplanationSpec()
    whole.CopyFrom(common)
    for field, _ in own.ListFields():
        if field.name != "labels":
            whole.ClearField(field.name)  # type: ignore[arg-type]
    whole.MergeFrom(own)
    whole.lane = explanation_pb2.LANE_BATCH
    return whole


class ItemStream:
    """State of one AddBatchItems call."""

    def __init__(self, queue: JobQueue, intake: Intake, caller: Caller, max_in_flight: int) -> None:
        self._queue = queue
        self._intake = intake
        self._caller = caller
        self._slots = asyncio.Semaphore(max_in_flight)
        self._tasks: set[asyncio.Task[None]] = set()
        self._keys: set[str] = set()
        self._changed: dict[str, asyncio.Event] = {}
        self._batch = ""
        self._common = explanation_pb2.ExplanationSpec()
        self._reason = ""
        self._probing = asyncio.Lock()
        """Held by the item that tries again while others wait."""
        self._outbox: asyncio.Queue[Response | Exception | None] = asyncio.Queue(maxsize=1)

    async def responses(self, requests: Requests) -> AsyncGenerator[Response, None]:
        """Yields a response for each item that is accepted or has ended, read at the caller's pace."""
        with self._queue.changes(self._caller.tenant) as changes:
            listening = asyncio.create_task(self._listen(changes))
            reading = asyncio.create_task(self._read(requests))
            try:
                while (item := await self._outbox.get()) is not None:
                    if isinstance(item, Exception):
                        raise item
                    yield item
            finally:
                running = (listening, reading, *self._tasks)
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def _read(self, requests: Requests) -> None:
        """Starts a task for each item while slots are free; returns when all have ended."""
        try:
            await self._slots.acquire()
            async for request in requests:
                await self._start(request)
                await self._slots.acquire()
            while self._tasks:
                await asyncio.wait(tuple(self._tasks))
            await self._outbox.put(None)
        except Exception as error:  # noqa: BLE001 - `responses` raises it again
            await self._outbox.put(error)

    async def _start(self, request: batch_service_pb2.AddBatchItemsRequest) -> None:
        await self._check(request)
        key = request.key
        self._keys.add(key)
        claim_request()
        task = asyncio.create_task(self._run(request))
        self._tasks.add(task)
        task.add_done_callback(lambda ended: self._forget(ended, key))

    def _forget(self, task: "asyncio.Task[None]", key: str) -> None:
        self._tasks.discard(task)
        self._keys.discard(key)
        self._slots.release()

    async def _check(self, request: batch_service_pb2.AddBatchItemsRequest) -> None:
        check_bounds(batch_service_pb2.AddBatchItemsRequest(batch=request.batch, key=request.key))
        if not self._batch:
            if not request.batch:
                raise InvalidRequest("batch is not set; name it in the first message", field="batch")
            stored = await self._queue.batches.get(self._caller.tenant, request.batch, field="batch")
            self._common = stored.common()
            self._batch = request.batch
        if request.batch not in ("", self._batch):
            text = f"batch is {shown(request.batch)}; this call adds to {shown(self._batch)}: use one call for each"
            raise InvalidRequest(text, field="batch")
        if not request.key:
            raise InvalidRequest("key is not set; give each item its own, which identifies it", field="key")
        if request.key in self._keys:
            text = f"key {shown(request.key)} is already in flight in this call; give each item its own"
            raise InvalidRequest(text, field="key")

    async def _run(self, request: batch_service_pb2.AddBatchItemsRequest) -> None:
        try:
            response = await self._ended(request)
            if response is not None:
                await self._outbox.put(response)
        except Exception as error:  # noqa: BLE001 - `responses` raises it again
            await self._outbox.put(error)

    async def _ended(self, request: batch_service_pb2.AddBatchItemsRequest) -> Response | None:
        """Queues an item; returns the response when it has ended."""
        try:
            job_id = await self._queued(request)
            if not request.results_only:
                await self._outbox.put(Response(item=_item(request.key, ItemState.IN_FLIGHT, job_id)))
        except ItemKnown as known:
            return await self._known(known.item)
        return await self._result(request.key, job_id)

    async def _known(self, item: StoredItem) -> Response:
        if item.job_id:
            found = await self._result(item.key, item.job_id, kept=item.state is not ItemState.IN_FLIGHT)
            if found is not None:
                return found
        return Response(item=item_message(item))

    async def _queued(self, request: batch_service_pb2.AddBatchItemsRequest) -> str:
        """Returns the job of an item once it is queued; waits while the batch is paused or the queue is full."""
        while self._probing.locked():
            async with self._probing:
                pass
        try:
            return await self._submit(request)
        except (BatchPaused, SagittalError) as error:
            wait = self._wait_after(error)
        async with self._probing:
            while True:
                await asyncio.sleep(wait)
                try:
                    job_id = await self._submit(request)
                except (BatchPaused, SagittalError) as error:
                    wait = self._wait_after(error)
                    await self._tell(error)
                else:
                    await self._tell(None)
                    return job_id

    def _wait_after(self, error: Exception) -> float:
        """Returns the seconds to wait before the next attempt. Raises the error if waiting does not help."""
        if isinstance(error, BatchPaused):
            return 1.0
        if isinstance(error, Unavailable) or not isinstance(error, SagittalError) or error.retry_after is None:
            raise error
        return min(max(error.retry_after, 0.05), LONGEST_WAIT)

    async def _tell(self, error: Exception | None) -> None:
        """Tells the caller why items wait, if that has changed."""
        reason = "" if error is None else "BATCH_PAUSED" if isinstance(error, BatchPaused) else _reason(error)
        if reason == self._reason:
            return
        self._reason = reason
        message = getattr(error, "message", "the batch is paused: resume it with ResumeBatch") if error else ""
        await self._outbox.put(Response(waiting=batch_service_pb2.BatchWaiting(reason=reason, message=message)))

    async def _submit(self, request: batch_service_pb2.AddBatchItemsRequest) -> str:
        """Queues the job of an item. Raises ItemKnown if the item is known, or is refused and recorded as failed."""
        try:
            if request.HasField("unreadable"):
                _refuse_unreadable(request.unreadable)
            check_bounds(request)
            check_common(request.spec, of_item=True)
            spec = merged(self._common, request.spec)
            job, _ = await self._intake.explain(
                spec, self._caller, ItemOfBatch(self._batch, request.key, request.renew)
            )
        except SagittalError as error:
            if not _concerns_item(error):
                raise
            raise ItemKnown(await self._failed(request.key, error)) from error
        finally:
            release_request()
        structlog.contextvars.bind_contextvars(job_id=job.job_id)  # binds it for this task only
        return job.job_id

    async def _failed(self, key: str, error: SagittalError) -> StoredItem:
        event = explanation_pb2.ExplanationEvent(sequence=1, time=timestamp(time.time()), failed=to_status(error))
        return await self._queue.batches.fail(self._caller.tenant, self._batch, key, event.SerializeToString())

    async def _result(self, key: str, job_id: str, *, kept: bool = False) -> Response | None:
        """Waits for the end of an item's job and returns its result. None if the job is deleted and `kept` is set."""
        try:
            job = await self._end_of(job_id)
            events, size = [], 0
            async for event in stored_events(self._queue, job):
                events.append(event)
                size += event.ByteSize()
                if size > MOST_EVENT_BYTES:
                    events = []
                    break
        except UnknownJob:
            return None if kept else Response(lost=key)
        item = batch_service_pb2.BatchItem(
            key=key, state=_ENDED[job.state], job_id=job_id, explanation=explanation(job, events)
        )
        if events and events[-1].HasField("failed"):
            item.failure.CopyFrom(events[-1].failed)
        return Response(item=item)

    async def _end_of(self, job_id: str) -> Job:
        changed = self._changed.setdefault(job_id, asyncio.Event())
        try:
            while not (job := await self._queue.get(job_id)).state.ended:
                try:
                    async with asyncio.timeout(LOOK_SECONDS):
                        await changed.wait()
                except TimeoutError:
                    pass
                changed.clear()
            return job
        finally:
            self._changed.pop(job_id, None)

    async def _listen(self, changes: JobChanges) -> None:
        """Wakes the items whose jobs changed."""
        while True:
            await changes.wait()
            changed = changes.take()
            if changes.missed:
                changes.missed = False
                changed = tuple(self._changed)
            for job_id in changed:
                if (event := self._changed.get(job_id)) is not None:
                    event.set()


def _item(key: str, state: ItemState, job_id: str = "") -> batch_service_pb2.BatchItem:
    return batch_service_pb2.BatchItem(key=key, state=ITEM_STATES[state], job_id=job_id)


def item_message(item: StoredItem) -> batch_service_pb2.BatchItem:
    """Returns a stored item as a message."""
    message = _item(item.key, item.state, item.job_id)
    if item.failure is not None:
        message.failure.CopyFrom(item.failure)
    return message


def _reason(error: Exception) -> str:
    return error.reason if isinstance(error, SagittalError) else ""


def _concerns_item(error: SagittalError) -> bool:
    """Returns whether an error concerns one item, and would recur if the item were sent again unchanged."""
    lasting = not isinstance(error, Unavailable | Overloaded) and error.retry_after is None
    return lasting and bool(error.field) and error.field not in _SHARED_FIELDS


def _refuse_unreadable(item: batch_service_pb2.UnreadableItem) -> NoReturn:
    message = item.message or "the caller could not read the item"
    raise InvalidImage(message, field="unreadable")

"""BatchService: named batches of items, whose jobs are in the batch lane."""
# ruff: noqa: N802 - names and signatures are those of the API

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import structlog

from sagittal.core.errors import FailedPrecondition, InvalidRequest, UnknownJob
from sagittal.core.text import shown
from sagittal.queue.batches import BatchState, ItemState, StoredBatch
from sagittal.queue.protocol import JobQueue
from sagittal.server.batch_items import ITEM_STATES, ItemStream, check_common, item_message
from sagittal.server.intake import Intake
from sagittal.server.messages import timestamp
from sagittal.server.rpc.access import current_caller
from sagittal.server.rpc.layers import Context
from sagittal.v1 import batch_service_pb2, batch_service_pb2_grpc

_log = structlog.get_logger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}\Z")
_CURSOR = re.compile(r"[0-9]{1,15}\Z")

#: Batches on a page, and items looked at for a page, if the request does not set a size.
DEFAULT_BATCHES, DEFAULT_ITEMS = 50, 100

#: Largest number of them.
MAX_PAGE = 1_000

_ITEM_STATES = {number: state for state, number in ITEM_STATES.items()}


class BatchServicer(batch_service_pb2_grpc.BatchServiceServicer):
    """Serves BatchService from the queue."""

    def __init__(self, queue: JobQueue, intake: Intake, *, max_items_in_flight: int) -> None:
        self._queue = queue
        self._intake = intake
        self._max_items_in_flight = max_items_in_flight

    async def CreateBatch(
        self, request: batch_service_pb2.CreateBatchRequest, context: Context
    ) -> batch_service_pb2.CreateBatchResponse:
        """Creates a batch, or returns the equal one."""
        name = _checked_name(request.name)
        check_common(request.spec)
        await self._intake.check(request.spec)
        stored, created = await self._queue.batches.create(
            current_caller().tenant, name, request.spec.SerializeToString(deterministic=True), request.expected_items
        )
        if created:
            _log.info("batch-created", batch=name, model=request.spec.model, expected_items=request.expected_items)
        return batch_service_pb2.CreateBatchResponse(batch=batch_message(stored), created=created)

    async def AddBatchItems(
        self, request_iterator: AsyncIterator[batch_service_pb2.AddBatchItemsRequest], context: Context
    ) -> AsyncGenerator[batch_service_pb2.AddBatchItemsResponse, None]:
        """Queues items as the queue has room, and returns the result of each."""
        stream = ItemStream(self._queue, self._intake, current_caller(), self._max_items_in_flight)
        async with aclosing(stream.responses(request_iterator)) as responses:
            async for response in responses:
                yield response

    async def GetBatch(
        self, request: batch_service_pb2.GetBatchRequest, context: Context
    ) -> batch_service_pb2.GetBatchResponse:
        """Returns a batch."""
        stored = await self._queue.batches.get(current_caller().tenant, _checked_name(request.name))
        return batch_service_pb2.GetBatchResponse(batch=batch_message(stored))

    async def ListBatches(
        self, request: batch_service_pb2.ListBatchesRequest, context: Context
    ) -> batch_service_pb2.ListBatchesResponse:
        """Returns a page of the tenant's batches, by name."""
        limit = _page_size(request.page_size) or DEFAULT_BATCHES
        found, token = await self._queue.batches.list(
            current_caller().tenant, limit=limit, page_token=request.page_token
        )
        return batch_service_pb2.ListBatchesResponse(
            batches=[batch_message(stored) for stored in found], next_page_token=token
        )

    async def PauseBatch(
        self, request: batch_service_pb2.PauseBatchRequest, context: Context
    ) -> batch_service_pb2.PauseBatchResponse:
        """Pauses a batch."""
        return batch_service_pb2.PauseBatchResponse(batch=await self._change(request.name, BatchState.PAUSED))

    async def ResumeBatch(
        self, request: batch_service_pb2.ResumeBatchRequest, context: Context
    ) -> batch_service_pb2.ResumeBatchResponse:
        """Resumes a batch."""
        return batch_service_pb2.ResumeBatchResponse(batch=await self._change(request.name, BatchState.OPEN))

    async def CancelBatch(
        self, request: batch_service_pb2.CancelBatchRequest, context: Context
    ) -> batch_service_pb2.CancelBatchResponse:
        """Cancels a batch, and then each of its jobs; after a failure, calling it again cancels the rest."""
        await self._change(request.name, BatchState.CANCELLED)
        tenant = current_caller().tenant
        async for job_id in self._queue.batches.live_jobs(tenant, request.name):
            try:
                await self._queue.cancel(job_id, "its batch was cancelled")
            except UnknownJob:
                continue
        stored = await self._queue.batches.get(tenant, request.name)
        return batch_service_pb2.CancelBatchResponse(batch=batch_message(stored))

    async def ListBatchItems(
        self, request: batch_service_pb2.ListBatchItemsRequest, context: Context
    ) -> batch_service_pb2.ListBatchItemsResponse:
        """Returns a page of the items of a batch."""
        states = [_item_state(number, index) for index, number in enumerate(request.states)]
        if request.page_token and not _CURSOR.match(request.page_token):
            text = (
                f"page_token is {shown(request.page_token)}; give next_page_token of the previous page, or leave it out"
            )
            raise InvalidRequest(text, field="page_token")
        items, token = await self._queue.batches.items(
            current_caller().tenant,
            _checked_name(request.name),
            states,
            limit=_page_size(request.page_size) or DEFAULT_ITEMS,
            page_token=request.page_token,
        )
        return batch_service_pb2.ListBatchItemsResponse(
            items=[item_message(item) for item in items], next_page_token=token
        )

    async def RetryBatchItems(
        self, request: batch_service_pb2.RetryBatchItemsRequest, context: Context
    ) -> batch_service_pb2.RetryBatchItemsResponse:
        """Forgets failed and cancelled items, so that they run when they are sent again."""
        name = _checked_name(request.name)
        for index, key in enumerate(request.keys):
            if not key:
                raise InvalidRequest(f"keys[{index}] is empty; give the key of an item", field=f"keys[{index}]")
        forgotten = await self._queue.batches.retry(current_caller().tenant, name, request.keys)
        _log.info("batch-items-forgotten", batch=name, items=forgotten)
        return batch_service_pb2.RetryBatchItemsResponse(items=forgotten)

    async def DeleteBatch(
        self, request: batch_service_pb2.DeleteBatchRequest, context: Context
    ) -> batch_service_pb2.DeleteBatchResponse:
        """Deletes the record of a batch."""
        name = _checked_name(request.name)
        await self._queue.batches.delete(current_caller().tenant, name)
        _log.info("batch-deleted", batch=name)
        return batch_service_pb2.DeleteBatchResponse()

    async def _change(self, name: str, state: BatchState) -> batch_service_pb2.Batch:
        stored = await self._queue.batches.change(current_caller().tenant, _checked_name(name), state)
        _log.info("batch-changed", batch=name, state=stored.state.value)
        return batch_message(stored)


def batch_message(stored: StoredBatch) -> batch_service_pb2.Batch:
    """Returns a batch as a message, with its cost so far and to come."""
    counts = stored.counts
    message = batch_service_pb2.Batch(
        name=stored.name,
        state=_state(stored),
        expected_items=stored.expected,
        counts=batch_service_pb2.BatchCounts(
            in_flight=counts[ItemState.IN_FLIGHT],
            completed=counts[ItemState.COMPLETED],
            failed=counts[ItemState.FAILED],
            cancelled=counts[ItemState.CANCELLED],
        ),
        create_time=timestamp(stored.created),
        change_time=timestamp(stored.changed),
    )
    try:
        message.spec.CopyFrom(stored.common())
    except FailedPrecondition:
        _log.error("batch-damaged", batch=stored.name, field="spec")
    ended = _ended(stored)
    message.spent.CopyFrom(_cost(ended, stored.evaluations, stored.seconds))
    left = stored.expected - ended
    if stored.computed and left > 0:
        share = left / ended  # shared answers cost nothing, and will be as frequent
        message.remaining.CopyFrom(_cost(left, round(stored.evaluations * share), stored.seconds * share))
    return message


def _ended(stored: StoredBatch) -> int:
    return sum(number for state, number in stored.counts.items() if state is not ItemState.IN_FLIGHT)


def _cost(items: int, evaluations: int, seconds: float) -> batch_service_pb2.BatchCost:
    cost = batch_service_pb2.BatchCost(items=items, evaluations=evaluations)
    cost.worker_time.FromMilliseconds(round(seconds * 1e3))
    return cost


def _state(stored: StoredBatch) -> "batch_service_pb2.BatchState.ValueType":
    if stored.state is BatchState.CANCELLED:
        return batch_service_pb2.BATCH_STATE_CANCELLED
    if stored.expected and _ended(stored) >= stored.expected and not stored.counts[ItemState.IN_FLIGHT]:
        return batch_service_pb2.BATCH_STATE_COMPLETED
    if stored.state is BatchState.PAUSED:
        return batch_service_pb2.BATCH_STATE_PAUSED
    return batch_service_pb2.BATCH_STATE_OPEN


def _checked_name(name: str) -> str:
    if not _NAME.match(name):
        text = f"name is {shown(name)}; give 1 to 128 letters, digits, '.', '_' and '-'"
        raise InvalidRequest(text, field="name")
    return name


def _item_state(number: int, index: int) -> ItemState:
    state = _ITEM_STATES.get(number)  # type: ignore[call-overload]
    if state is None:
        names = ", ".join(batch_service_pb2.BatchItemState.Name(known) for known in ITEM_STATES.values())
        raise InvalidRequest(f"states[{index}] is {number}; give one of {names}", field=f"states[{index}]")
    return ItemState(state)


def _page_size(number: int) -> int:
    if number > MAX_PAGE:
        text = f"page_size is {number}; give 1 to {MAX_PAGE:,}, or 0 for the default"
        raise InvalidRequest(text, field="page_size")
    return number

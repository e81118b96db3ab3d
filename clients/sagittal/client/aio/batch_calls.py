"""Calls about batches: `AsyncClient.batches`."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

import grpc
from google.protobuf.message import Message

from sagittal.client.aio.concurrency import ChannelClosed, Signal, off_the_loop, sleep
from sagittal.client.aio.streams import wait_after
from sagittal.client.base import spec_for
from sagittal.client.batches import (
    Batch,
    BatchItem,
    BatchResult,
    ItemState,
    OnWaiting,
    Window,
    checked_batch,
    common_spec,
    page_of_items,
    parse_batch,
    parse_item,
    read_item,
)
from sagittal.client.errors import ConnectionFailed, InvalidRequest
from sagittal.client.models import Model
from sagittal.client.options import Options
from sagittal.client.read_ahead import READERS, ReadAhead
from sagittal.client.requests import BatchOptions, build, check_several, checked_options
from sagittal.client.resume import Cursor
from sagittal.client.tracing import Metadata
from sagittal.v1 import batch_service_pb2 as service_pb
from sagittal.v1 import batch_service_pb2_grpc as service_grpc
from sagittal.v1 import explanation_service_pb2 as jobs_pb
from sagittal.v1 import explanation_service_pb2_grpc as jobs_grpc


class Feed(AsyncIterator[service_pb.AddBatchItemsRequest]):
    """The requests of one call: read when the call can take them and the window has room."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._changed = Signal()
        self._ended = False

    def look(self) -> None:
        """Continues to send if the window has room for several items."""
        if self._window.is_low:
            self._changed.set()

    def end(self) -> None:
        """Ends the requests."""
        self._ended = True
        self._changed.set()

    async def __anext__(self) -> service_pb.AddBatchItemsRequest:
        while not self._ended and not self._window.done:
            if self._window.has_room:
                request = await off_the_loop(self._window.next_request)
                if request is not None and self._ended:
                    self._window.put_back(request)
                elif request is not None:
                    return request
            else:
                await self._changed.wait()
                self._changed.clear()
        raise StopAsyncIteration


class AsyncBatchCalls:
    """Creates batches, adds items, and lists and changes both."""

    def __init__(
        self,
        channel: Any,
        metadata: Metadata,
        options: Options,
        call: Callable[[Callable[..., Any], Message], Any],
        begin: Callable[[Message], Cursor],
        describe: Callable[[str, str], Awaitable[Model]],
    ) -> None:
        """Takes the connection.

        Args:
            channel: The channel.
            metadata: Metadata of every call.
            options: Limits and retries.
            call: Makes an idempotent call with retries.
            begin: Starts a stream.
            describe: Returns the description of a model by its name and version.
        """
        self._stub: Any = service_grpc.BatchServiceStub(channel)
        self._jobs: Any = jobs_grpc.ExplanationServiceStub(channel)
        self._metadata = metadata
        self._options = options
        self._call = call
        self._begin = begin
        self._describe = describe

    async def create(self, name: str, *, expected_items: int = 0, **options: Unpack[BatchOptions]) -> Batch:
        """Creates a batch, or returns the existing one if its options are equal.

        Args:
            name: Name: letters, digits, ".", "_" and "-".
            expected_items: Number of items that it will have; 0 if unknown.
            options: Options common to all items; each item may override them.

        Raises:
            AlreadyExists: a batch of this name has other options.
        """
        for option in ("request_id", "lane"):
            if option in options:
                text = "items are identified by their keys, and are jobs of the batch lane: leave it out"
                raise InvalidRequest(text, field=option)
        checked = checked_options({"request_id": "", **options})
        model = await self._describe(checked["model"], checked.get("model_version", ""))
        request = build(
            service_pb.CreateBatchRequest,
            name=checked_batch(name),
            spec=common_spec(spec_for(checked, model)),
            expected_items=expected_items,
        )
        return parse_batch((await self._call(self._stub.CreateBatch, request)).batch)

    async def run(
        self,
        name: str,
        items: Iterable[BatchItem],
        *,
        in_flight: int = 128,
        readers: int = READERS,
        max_bytes: int = 64 * 2**20,
        renew: bool = True,
        on_waiting: OnWaiting | None = None,
    ) -> AsyncGenerator[BatchResult, None]:
        """Adds items to a batch and yields the result of each when it has ended, in any order.

        An item that fails has an error in its result and does not stop the others. Items wait while the queue is full
        or the batch is paused. A lost connection is resumed. Store each result before taking the next: after a crash,
        run the items again that have no stored result. Items that have ended are not computed again.

        Args:
            name: Name of the batch.
            items: The items, read when they are needed; an iterator may read a manifest of any length.
            in_flight: Largest number of items that are sent and have no result yet.
            readers: Threads that read images; twice as many are read ahead.
            max_bytes: Bytes of items in flight, beyond which no further one is sent.
            renew: Whether completed items run again if their results were deleted.
            on_waiting: Called when items wait, and when they continue.
        """
        batch = await self.get(name)
        model = await self._describe(batch.model, batch.model_version)
        check_several(items, "items", "BatchItem(key=..., image=...)")
        read = partial(read_item, model, self._options.max_message_bytes)
        source = ReadAhead(items, read, readers=readers, ahead=2 * readers)
        cursor = self._begin(service_pb.AddBatchItemsRequest())
        cursor.retries_overload = True
        cursor.patience.renew(self._options.retry.stream_seconds)
        window = Window(batch.name, source, in_flight=in_flight, max_bytes=max_bytes, renew=renew)
        with window, cursor.span:
            while not window.done:
                try:
                    async with contextlib.aclosing(self._results(window, cursor, on_waiting)) as results:
                        async for result in results:
                            yield result
                    wait = 0.0 if window.done else await wait_after(cursor, None)
                except grpc.RpcError as error:
                    wait = await wait_after(cursor, error)
                await sleep(wait)
        if window.failure is not None:
            raise window.failure

    async def get(self, name: str) -> Batch:
        """Returns a batch. Raises NotFound."""
        request = build(service_pb.GetBatchRequest, name=checked_batch(name))
        return parse_batch((await self._call(self._stub.GetBatch, request)).batch)

    async def list(self) -> AsyncIterator[Batch]:
        """Yields the batches, by name."""
        token = ""
        while True:
            page = await self._call(self._stub.ListBatches, service_pb.ListBatchesRequest(page_token=token))
            for batch in page.batches:
                yield parse_batch(batch)
            token = page.next_page_token
            if not token:
                return

    async def pause(self, name: str) -> Batch:
        """Pauses a batch: no further item is queued; those that are queued still run."""
        request = build(service_pb.PauseBatchRequest, name=checked_batch(name))
        return parse_batch((await self._call(self._stub.PauseBatch, request)).batch)

    async def resume(self, name: str) -> Batch:
        """Resumes a paused batch."""
        request = build(service_pb.ResumeBatchRequest, name=checked_batch(name))
        return parse_batch((await self._call(self._stub.ResumeBatch, request)).batch)

    async def cancel(self, name: str) -> Batch:
        """Cancels a batch and its jobs; it takes no further items."""
        request = build(service_pb.CancelBatchRequest, name=checked_batch(name))
        return parse_batch((await self._call(self._stub.CancelBatch, request)).batch)

    async def delete(self, name: str) -> None:
        """Deletes the record of a batch without items in flight."""
        await self._call(self._stub.DeleteBatch, build(service_pb.DeleteBatchRequest, name=checked_batch(name)))

    async def items(self, name: str, *, states: Sequence[str] | str = ()) -> AsyncIterator[BatchResult]:
        """Yields the items of a batch in any of these states, without explanations and in no order.

        An example: `items("night", states="failed")`.
        """
        token = ""
        while True:
            page = await self._call(self._stub.ListBatchItems, page_of_items(name, states, token))
            for item in page.items:
                yield parse_item(item)
            token = page.next_page_token
            if not token:
                return

    async def retry(self, name: str, *, keys: Sequence[str] = ()) -> int:
        """Forgets failed and cancelled items, or those with these keys; returns their number.

        They run when they are sent again.
        """
        several = list(check_several(keys, "keys", "keys of items"))
        request = build(service_pb.RetryBatchItemsRequest, name=checked_batch(name), keys=several)
        return int((await self._call(self._stub.RetryBatchItems, request)).items)

    async def _whole(self, result: BatchResult) -> BatchResult:
        """Returns a result with its events, which are read in pages if they were too large for a message."""
        if result.state != ItemState.COMPLETED or result.message is None or result.message.events:
            return result
        request = jobs_pb.GetExplanationRequest(job_id=result.job_id)
        page = await self._call(self._jobs.GetExplanation, request)
        found = page.explanation
        while page.next_page_token:
            request.page_token = page.next_page_token
            page = await self._call(self._jobs.GetExplanation, request)
            found.events.extend(page.explanation.events)
        return replace(result, message=found)

    async def _results(
        self, window: Window, cursor: Cursor, on_waiting: OnWaiting | None
    ) -> AsyncGenerator[BatchResult, None]:
        """Yields results over one call, until it ends."""
        window.reopen()
        feed = Feed(window)
        try:
            call = self._stub.AddBatchItems(feed, metadata=self._metadata + cursor.span.metadata)
        except ChannelClosed as error:
            raise ConnectionFailed("this client is closed; make another") from error
        try:
            async for response in call:
                cursor.patience.renew(self._options.retry.stream_seconds)
                if on_waiting is not None and response.HasField("waiting"):
                    on_waiting(response.waiting.reason, response.waiting.message)
                result = window.admit(response)
                feed.look()
                if result is not None:
                    yield await self._whole(result)
        finally:
            feed.end()
            call.cancel()

"""The events of a job as an asynchronous iterator that survives a lost connection."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Protocol, Self

import grpc

from sagittal.client.errors import Unavailable
from sagittal.client.events import Event
from sagittal.client.explanation import Explanation, Gathering
from sagittal.client.resume import Cursor
from sagittal.client.streams import LAST_WORD_SECONDS, take_event
from sagittal.v1 import explanation_pb2 as pb


class AsyncEventCall(Protocol):
    """A streaming asyncio call whose messages carry one event each."""

    def __aiter__(self) -> AsyncIterator[Any]: ...
    def cancel(self) -> Any:
        """Drops the call."""

    async def code(self) -> Any:
        """Waits for the call's end and returns its status."""


class AsyncEventStream(AsyncIterator[Event]):
    """The events of a job as they come, ending after the last one.

    A lost connection is taken up where it broke. A job that fails or is cancelled raises the error that was meant.
    Closing the stream before its end (leaving `async with`, `aclose()`, or cancelling the task that reads) cancels
    the job, unless it was asked for with `detach=True` or is only watched.
    """

    def __init__(
        self,
        cursor: Cursor,
        open_call: Callable[[Cursor], AsyncEventCall],
        *,
        model: str = "",
        cancel_job: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self._cursor = cursor
        self._open_call = open_call
        self._cancel_job = cancel_job
        self._gathering = Gathering(model=model, job_id=cursor.job_id)
        self._closed = False
        self._events = self._run()

    @property
    def job_id(self) -> str:
        """The job; empty before the first event."""
        return self._cursor.job_id

    @property
    def last_sequence(self) -> int:
        """Sequence number of the last event: where another watcher can go on."""
        return self._cursor.sequence

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def explanation(self) -> Explanation:
        """Reads on to the end and returns everything as one explanation."""
        async for _ in self:
            pass
        return self._gathering.explanation()

    async def aclose(self) -> None:
        """Ends the stream and, unless detached, the job."""
        if self._closed:
            return
        self._closed = True
        await self._events.aclose()
        if not self._cursor.ended:
            self._cursor.span.end(GeneratorExit())
        if self._cancel_job is not None and self.job_id and not self._cursor.ended:
            # Shielded: the task that reads is often being cancelled itself.
            await asyncio.shield(asyncio.ensure_future(self._cancel_job(self.job_id)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self) -> AsyncGenerator[Event, None]:
        with self._cursor.span:
            while not self._cursor.ended:
                call = self._open_call(self._cursor)
                try:
                    async for response in call:
                        event = await self._take(response.event, call)
                        if event is not None:
                            yield event
                        if self._cursor.ended:
                            return
                    wait = self._cursor.wait_after(None)
                except (grpc.RpcError, Unavailable) as error:
                    wait = self._cursor.wait_after(error)
                finally:
                    call.cancel()
                await asyncio.sleep(wait)

    async def _take(self, message: pb.ExplanationEvent, call: AsyncEventCall) -> Event | None:
        """Returns an event as `take_event` does; after the last one the call has ended too."""
        try:
            return take_event(self._cursor, self._gathering, message)
        finally:
            if self._cursor.ended:
                await let_end(call)


async def let_end(call: AsyncEventCall) -> None:
    """Waits until a call whose last event came has ended: dropped before, the service would count it as cancelled."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(call.code(), LAST_WORD_SECONDS)

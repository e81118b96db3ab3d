"""The events of a job as an asynchronous iterator that survives a lost connection."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Self

import grpc

from sagittal.client.aio.concurrency import ClosedWhenDropped, EventCall, let_end, sleep, to_the_end
from sagittal.client.errors import Unavailable
from sagittal.client.events import Event
from sagittal.client.explanation import Explanation, Gathering
from sagittal.client.resume import Cursor, take_event
from sagittal.v1 import explanation_pb2 as pb


class Reading:
    """Reads events over one call after another; refers to no iterator that a caller holds."""

    def __init__(self, cursor: Cursor, open_call: Callable[[Cursor], EventCall], model: str) -> None:
        self.cursor = cursor
        self.gathering = Gathering(model=model, job_id=cursor.job_id)
        self.closed = False
        self._open_call = open_call
        self._call: EventCall | None = None

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yields the events to the end; raises the error of a job that failed or was cancelled."""
        with self.cursor.span:
            while not (self.cursor.ended or self.closed):
                self._call = call = self._open_call(self.cursor)
                try:
                    async for response in call:
                        event = await self._take(response.event, call)
                        if event is not None:
                            yield event
                        if self.cursor.ended:
                            return
                    wait = self.cursor.wait_after(None)
                except (grpc.RpcError, Unavailable) as error:
                    wait = 0.0 if self.closed else self.cursor.wait_after(error)
                finally:
                    call.cancel()
                if wait and not self.closed:
                    await sleep(wait)

    def stop(self) -> None:
        """Drops the call under way."""
        self.closed = True
        if not self.cursor.ended:
            self.cursor.span.end(GeneratorExit())
        if self._call is not None:
            self._call.cancel()

    async def _take(self, message: pb.ExplanationEvent, call: EventCall) -> Event | None:
        """Returns an event as `take_event` does; after the last one the call has ended too."""
        try:
            return take_event(self.cursor, self.gathering, message)
        finally:
            if self.cursor.ended:
                await let_end(call)


class AsyncEventStream(ClosedWhenDropped, AsyncIterator[Event]):
    """The events of a job as they come, ending after the last one.

    A lost connection is taken up where it broke. A job that fails or is cancelled raises the error that was meant.
    Closing the stream before its end (`aclose()`, leaving `async with`, or ending what reads it) cancels the job,
    unless it was asked for with `detach=True` or is only watched.
    """

    def __init__(self, reading: Reading, cancel_job: Callable[[str], Awaitable[None]] | None = None) -> None:
        self._reading = reading
        self._cancel_job = cancel_job
        self._events = reading.events()

    @property
    def job_id(self) -> str:
        """The job; empty before the first event."""
        return self._reading.cursor.job_id

    @property
    def last_sequence(self) -> int:
        """Sequence number of the last event: where another watcher can go on."""
        return self._reading.cursor.sequence

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def explanation(self) -> Explanation:
        """Reads on to the end and returns everything as one explanation."""
        async for _ in self:
            pass
        return self._reading.gathering.explanation()

    async def aclose(self) -> None:
        """Ends the stream and, unless detached, the job; more than once does no harm."""
        if self._reading.closed:
            return
        self._reading.stop()
        # What reads in another thread or task ends by itself, since its call is dropped.
        with contextlib.suppress(ValueError, RuntimeError):
            await self._events.aclose()
        if self._cancel_job is not None and self.job_id and not self._reading.cursor.ended:
            await to_the_end(self._cancel_job, self.job_id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

"""The events of a job as an asynchronous iterator that survives a lost connection."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Self

import grpc

from sagittal.client.aio.concurrency import (
    ChannelClosed,
    ClosedWhenDropped,
    EventCall,
    let_end,
    off_the_loop,
    sleep,
    to_the_end,
)
from sagittal.client.diagnosis import diagnosed
from sagittal.client.errors import ConnectionFailed, Unavailable
from sagittal.client.events import Event
from sagittal.client.explanation import Explanation
from sagittal.client.gathering import gathering_of
from sagittal.client.resume import TERMINAL, Cursor, take_event
from sagittal.v1 import explanation_pb2 as pb


class Reading:
    """Reads events over successive calls; it holds no reference to the caller's iterator."""

    def __init__(
        self,
        cursor: Cursor,
        open_call: Callable[[Cursor], EventCall],
        get: Callable[[str], Awaitable[Explanation]],
        spec: pb.ExplanationSpec | None = None,
    ) -> None:
        """Constructs the reading; `events` starts it.

        Args:
            cursor: Position of the first event.
            open_call: Makes a call that continues at the cursor.
            get: Returns the stored explanation of a job.
            spec: The request, if it is known: it names the model and provides the image.
        """
        self.cursor = cursor
        self.closed = False
        self._gathering = gathering_of(spec, cursor.job_id)
        self._open_call = open_call
        self._get = get
        self._call: EventCall | None = None
        self._is_whole = cursor.sequence == 0
        self._job_ended = False

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yields the events to the end; raises the error of a job that failed or was cancelled."""
        with self.cursor.span:
            while not (self.cursor.ended or self.closed):
                before = self.cursor.sequence
                try:
                    self._call = call = self._open_call(self.cursor)
                except ChannelClosed as error:
                    raise ConnectionFailed("this client is closed; make another", job_id=self.cursor.job_id) from error
                try:
                    async for response in call:
                        event = await self._take(response.event, call)
                        if event is not None:
                            yield event
                        if self.cursor.ended:
                            return
                    wait = 0.0 if await self._look_for_end(before) else await wait_after(self.cursor, None)
                except (grpc.RpcError, Unavailable) as error:
                    wait = 0.0 if self.closed else await wait_after(self.cursor, error)
                finally:
                    call.cancel()
                if wait and not self.closed:
                    await sleep(wait)

    async def explanation(self) -> Explanation:
        """Returns the explanation after the last event; raises the error with which a job ended."""
        if self._is_whole and self.cursor.ended:
            return self._gathering.explanation()
        found = await self._get(self.cursor.job_id)
        if found.error is not None:
            raise found.error
        return self._gathering.attached(found)

    def stop(self) -> None:
        """Drops the current call."""
        self.closed = True
        if not self.cursor.ended:
            self.cursor.span.end(GeneratorExit())
        if self._call is not None:
            self._call.cancel()

    async def _look_for_end(self, before: int) -> bool:
        """Returns whether the job had ended when a call ended normally.

        If a later call brings no event, there are no more.
        """
        if self.cursor.sequence > before or not self.cursor.job_id:
            return False
        if self._job_ended:
            self.cursor.ended, self._is_whole = True, False
        else:
            found = await self._get(self.cursor.job_id)
            self._job_ended = found.state in TERMINAL
        return self._job_ended

    async def _take(self, message: pb.ExplanationEvent, call: EventCall) -> Event | None:
        """Returns an event as `take_event` does; after the last event it also waits for the end of the call."""
        try:
            return take_event(self.cursor, self._gathering, message)
        finally:
            if self.cursor.ended:
                await let_end(call)


class AsyncEventStream(ClosedWhenDropped, AsyncIterator[Event]):
    """The events of a job as they arrive, up to the last one.

    A lost connection is resumed. A job that fails or is cancelled raises its error. Closing the stream before its end
    (`aclose()`, leaving `async with`, or cancelling its reader) cancels the job, unless it was requested with
    `detach=True` or is only watched.
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
        """Sequence number of the last event, after which another watcher can continue."""
        return self._reading.cursor.sequence

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def explanation(self) -> Explanation:
        """Reads to the end and returns the explanation."""
        async for _ in self:
            pass
        return await self._reading.explanation()

    async def aclose(self) -> None:
        """Ends the stream and, unless detached, the job; repeated calls have no effect."""
        if self._reading.closed:
            return
        self._reading.stop()
        # A reader in another thread or task ends by itself, because its call is dropped.
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


async def wait_after(cursor: Cursor, error: grpc.RpcError | Unavailable | None) -> float:
    """Returns the pause before a stream is resumed; raises errors that a retry does not fix."""
    try:
        wait = cursor.wait_after(error)
        return wait if cursor.remaining is None else min(wait, cursor.remaining)
    except ConnectionFailed as failure:
        raise await off_the_loop(diagnosed, failure, cursor.address, cursor.tls) from error

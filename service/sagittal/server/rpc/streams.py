"""Moves long streams to other replicas: each before its connection is closed, and all when the service stops."""

import asyncio
from contextvars import ContextVar
from typing import Any

from sagittal.core.errors import StreamMoved
from sagittal.server.rpc.layers import Call, Proceed

#: Time after which a stream that has not ended is cancelled again, in seconds. A cancellation can be lost if it
#: coincides with an error or with the end of an await. The interval leaves time to clean up after the first.
AGAIN_SECONDS = 1.0


class Stream:
    """An open stream."""

    def __init__(self, task: asyncio.Task[Any], max_seconds: float, again: float) -> None:
        """Moves the stream after `max_seconds`, and then cancels its task every `again` seconds until it ends."""
        self._task = task
        self._again = again
        self._asked = 0
        self._timer = task.get_loop().call_later(max_seconds, self.move)

    @property
    def moving(self) -> bool:
        """True if the stream ends because it moves, and not because its caller disconnected."""
        return self._asked > 0

    def move(self) -> None:
        """Ends the stream; the caller is told to resume it at another replica."""
        self._asked += 1
        self._task.cancel()
        self._timer.cancel()
        self._timer = self._task.get_loop().call_later(self._again, self.move)

    def ended(self) -> None:
        """Reverts the cancellations of its task."""
        self._timer.cancel()
        for _ in range(self._asked):
            self._task.uncancel()


_STREAM: ContextVar[Stream] = ContextVar("stream")


def stream_is_moving() -> bool:
    """Returns whether the present stream ends because it moves, and not because its caller disconnected."""
    stream = _STREAM.get(None)
    return stream is not None and stream.moving


class Streams:
    """The open streams. A moved stream ends with UNAVAILABLE; its job continues, and WatchExplanation resumes it."""

    def __init__(self, max_seconds: float, *, again: float = AGAIN_SECONDS) -> None:
        self._max_seconds = max_seconds
        self._again = again
        self._open: set[Stream] = set()
        self._all_moved = False

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Layer that ends a stream when it must move."""
        task = asyncio.current_task()
        if not call.streams or task is None:
            return await proceed()
        if self._all_moved:  # it was admitted before the service stopped, but starts after
            raise _moved()
        stream = Stream(task, self._max_seconds, self._again)
        _STREAM.set(stream)
        self._open.add(stream)
        try:
            return await proceed()
        except asyncio.CancelledError:
            if not stream.moving:
                raise
            raise _moved() from None
        finally:
            stream.ended()
            self._open.discard(stream)

    def __len__(self) -> int:
        return len(self._open)

    def move_all(self) -> None:
        """Moves every open stream, and every stream that starts from now on."""
        self._all_moved = True
        for stream in tuple(self._open):
            if not stream.moving:
                stream.move()


def _moved() -> StreamMoved:
    text = "this stream moves to another replica and its job continues: resume it with WatchExplanation"
    return StreamMoved(text, retry_after=0.0)

"""Long streams: each is asked to move before its connection is cut off, and all of them when the service stops."""

import asyncio
from contextvars import ContextVar
from typing import Any

from sagittal.core.errors import StreamMoved
from sagittal.server.rpc.layers import Call, Proceed

#: Time after which a stream that has not ended is asked again to move, in seconds: a cancellation that meets an error,
#: or the end of what is waited for, can be lost. Long enough to tidy up after the first.
AGAIN_SECONDS = 1.0


class Stream:
    """A stream that is open."""

    def __init__(self, task: asyncio.Task[Any], max_seconds: float, again: float) -> None:
        """Is asked to move after `max_seconds`, and then every `again` seconds until it has ended."""
        self._task = task
        self._again = again
        self._asked = 0
        self._timer = task.get_loop().call_later(max_seconds, self.move)

    @property
    def moving(self) -> bool:
        """Whether it ends because it moves, and not because its caller went away."""
        return self._asked > 0

    def move(self) -> None:
        """Ends it with the advice to go on elsewhere."""
        self._asked += 1
        self._task.cancel()
        self._timer.cancel()
        self._timer = self._task.get_loop().call_later(self._again, self.move)

    def ended(self) -> None:
        """Takes back what was asked of its task."""
        self._timer.cancel()
        for _ in range(self._asked):
            self._task.uncancel()


_STREAM: ContextVar[Stream] = ContextVar("stream")


def stream_is_moving() -> bool:
    """Whether the stream that is served here ends because it moves, and not because its caller went away."""
    stream = _STREAM.get(None)
    return stream is not None and stream.moving


class Streams:
    """The open streams. A stream that is moved ends with UNAVAILABLE, its job goes on, and WatchExplanation resumes."""

    def __init__(self, max_seconds: float, *, again: float = AGAIN_SECONDS) -> None:
        self._max_seconds = max_seconds
        self._again = again
        self._open: set[Stream] = set()
        self._all_moved = False

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Is the layer that ends a stream when it is to move."""
        task = asyncio.current_task()
        if not call.streams or task is None:
            return await proceed()
        if self._all_moved:  # it was let in before the service stopped, and begins after
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
        """Moves every open stream, and those that begin from now on."""
        self._all_moved = True
        for stream in tuple(self._open):
            if not stream.moving:
                stream.move()


def _moved() -> StreamMoved:
    text = "this stream moves to another replica; the job goes on: resume it by WatchExplanation"
    return StreamMoved(text, retry_after=0.0)

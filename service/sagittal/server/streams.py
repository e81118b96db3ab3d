"""Long streams: each is asked to move before its connection is cut off, and all of them when the service stops."""

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from sagittal.core.errors import StreamMoved
from sagittal.server.layers import Call, Proceed


@dataclass(slots=True, eq=False)
class Stream:
    """A stream that is open."""

    task: asyncio.Task[Any]
    moving: bool = False

    def move(self) -> None:
        """Ends it with the advice to go on elsewhere."""
        if not self.moving:
            self.moving = True
            self.task.cancel()


_STREAM: ContextVar[Stream] = ContextVar("stream")


def stream_is_moving() -> bool:
    """Whether the stream that is served here ends because it moves, and not because its caller went away."""
    stream = _STREAM.get(None)
    return stream is not None and stream.moving


class Streams:
    """The open streams. A stream that is moved ends with UNAVAILABLE, its job goes on, and WatchExplanation resumes."""

    def __init__(self, max_seconds: float) -> None:
        self._max_seconds = max_seconds
        self._open: set[Stream] = set()

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Is the layer that ends a stream when it is to move."""
        task = asyncio.current_task()
        if not call.streams or task is None:
            return await proceed()
        stream = Stream(task)
        _STREAM.set(stream)
        self._open.add(stream)
        timer = asyncio.get_running_loop().call_later(self._max_seconds, stream.move)
        try:
            return await proceed()
        except asyncio.CancelledError:
            if not stream.moving:
                raise
            task.uncancel()
            text = "this stream moves to another replica; the job goes on: resume it by WatchExplanation"
            raise StreamMoved(text, retry_after=0.0) from None
        finally:
            timer.cancel()
            self._open.discard(stream)

    def __len__(self) -> int:
        return len(self._open)

    def move_all(self) -> None:
        """Moves every open stream."""
        for stream in tuple(self._open):
            stream.move()

"""The events of a job as an iterator that survives a lost connection."""

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import Any, Protocol, Self

import grpc

from sagittal.client.errors import Unavailable
from sagittal.client.events import Event
from sagittal.client.explanation import Explanation, Gathering, terminal_error
from sagittal.client.parsing import parse_event
from sagittal.client.resume import Cursor
from sagittal.v1 import explanation_pb2 as pb

#: Longest wait for the end of a call after its last event, in seconds: it follows at once unless the connection breaks.
LAST_WORD_SECONDS = 2.0


class EventCall(Protocol):
    """A streaming call whose messages carry one event each."""

    def __iter__(self) -> Iterator[Any]: ...
    def cancel(self) -> Any:
        """Drops the call."""

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Has a function called when the call has ended; returns False where it has already."""


class Reading:
    """Reads events over one call after another; knows nothing of the iterator that its caller holds."""

    def __init__(self, cursor: Cursor, open_call: Callable[[Cursor], EventCall], model: str) -> None:
        self.cursor = cursor
        self.gathering = Gathering(model=model, job_id=cursor.job_id)
        self.closed = False
        self._open_call = open_call
        self._call: EventCall | None = None

    def events(self) -> Generator[Event, None, None]:
        """Yields the events to the end; raises the error of a job that failed or was cancelled."""
        with self.cursor.span:
            while not (self.cursor.ended or self.closed):
                wait = yield from self._read()
                if wait and not self.closed:
                    time.sleep(wait)

    def stop(self) -> None:
        """Drops the call under way."""
        self.closed = True
        if not self.cursor.ended:
            self.cursor.span.end(GeneratorExit())
        if self._call is not None:
            self._call.cancel()

    def _read(self) -> Generator[Event, None, float]:
        """Yields the events of one call; returns the wait before the next one in seconds."""
        self._call = call = self._open_call(self.cursor)
        try:
            for response in call:
                event = self._take(response.event)
                if event is not None:
                    yield event
                if self.cursor.ended:
                    return 0.0
        except (grpc.RpcError, Unavailable) as error:
            if self.closed:
                return 0.0
            return self.cursor.wait_after(error)
        finally:
            call.cancel()
        return self.cursor.wait_after(None)

    def _take(self, message: pb.ExplanationEvent) -> Event | None:
        """Returns an event as `take_event` does; after the last one the call has ended too."""
        try:
            return take_event(self.cursor, self.gathering, message)
        finally:
            if self.cursor.ended and self._call is not None:
                let_end(self._call)


def let_end(call: EventCall) -> None:
    """Waits until a call whose last event came has ended: dropped before, the service would count it as cancelled."""
    ended = threading.Event()
    if call.add_callback(ended.set):
        ended.wait(LAST_WORD_SECONDS)


def take_event(cursor: Cursor, gathering: Gathering, message: pb.ExplanationEvent) -> Event | None:
    """Returns an event to hand on, or None for one that was seen; raises the error that ends a job."""
    if not cursor.admit(message):
        return None
    failure = terminal_error(message)
    if failure is not None:
        raise failure
    event = parse_event(message)
    gathering.add(event)
    return event


class EventStream(Iterator[Event]):
    """The events of a job as they come, ending after the last one.

    A lost connection is taken up where it broke. A job that fails or is cancelled raises the error that was meant.
    Closing the stream before its end (leaving `with`, `close()`, or dropping it) cancels the job, unless it was asked
    for with `detach=True` or is only watched.
    """

    def __init__(self, reading: Reading, cancel_job: Callable[[str], None] | None = None) -> None:
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

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        return next(self._events)

    def explanation(self) -> Explanation:
        """Reads on to the end and returns everything as one explanation."""
        for _ in self:
            pass
        return self._reading.gathering.explanation()

    def close(self) -> None:
        """Ends the stream and, unless detached, the job. Safe from another thread, and more than once."""
        if self._reading.closed:
            return
        self._reading.stop()
        if self._cancel_job is not None and self.job_id and not self._reading.cursor.ended:
            self._cancel_job(self.job_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # At the interpreter's end half of it is gone, and a call that cannot be made any more is nobody's fault.
        with contextlib.suppress(Exception):
            self.close()

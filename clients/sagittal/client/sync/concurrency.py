"""Channel, queues and pauses of the sync client; `sagittal.client.aio.concurrency` has the same names for asyncio."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

import grpc

from sagittal.client.options import TLS
from sagittal.v1 import explanation_service_pb2 as service_pb

P = ParamSpec("P")
Answer = TypeVar("Answer")

#: A method of a stub that takes a message and returns one.
UnaryCall = Callable[..., Answer]

#: Raised by a call over a channel that is closed.
ChannelClosed = ValueError

#: Longest wait for the end of a call after its last event, in seconds: it follows at once unless the connection breaks.
_END_SECONDS = 2.0

sleep = time.sleep

#: Wakes who waits for a change.
Signal = threading.Event


class EventCall(Protocol):
    """A streaming call whose messages carry one event each."""

    def __iter__(self) -> Iterator[Any]: ...
    def cancel(self) -> Any:
        """Drops the call."""

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Has a function called when the call has ended; returns False if it has already."""


class ClosedWhenDropped:
    """An object that closes itself when nothing refers to it."""

    def close(self) -> None:
        """Closes it."""

    def __del__(self) -> None:
        # At the interpreter's end half of it is gone, and a call that cannot be made any more is nobody's fault.
        with contextlib.suppress(Exception):
            self.close()


class RequestQueue(Iterator[service_pb.ExplainManyRequest]):
    """The requests of a call, sent as they are put in."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[service_pb.ExplainManyRequest | None] = queue.SimpleQueue()

    def put(self, requests: Sequence[service_pb.ExplainManyRequest]) -> None:
        """Sends requests."""
        for request in requests:
            self._queue.put(request)

    def end(self) -> None:
        """Ends the requests after those that were put in."""
        self._queue.put(None)

    def __next__(self) -> service_pb.ExplainManyRequest:
        request = self._queue.get()
        if request is None:
            raise StopIteration
        return request


def open_channel(address: str, tls: TLS | None, arguments: Sequence[tuple[str, str | int]]) -> grpc.Channel:
    """Returns a channel, which connects when it is first needed."""
    if tls is None:
        return grpc.insecure_channel(address, arguments)
    return grpc.secure_channel(address, tls.credentials(), arguments)


def off_the_loop(function: Callable[P, Answer], *args: P.args, **kwargs: P.kwargs) -> Answer:
    """Calls a function that reads files or computes for long."""
    return function(*args, **kwargs)


def to_the_end(function: Callable[..., None], *args: Any) -> None:
    """Calls a function that a cancelled task must not cut short."""
    function(*args)


def let_end(call: EventCall) -> None:
    """Waits until a call whose last event came has ended: dropped before, the service would count it as cancelled."""
    ended = threading.Event()
    if call.add_callback(ended.set):
        ended.wait(_END_SECONDS)

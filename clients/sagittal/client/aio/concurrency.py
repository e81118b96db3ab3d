"""Primitives of asyncio; `sagittal.client.sync.concurrency` has the same names for threads."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

import grpc.aio

from sagittal.client.options import TLS
from sagittal.v1 import explanation_service_pb2 as service_pb

P = ParamSpec("P")
Answer = TypeVar("Answer")

#: A method of a stub that takes a message and returns one.
UnaryCall = Callable[..., Awaitable[Answer]]

#: Errors of a call over a closed channel.
ChannelClosed = grpc.aio.UsageError

#: Maximum wait for the end of a call after its last event, in seconds; it follows immediately on a sound connection.
_END_SECONDS = 2.0

sleep = asyncio.sleep

#: Wakes who waits for a change.
Signal = asyncio.Event


class EventCall(Protocol):
    """A streaming call whose messages have one event each."""

    def __aiter__(self) -> AsyncIterator[Any]: ...
    def cancel(self) -> Any:
        """Drops the call."""

    async def code(self) -> Any:
        """Waits for the call's end and returns its status."""


class ClosedWhenDropped:
    """An object that closes itself when it is garbage collected; not here, because closing must be awaited."""


class RequestQueue(AsyncIterator[service_pb.ExplainManyRequest]):
    """The requests of a call, sent when they are added."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[service_pb.ExplainManyRequest | None] = asyncio.Queue()

    def put(self, requests: Sequence[service_pb.ExplainManyRequest]) -> None:
        """Sends requests."""
        for request in requests:
            self._queue.put_nowait(request)

    def end(self) -> None:
        """Ends the requests after the added ones."""
        self._queue.put_nowait(None)

    async def __anext__(self) -> service_pb.ExplainManyRequest:
        request = await self._queue.get()
        if request is None:
            raise StopAsyncIteration
        return request


def open_channel(address: str, tls: TLS | None, arguments: Sequence[tuple[str, str | int]]) -> grpc.aio.Channel:
    """Returns a channel, which connects when it is first needed."""
    if tls is None:
        return grpc.aio.insecure_channel(address, arguments)
    return grpc.aio.secure_channel(address, tls.credentials(), arguments)


async def off_the_loop(function: Callable[P, Answer], *args: P.args, **kwargs: P.kwargs) -> Answer:
    """Calls a function that reads files or computes for long."""
    return await asyncio.to_thread(function, *args, **kwargs)


async def to_the_end(function: Callable[..., Awaitable[None]], *args: Any) -> None:
    """Calls a function that must complete even if the task is cancelled."""
    await asyncio.shield(asyncio.ensure_future(function(*args)))


async def let_end(call: EventCall) -> None:
    """Waits for the end of a call after its last event: the service would count a dropped call as cancelled."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(call.code(), _END_SECONDS)

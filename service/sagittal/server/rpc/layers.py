"""Layers around every RPC: errors, metrics, access, moving streams. One interceptor runs them all."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError, Message
from grpc.aio import ServerInterceptor, ServicerContext

from sagittal.core.bounds import check_bounds
from sagittal.core.errors import InvalidRequest
from sagittal.server.rpc.requests import RequestBytes, release_request


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Placeholder for a request that could not be parsed, until its call can be refused."""

    why: str


def tolerant(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Returns a deserializer that returns `Unreadable` if `parse` fails."""

    def read(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError as error:
            return Unreadable(str(error))

    return read


async def only_readable(requests: AsyncIterable[Any]) -> Any:
    """Returns a call's single request. Raises InvalidRequest if it could not be parsed or a field is too long."""
    received = aiter(requests)
    try:
        async for request in received:
            if isinstance(parsed(request), Message):
                check_bounds(request)
            return request
    finally:
        if isinstance(received, AsyncGenerator):
            await received.aclose()  # it would keep the request in memory to the end of the call
    raise InvalidRequest("the call ended without a request; send the request message of this RPC")


def parsed(request: Any) -> Any:
    """Returns the request. Raises InvalidRequest if it could not be parsed."""
    if isinstance(request, Unreadable):
        raise InvalidRequest(f"the request cannot be parsed: {request.why}; send the request message of this RPC")
    return request


async def all_readable(requests: AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
    """Yields the requests of a stream. Raises InvalidRequest at the first that could not be parsed.

    The RPC checks their fields: ExplainMany refuses a single request and continues.
    """
    async for request in requests:
        yield parsed(request)


Context = ServicerContext[Any, Any]
Behaviour = Callable[[Any, Context], Awaitable[Any]]
Proceed = Callable[[], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an RPC."""

    method: str
    """Full name, such as `/sagittal.v1.ExplanationService/Explain`."""
    streams: bool
    """True if the response is a stream."""
    context: Context

    @property
    def metadata(self) -> Mapping[str, str]:
        """Text metadata of the request; the first value of a repeated key."""
        return text_metadata(self.context.invocation_metadata())


def text_metadata(pairs: Iterable[tuple[str, str | bytes]] | None) -> Mapping[str, str]:
    """Returns the text metadata of a request; the first value of a repeated key."""
    return {key: value for key, value in reversed(tuple(pairs or ())) if isinstance(value, str)}


class Layer(Protocol):
    """Code that runs around every call."""

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Runs code before and after `await proceed()`, which runs the inner layers and the RPC."""
        ...


class Layers(ServerInterceptor):
    """Runs every RPC inside the layers; the first layer is the outermost.

    Every handler becomes a coroutine that writes its own stream. So if a call ends early, the generators below it end
    immediately, in order and in the call's own task. It also reads its own messages, so those of a call that a layer
    refuses are never read.
    """

    def __init__(self, layers: Sequence[Layer], requests: RequestBytes) -> None:
        """Stores the layers around each call, and the limits for its messages; gRPC asks for handlers later."""
        self._layers = tuple(layers)
        self._requests = requests
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Returns the handler inside the layers, created once per RPC; None if the RPC does not exist."""
        method = handler_call_details.method
        if (known := self._handlers.get(method)) is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        return self._handlers.setdefault(method, self.around(handler, method))

    def around(self, handler: grpc.RpcMethodHandler[Any, Any], method: str) -> grpc.RpcMethodHandler[Any, Any]:
        """Returns a handler inside the layers. It reads its own requests, so it takes a stream of them."""
        kind = _KINDS[handler.request_streaming, handler.response_streaming]
        behaviour = _as_coroutine(getattr(handler, kind))

        async def read_and_proceed(requests: AsyncIterable[Any], context: Context) -> Any:
            tenant = self._requests.of_caller()
            if handler.request_streaming:
                async with aclosing(tenant.read_each(all_readable(requests))) as messages:
                    return await behaviour(messages, context)
            try:  # no variable here keeps the request in memory
                return await behaviour(await tenant.read(partial(only_readable, requests)), context)
            finally:
                release_request()

        async def call_through_layers(requests: AsyncIterable[Any], context: Context) -> Any:
            call = Call(method, handler.response_streaming, context)
            return await self._surrounded(call, partial(read_and_proceed, requests, context))

        # gRPC reads the message of an RPC that takes one before it is called, and a stream's when it is asked to
        factory = getattr(grpc, f"{_KINDS[True, handler.response_streaming]}_rpc_method_handler")
        rewrapped: grpc.RpcMethodHandler[Any, Any] = factory(
            call_through_layers, tolerant(handler.request_deserializer or bytes), handler.response_serializer
        )
        return rewrapped

    async def _surrounded(self, call: Call, proceed: Proceed) -> Any:
        for layer in reversed(self._layers):
            proceed = partial(layer, call, proceed)
        return await proceed()


_KINDS: Mapping[tuple[bool, bool], str] = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}


def _as_coroutine(behaviour: Callable[[Any, Context], Any]) -> Behaviour:
    if not inspect.isasyncgenfunction(behaviour):
        return behaviour

    async def write_all(request: Any, context: Context) -> None:
        responses: AsyncGenerator[Any, None] = behaviour(request, context)
        del request  # which may be large, and the stream long
        write = _write_to_the_end
        async with aclosing(responses):
            async for response in responses:
                await write(context, response)
                write = _write

    return write_all


async def _write(context: Context, response: Any) -> None:
    await context.write(response)


async def _write_to_the_end(context: Context, response: Any) -> None:
    """Writes the first message; a cancellation waits for it.

    If a write is interrupted, gRPC assumes that it has sent no headers. It then sends them again with the status, which
    its core refuses, and the caller never gets the status.
    """
    writing = asyncio.ensure_future(context.write(response))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.gather(writing, return_exceptions=True)
        raise

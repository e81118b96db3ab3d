"""A channel to the service's RPCs for callers in its own process: the same layers and errors, without a connection."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn, TypeAlias

import grpc
from grpc.aio import AbortError, AioRpcError, Metadata

from sagittal.server.rpc.layers import Layers

#: Messages of a stream that the RPC may write before its caller reads them.
AHEAD = 16

_STOPPING = grpc.StatusCode.UNAVAILABLE, "the service is stopping: try again"
_EXPIRED = grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"

Pairs = Sequence[tuple[str, str | bytes]]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class LocalChannel:
    """Calls handlers as a `grpc.aio.Channel` calls a server: stubs and callers by path work with both.

    Servicers are added by the generated functions, as to a server.
    """

    def __init__(self, layers: Layers, *, max_message_bytes: int) -> None:
        """Stores the layers around each call, and the size of the largest request."""
        self._layers = layers
        self._max_message_bytes = max_message_bytes
        self._handlers: dict[str, Handler] = {}
        self._open: set[LocalCall] = set()
        self._closed = False
        self.unary_unary = self.stream_unary = partial(self._rpc, LocalCall)
        self.unary_stream = self.stream_stream = partial(self._rpc, LocalStream)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Adds the RPCs of a service, inside the layers."""
        for name, handler in handlers.items():
            method = f"/{service}/{name}"
            self._handlers[method] = self._layers.around(handler, method)

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Does nothing: the same handlers are registered by their methods."""

    async def close(self, grace: float) -> None:
        """Refuses further calls, and returns when the open ones have ended. After `grace` seconds it ends them."""
        self._closed = True
        if self._open:
            await asyncio.wait({call.task for call in self._open}, timeout=grace)
        for call in self._open:
            call.end(*_STOPPING)
        while self._open:
            await asyncio.wait({call.task for call in self._open})

    def _rpc(
        self,
        kind: type[LocalCall],
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        **_registered: bool,
    ) -> Callable[..., LocalCall]:
        serialize, parse = request_serializer or bytes, response_deserializer or bytes

        def call(request: Any, *, metadata: Pairs = (), timeout: float | None = None) -> LocalCall:
            handler = self._handler(method)
            requests = request if isinstance(request, AsyncIterable) else _one(request)
            encoded = (serialize(each) async for each in requests)
            opened = kind(handler, encoded, self._max_message_bytes, metadata, timeout, parse)
            self._open.add(opened)
            opened.task.add_done_callback(lambda _: self._open.discard(opened))
            return opened

        return call

    def _handler(self, method: str) -> Handler:
        """Returns the handler of an RPC, or one that refuses the call: as over a connection, its caller awaits that."""
        if self._closed:
            return _refusing(*_STOPPING)
        return self._handlers.get(method) or _refusing(grpc.StatusCode.UNIMPLEMENTED, f"there is no RPC {method}")


class LocalCall:
    """A call with one response, in a task of its own; awaiting it returns the response. It is its handler's context."""

    def __init__(
        self,
        handler: Handler,
        requests: AsyncIterator[bytes],
        max_bytes: int,
        metadata: Pairs,
        timeout: float | None,
        parse: Callable[[bytes], Any],
    ) -> None:
        loop = asyncio.get_running_loop()
        self._metadata = metadata
        self._deadline = None if timeout is None else loop.time() + timeout
        self._serialize: Callable[[Any], bytes] = handler.response_serializer or bytes
        self._parse = parse
        self._failure: tuple[grpc.StatusCode, str, Pairs] | None = None
        self.task: asyncio.Task[Any] = loop.create_task(
            self._run(handler, self._received(handler, requests, max_bytes))
        )
        self.task.add_done_callback(_retrieve)
        if timeout is not None:
            timer = loop.call_later(timeout, self.end, *_EXPIRED)
            self.task.add_done_callback(lambda _: timer.cancel())

    def __await__(self) -> Generator[Any, None, Any]:
        return self._response().__await__()

    def cancel(self) -> bool:
        """Cancels the call; one that has ended stays as it is."""
        return self.task.cancel()

    def end(self, code: grpc.StatusCode, details: str) -> None:
        """Cancels the call, which then fails with a status; one that has ended stays as it is."""
        if self._failure is None and self.task.cancel():
            self._failure = (code, details, ())

    # the methods of a ServicerContext that layers and servicers call

    def invocation_metadata(self) -> Pairs:
        """Metadata of the caller."""
        return self._metadata

    def peer(self) -> str:
        """All callers in this process are one peer."""
        return "local:"

    def time_remaining(self) -> float | None:
        """Seconds until the deadline; None if there is none."""
        return None if self._deadline is None else max(0.0, self._deadline - asyncio.get_running_loop().time())

    def code(self) -> grpc.StatusCode | None:
        """Status of a failed call."""
        return self._failure[0] if self._failure else None

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Pairs = ()) -> NoReturn:
        """Ends the call with a status."""
        self._failure = (code, details, trailing_metadata)
        raise AbortError

    async def _run(self, handler: Handler, requests: AsyncIterator[Any]) -> Any:
        behaviour: Any = handler.stream_stream or handler.stream_unary
        return await behaviour(requests, self)

    async def _received(self, handler: Handler, requests: AsyncIterator[bytes], max_bytes: int) -> AsyncIterator[Any]:
        """Yields requests as the handler reads them from a connection; one that is too large ends the call."""
        read: Callable[[bytes], Any] = handler.request_deserializer or bytes
        async for request in requests:
            if len(request) > max_bytes:
                most = f"SAGITTAL_CONNECTIONS__MAX_MESSAGE_BYTES, {max_bytes:,}"
                text = f"the request has {len(request):,} bytes: send at most {most}"
                await self.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
            yield read(request)

    async def _response(self) -> Any:
        await asyncio.wait({self.task})
        self._raise_failure()
        return self._parse(self._serialize(self.task.result()))

    def _raise_failure(self) -> None:
        """Raises why the ended call failed, if it did."""
        if self._failure is not None:
            code, details, trailing = self._failure
            raise AioRpcError(code, Metadata(), Metadata(*trailing), details)


class LocalStream(LocalCall):
    """A call with a stream of responses, which is iterated. The RPC waits if `AHEAD` of them are not read."""

    def __init__(self, *arguments: Any) -> None:
        self._unread: deque[bytes] = deque()
        self._changed = asyncio.Event()
        super().__init__(*arguments)
        self.task.add_done_callback(lambda _: self._changed.set())

    async def write(self, response: Any) -> None:
        """Sends a response."""
        self._unread.append(self._serialize(response))
        self._changed.set()
        while len(self._unread) >= AHEAD:
            self._changed.clear()
            await self._changed.wait()

    def __aiter__(self) -> LocalStream:
        return self

    async def __anext__(self) -> Any:
        while not self._unread:
            if self.task.done():
                self._raise_failure()
                self.task.result()
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        response = self._unread.popleft()
        if not self._unread:
            self._changed.set()  # the RPC may write again
        return self._parse(response)


async def _one(request: Any) -> AsyncIterator[Any]:
    yield request


def _refusing(code: grpc.StatusCode, text: str) -> Handler:
    async def refuse(_requests: Any, context: Any) -> None:
        await context.abort(code, text)

    return grpc.stream_stream_rpc_method_handler(refuse)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Marks a failure as known: a caller that left does not read it, and `answer_failures` has logged a bug."""
    if not task.cancelled():
        task.exception()

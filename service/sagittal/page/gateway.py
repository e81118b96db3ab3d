"""Connect and gRPC-Web for browsers: forwards each call, with its token, to the gRPC service.

Only the service authenticates and admits calls. Binary messages pass through unchanged; JSON messages are converted.
Closing a request cancels the call.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any

import grpc
from connectrpc.code import Code
from connectrpc.codec import Codec
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import Headers, RequestContext
from connectrpc.server import ConnectASGIApplication, Endpoint
from google.protobuf import json_format
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2
from protobuf.wkt import Any as ConnectAny
from starlette.responses import PlainTextResponse, Response

#: Headers that are forwarded to the service as metadata.
FORWARDED = ("authorization", "traceparent", "tracestate")

#: Metadata in which gRPC sends the details of an error.
_DETAILS = "grpc-status-details-bin"

#: Connect code of each gRPC status.
_CODES: Mapping[grpc.StatusCode, Code] = {
    status: Code["CANCELED" if status is grpc.StatusCode.CANCELLED else status.name]
    for status in grpc.StatusCode
    if status is not grpc.StatusCode.OK
}

#: HTTP status of each gRPC status; 502 for others.
_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}

Context = RequestContext[Any, Any]


class Encoded(bytes):
    """A serialized message with its type, which the conversion to JSON requires."""

    kind: type[Message]

    @classmethod
    def of(cls, kind: type[Message], data: bytes) -> "Encoded":
        """Returns serialized bytes with their type."""
        encoded = cls(data)
        encoded.kind = kind
        return encoded


class Bytes(Codec[Any, Any]):
    """Codec for binary messages, which pass through unchanged."""

    def name(self) -> str:
        """Returns the name in content types."""
        return "proto"

    def encode(self, message: Encoded) -> bytes:
        """Returns the bytes."""
        return bytes(message)

    def decode(self, data: bytes | bytearray, message_class: type[Message]) -> Encoded:
        """Returns the bytes."""
        return Encoded.of(message_class, bytes(data))


class Json(Codec[Any, Any]):
    """Codec for messages in JSON."""

    def name(self) -> str:
        """Returns the name in content types."""
        return "json"

    def encode(self, message: Encoded) -> bytes:
        """Returns a message as JSON."""
        return json_format.MessageToJson(message.kind.FromString(message)).encode()

    def decode(self, data: bytes | bytearray, message_class: type[Message]) -> Encoded:
        """Returns the serialized message of a JSON text. Raises ConnectError."""
        message = message_class()
        try:
            json_format.Parse(bytes(data), message, ignore_unknown_fields=True)
        except (json_format.ParseError, DecodeError, UnicodeDecodeError) as error:
            text = f"the request is not a {message_class.DESCRIPTOR.full_name} in JSON: {error}"
            raise ConnectError(Code.INVALID_ARGUMENT, text) from error
        return Encoded.of(message_class, message.SerializeToString())


class Gateway:
    """Forwards calls of services to a channel."""

    def __init__(self, channel: grpc.aio.Channel, *, token_header: str = "") -> None:
        """Stores the arguments; `application` serves calls.

        Args:
            channel: Channel to the service.
            token_header: Header with the caller's bearer token, if a reverse proxy sets one; empty for `Authorization`.
        """
        self._channel = channel
        self._token_header = token_header.lower()

    def application(self, service: ServiceDescriptor, *, max_bytes: int) -> "ServiceApplication":
        """Returns the ASGI application of a service; it accepts requests of at most `max_bytes`."""
        endpoints: dict[str, Any] = {
            f"/{service.full_name}/{method.name}": self._endpoint(method) for method in service.methods
        }
        return ServiceApplication(f"/{service.full_name}", endpoints, max_bytes)

    def _endpoint(self, method: MethodDescriptor) -> Endpoint[Any, Any]:
        service = method.containing_service
        path, kind = f"/{service.full_name}/{method.name}", GetMessageClass(method.output_type)
        info: MethodInfo[Any, Any] = MethodInfo(
            name=method.name,
            service_name=service.full_name,
            input=GetMessageClass(method.input_type),
            output=kind,
            idempotency_level=IdempotencyLevel.UNKNOWN,
            stream_type=_STREAMS[method.client_streaming, method.server_streaming],
        )
        if method.client_streaming and method.server_streaming:
            return Endpoint.bidi_stream(
                info, self._streamed(self._channel.stream_stream(path, request_serializer=bytes), kind)
            )
        if method.client_streaming:
            return Endpoint.client_stream(
                info, self._single(self._channel.stream_unary(path, request_serializer=bytes), kind)
            )
        if method.server_streaming:
            return Endpoint.server_stream(
                info, self._streamed(self._channel.unary_stream(path, request_serializer=bytes), kind)
            )
        return Endpoint.unary(info, self._single(self._channel.unary_unary(path, request_serializer=bytes), kind))

    def _single(self, rpc: Callable[..., Any], kind: type[Message]) -> Callable[[Any, Context], Any]:
        async def forward(request: Any, context: Context) -> Encoded:
            call = rpc(request, **self._options(context))
            try:
                return Encoded.of(kind, await call)
            except grpc.aio.AioRpcError as error:
                raise connect_error(error) from error
            finally:
                call.cancel()

        return forward

    def _streamed(self, rpc: Callable[..., Any], kind: type[Message]) -> Callable[[Any, Context], AsyncIterator[Any]]:
        async def forward(request: Any, context: Context) -> AsyncIterator[Encoded]:
            call = rpc(request, **self._options(context))
            try:
                async for reply in call:
                    yield Encoded.of(kind, reply)
            except grpc.aio.AioRpcError as error:
                raise connect_error(error) from error
            finally:
                call.cancel()

        return forward

    def _options(self, context: Context) -> Mapping[str, Any]:
        left = context.timeout_ms
        return {
            "metadata": forwarded_metadata(context.request_headers, self._token_header),
            "timeout": None if left is None else max(0.001, left / 1000),
        }


class ServiceApplication(ConnectASGIApplication[None]):
    """ASGI application for the calls of one service."""

    def __init__(self, path: str, endpoints: Mapping[str, Any], max_bytes: int) -> None:
        super().__init__(
            service=None, endpoints=lambda _service: endpoints, read_max_bytes=max_bytes, codecs=(Bytes(), Json())
        )
        self._path = path

    @property
    def path(self) -> str:
        """Prefix of the paths of its calls."""
        return self._path


_STREAMS = {
    (False, False): StreamType.UNARY,
    (True, False): StreamType.CLIENT_STREAM,
    (False, True): StreamType.SERVER_STREAM,
    (True, True): StreamType.BIDI_STREAM,
}


def forwarded_metadata(headers: Mapping[str, str] | Headers, token_header: str) -> Sequence[tuple[str, str]]:
    """Returns the headers of a request that the service gets as metadata.

    Args:
        headers: The headers of the request.
        token_header: Lower-case name of the header in which a reverse proxy sends the caller's token; empty for none.
    """
    found = {name: value for name in FORWARDED if (value := headers.get(name))}
    if token_header and (token := headers.get(token_header)):
        found["authorization"] = f"Bearer {token.removeprefix('Bearer ')}"
    return tuple(found.items())


def connect_error(error: grpc.aio.AioRpcError) -> ConnectError:
    """Returns a gRPC error as a Connect error, with its details."""
    return ConnectError(_CODES[error.code()], error.details() or "", details=list(_details(error)))


def error_response(error: grpc.aio.AioRpcError) -> Response:
    """Returns a gRPC error as text, for what the page serves besides the API."""
    return PlainTextResponse(error.details() or "", _STATUSES.get(error.code(), 502))


def _details(error: grpc.aio.AioRpcError) -> Iterable[ConnectAny]:
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                yield ConnectAny(type_url=detail.type_url, value=detail.value)

"""Spans of the client, in the caller's own traces.

They use OpenTelemetry's API and go to the application's tracer provider. Without a provider they are discarded, and
without `opentelemetry` (extra `tracing`) none are made.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from google.protobuf.message import Message
from google.rpc import code_pb2

from sagittal.client.errors import SagittalError

if TYPE_CHECKING:
    from opentelemetry import trace

Metadata = tuple[tuple[str, str | bytes], ...]


class CallSpan:
    """The span of one operation: from its first RPC to its last, including broken connections.

    As a context manager it ends with the context, with the error raised in it.
    """

    #: gRPC metadata that makes the service's spans its children.
    metadata: Metadata = ()

    def end(self, error: BaseException | None = None) -> None:
        """Ends the span, once; leaving an operation before its end counts as cancellation."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(error)


class _OpenSpan(CallSpan):
    """A span of OpenTelemetry."""

    def __init__(self, span: trace.Span, carrier: Mapping[str, str]) -> None:
        self.metadata = tuple(carrier.items())
        self._span: trace.Span | None = span

    def end(self, error: BaseException | None = None) -> None:
        span, self._span = self._span, None
        if span is None:
            return
        code = _code(error)
        span.set_attribute("rpc.grpc.status_code", code)
        if code != code_pb2.OK:
            span.set_status(_error(), code_pb2.Code.Name(code))
        if isinstance(error, SagittalError):
            span.set_attribute("sagittal.reason", error.reason)
            if error.job_id:
                span.set_attribute("sagittal.job.id", error.job_id)
        span.end()


def begin_call(rpc: str, address: str) -> CallSpan:
    """Starts the span of an operation, named after its first RPC, `service/method`."""
    try:
        from opentelemetry import trace  # noqa: PLC0415 - optional
        from opentelemetry.trace.propagation import tracecontext  # noqa: PLC0415
    except ModuleNotFoundError:
        return CallSpan()
    service, _, method = rpc.partition("/")
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method, "server.address": address}
    span = trace.get_tracer("sagittal.client").start_span(rpc, kind=trace.SpanKind.CLIENT, attributes=attributes)
    carrier: dict[str, str] = {}
    tracecontext.TraceContextTextMapPropagator().inject(carrier, trace.set_span_in_context(span))
    return _OpenSpan(span, carrier)


def rpc_of(request: Message) -> str:
    """Returns the RPC that takes a message; each RPC has its own message type."""
    described = request.DESCRIPTOR
    for service in described.file.services_by_name.values():
        for method in service.methods:
            if method.input_type is described:
                return f"{service.full_name}/{method.name}"
    raise ValueError(f"{described.full_name} is no request of the API")


def _code(error: BaseException | None) -> int:
    if isinstance(error, SagittalError):
        return error.code
    return int(code_pb2.OK if error is None else code_pb2.CANCELLED)


def _error() -> trace.StatusCode:
    from opentelemetry.trace import StatusCode  # noqa: PLC0415

    return StatusCode.ERROR

"""A collector: takes OTLP over gRPC and keeps the spans that it was sent."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True)
class Received:
    """A span as it came, with the program that sent it."""

    program: str
    raw: Span

    @property
    def name(self) -> str:
        return self.raw.name

    @property
    def trace(self) -> str:
        return self.raw.trace_id.hex()

    @property
    def id(self) -> str:
        return self.raw.span_id.hex()

    @property
    def parent(self) -> str:
        return self.raw.parent_span_id.hex()

    @property
    def attributes(self) -> dict[str, object]:
        return plain(self.raw.attributes)

    @property
    def notes(self) -> dict[str, dict[str, object]]:
        return {event.name: plain(event.attributes) for event in self.raw.events}

    @property
    def failed(self) -> bool:
        return self.raw.status.code == 2


def plain(pairs: "list[KeyValue]") -> dict[str, object]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> object:
    return getattr(value, value.WhichOneof("value") or "string_value")


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps spans."""

    port: int = 0
    spans: list[Received] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def Export(self, request, context):
        with self._lock:
            self.metadata.append(dict(context.invocation_metadata()))
            for resource in request.resource_spans:
                program = str(plain(resource.resource.attributes)["service.name"])
                self.spans += [Received(program, span) for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def named(self, name: str, **attributes: object) -> list[Received]:
        """Returns the spans of a name whose attributes (dots as underscores) have these values."""
        with self._lock:
            spans = list(self.spans)
        return [
            span
            for span in spans
            if span.name == name
            and all(
                {key.replace(".", "_"): value for key, value in span.attributes.items()}.get(wanted) == value
                for wanted, value in attributes.items()
            )
        ]


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""
    server = grpc.server(ThreadPoolExecutor(2))
    collector = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector
    finally:
        server.stop(0).wait()

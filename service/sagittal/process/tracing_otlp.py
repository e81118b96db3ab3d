"""Spans sent away by OTLP over gRPC, in batches, from a thread of their own: a slow collector never holds up a job."""

from __future__ import annotations

import logging
from importlib.metadata import version
from types import MappingProxyType

import structlog
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sagittal.process.tracing import Attributes, Span, SpanKind, TracingSettings

_KINDS = MappingProxyType({kind: trace.SpanKind[kind.name] for kind in SpanKind})

_PROPAGATOR = TraceContextTextMapPropagator()

_log = structlog.get_logger(__name__)


class OtlpTracer:
    """A `Tracer` that exports."""

    def __init__(self, settings: TracingSettings, *, program: str, instance: str) -> None:
        """Prepares to export; nothing is sent yet.

        Args:
            settings: Where spans go.
            program: Name of this program in traces.
            instance: Name of this process among those of the program.
        """
        resource = Resource.create(
            {"service.name": program, "service.version": version("sagittal"), "service.instance.id": instance}
        )
        self._provider = TracerProvider(
            resource=resource, sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)), shutdown_on_exit=False
        )
        _hear_of_trouble()
        exporter = OTLPSpanExporter(
            endpoint=settings.endpoint,
            insecure=settings.endpoint.startswith("http://"),
            headers={name.lower(): value.get_secret_value() for name, value in settings.headers.items()},
            timeout=settings.export_timeout,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("sagittal", version("sagittal"))
        _log.info("tracing-on", endpoint=settings.endpoint, sample_ratio=settings.sample_ratio)

    def span(
        self,
        name: str,
        *,
        parent: str = "",
        kind: SpanKind = SpanKind.INTERNAL,
        start: float | None = None,
        attributes: Attributes | None = None,
    ) -> Span:
        """Begins a span."""
        traceparent, _, tracestate = parent.partition(" ")
        context = _PROPAGATOR.extract({"traceparent": traceparent, "tracestate": tracestate})
        begun = self._tracer.start_span(
            name, context, _KINDS[kind], attributes, start_time=None if start is None else _nanoseconds(start)
        )
        return _OtlpSpan(self, begun)

    def close(self) -> None:
        """Sends what is left, in bounded time."""
        self._provider.shutdown()


class _OtlpSpan:
    """A span on its way to the collector."""

    def __init__(self, tracer: OtlpTracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span

    @property
    def context(self) -> str:
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(self._span))
        return " ".join(filter(None, (carrier["traceparent"], carrier.get("tracestate"))))

    def child(self, name: str, *, kind: SpanKind = SpanKind.INTERNAL, attributes: Attributes | None = None) -> Span:
        return self._tracer.span(name, parent=self.context, kind=kind, attributes=attributes)

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def note(self, name: str, attributes: Attributes | None = None) -> None:
        self._span.add_event(name, attributes)

    def fail(self, description: str) -> None:
        self._span.set_status(trace.StatusCode.ERROR, description)

    def end(self, at: float | None = None) -> None:
        self._span.end(None if at is None else _nanoseconds(at))


class _Trouble(logging.Handler):
    """What OpenTelemetry says of a collector that does not answer, as events of our log."""

    def emit(self, record: logging.LogRecord) -> None:
        _log.warning("spans-not-exported", error=record.getMessage())


def _hear_of_trouble() -> None:
    library = logging.getLogger("opentelemetry")
    if not any(isinstance(handler, _Trouble) for handler in library.handlers):
        library.addHandler(_Trouble(logging.WARNING))
        library.propagate = False


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)

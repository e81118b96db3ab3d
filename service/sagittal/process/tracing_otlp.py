"""Exports spans by OTLP over gRPC, in batches and from a separate thread, so that a slow collector delays no job."""

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

from sagittal.process.tracing import Attributes, Span, SpanKind, Tracer, TracingSettings

_KINDS = MappingProxyType({kind: trace.SpanKind[kind.name] for kind in SpanKind})

_PROPAGATOR = TraceContextTextMapPropagator()

_log = structlog.get_logger(__name__)


class OtlpTracer(Tracer):
    """A `Tracer` that exports to a collector."""

    def __init__(self, settings: TracingSettings, *, program: str, instance: str) -> None:
        """Prepares the exporter; sends nothing yet.

        Args:
            settings: Collector and sampling.
            program: Name of this program in traces.
            instance: Name of this process, unique within the program.
        """
        resource = Resource.create(
            {"service.name": program, "service.version": version("sagittal"), "service.instance.id": instance}
        )
        self._provider = TracerProvider(
            resource=resource, sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)), shutdown_on_exit=False
        )
        _log_export_failures()
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
        """Starts a span."""
        traceparent, _, tracestate = parent.partition(" ")
        context = _PROPAGATOR.extract({"traceparent": traceparent, "tracestate": tracestate})
        begun = self._tracer.start_span(
            name, context, _KINDS[kind], attributes, start_time=None if start is None else _nanoseconds(start)
        )
        return _OtlpSpan(self, begun)

    def close(self) -> None:
        """Exports the remaining spans, in bounded time."""
        self._provider.shutdown()


class _OtlpSpan(Span):
    """A span that is exported when it ends."""

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


class _ExportFailures(logging.Handler):
    """Turns OpenTelemetry's warnings, such as a collector that does not answer, into events of our log."""

    def emit(self, record: logging.LogRecord) -> None:
        _log.warning("spans-not-exported", error=record.getMessage())


def _log_export_failures() -> None:
    library = logging.getLogger("opentelemetry")
    if not any(isinstance(handler, _ExportFailures) for handler in library.handlers):
        library.addHandler(_ExportFailures(logging.WARNING))
        library.propagate = False


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)

"""Traces: the steps of a job as spans, within the caller's trace. If tracing is off, spans do nothing.

A span's parent is a W3C traceparent with its tracestate. Both travel with the job as one text
(`process.logs.trace_context`). The exporter is in `tracing_otlp`, which is imported only if tracing is on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

Attributes = Mapping[str, str | int | float | bool]

#: Attribute with a job's identifier.
JOB_ID = "sagittal.job.id"
#: Attribute with the state in which a job ended: completed, failed or cancelled.
JOB_STATE = "sagittal.job.state"


class TracingSettings(BaseModel):
    """Export of traces."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    endpoint: str = ""
    """Collector for OTLP over gRPC: `http://host:4317`, or `https://` for TLS. Empty: no tracing."""
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Recorded share, 0 to 1, of the traces that start here. For traces that a caller starts, the caller decides."""
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    """Metadata of each export, as JSON; for example the collector's token."""
    export_timeout: Annotated[float, Field(gt=0)] = 5.0
    """Longest time of one export, in seconds. Spans that cannot be sent are dropped, with a warning in the log."""

    @model_validator(mode="after")
    def _check(self) -> TracingSettings:
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"endpoint is {self.endpoint!r}; give http://host:port, or https://host:port for TLS")
        return self


class SpanKind(Enum):
    """Role of a span in a call or in the queue."""

    INTERNAL = "internal"
    SERVER = "server"
    PRODUCER = "producer"
    CONSUMER = "consumer"


class Span:
    """One unit of work in a trace. This one does nothing: it is the span of a program without tracing."""

    @property
    def context(self) -> str:
        """W3C traceparent of this span and, after a space, its tracestate; empty if tracing is off."""
        return ""

    def child(self, name: str, *, kind: SpanKind = SpanKind.INTERNAL, attributes: Attributes | None = None) -> Span:
        """Starts a span within this one."""
        return self

    def set(self, attributes: Attributes) -> None:
        """Adds attributes."""

    def note(self, name: str, attributes: Attributes | None = None) -> None:
        """Adds an event with the current time."""

    def fail(self, description: str) -> None:
        """Marks the work as failed."""

    def end(self, at: float | None = None) -> None:
        """Ends the span, now or at a time in seconds since the epoch."""


class Tracer:
    """Creates spans and exports them. This one creates spans that do nothing."""

    def span(
        self,
        name: str,
        *,
        parent: str = "",
        kind: SpanKind = SpanKind.INTERNAL,
        start: float | None = None,
        attributes: Attributes | None = None,
    ) -> Span:
        """Starts a span, now or at a time in seconds since the epoch, with the given parent or in a new trace."""
        return NO_SPAN

    def close(self) -> None:
        """Exports the remaining spans."""


NO_SPAN = Span()
NO_TRACER = Tracer()

_CURRENT: ContextVar[Span] = ContextVar("span")


def current_span() -> Span:
    """Returns the span of the call that runs in this task."""
    return _CURRENT.get(NO_SPAN)


@contextmanager
def within(span: Span) -> Iterator[Span]:
    """Makes a span the current one, and ends it with the context."""
    token = _CURRENT.set(span)
    try:
        yield span
    finally:
        _CURRENT.reset(token)
        span.end()

"""Traces: what a job goes through, as spans that join those of its caller. Off, every span is one that does nothing.

A span is named by what it stands for, begins where W3C's traceparent and tracestate say, and travels with the job
as one context (`telemetry.trace_context`). What sends spans away is in `tracing_otlp`, and is imported only where
tracing is on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

Attributes = Mapping[str, str | int | float | bool]

#: Name of the attribute that carries a job's identifier.
JOB_ID = "sagittal.job.id"
#: Name of the attribute that says how a job ended: completed, failed or cancelled.
JOB_STATE = "sagittal.job.state"


class TracingSettings(BaseModel):
    """Where traces go."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    endpoint: str = ""
    """Collector that takes OTLP over gRPC, as `http://host:4317`, or `https://` for TLS. Empty: no tracing."""
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the traces that begin here which are kept. Those that a caller began are kept as the caller says."""
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    """Metadata of each export, as JSON; the collector's token for instance."""
    export_timeout: Annotated[float, Field(gt=0)] = 5.0
    """Longest time that one export may take, in seconds; what cannot be sent is dropped, and the log says so."""

    @model_validator(mode="after")
    def _check(self) -> TracingSettings:
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"endpoint is {self.endpoint!r}; give http://host:port, or https://host:port for TLS")
        return self


class SpanKind(Enum):
    """Which side of a call or of the queue a span stands for."""

    INTERNAL = "internal"
    SERVER = "server"
    PRODUCER = "producer"
    CONSUMER = "consumer"


class Span(Protocol):
    """One piece of work in a trace."""

    @property
    def context(self) -> str:
        """W3C traceparent of this span and, after a space, its tracestate; empty where tracing is off."""
        ...

    def child(self, name: str, *, kind: SpanKind = SpanKind.INTERNAL, attributes: Attributes | None = None) -> Span:
        """Begins a span within this one."""
        ...

    def set(self, attributes: Attributes) -> None:
        """Adds attributes."""
        ...

    def note(self, name: str, attributes: Attributes | None = None) -> None:
        """Adds an event, with the time."""
        ...

    def fail(self, description: str) -> None:
        """Marks the work as failed."""
        ...

    def end(self, at: float | None = None) -> None:
        """Ends the span, now or at a time in seconds since the epoch."""
        ...


class Tracer(Protocol):
    """Makes spans and sends them away."""

    def span(
        self,
        name: str,
        *,
        parent: str = "",
        kind: SpanKind = SpanKind.INTERNAL,
        start: float | None = None,
        attributes: Attributes | None = None,
    ) -> Span:
        """Begins a span, now or at a time in seconds since the epoch, in the trace of a context or in a new one."""
        ...

    def close(self) -> None:
        """Sends what is left."""
        ...


class _NoSpan:
    """The span that does nothing."""

    context = ""

    def child(self, name: str, *, kind: SpanKind = SpanKind.INTERNAL, attributes: Attributes | None = None) -> Span:
        return self

    def set(self, attributes: Attributes) -> None:
        """Does nothing."""

    def note(self, name: str, attributes: Attributes | None = None) -> None:
        """Does nothing."""

    def fail(self, description: str) -> None:
        """Does nothing."""

    def end(self, at: float | None = None) -> None:
        """Does nothing."""


class _NoTracer:
    """The tracer of an installation that does not trace."""

    def span(
        self,
        name: str,
        *,
        parent: str = "",
        kind: SpanKind = SpanKind.INTERNAL,
        start: float | None = None,
        attributes: Attributes | None = None,
    ) -> Span:
        return NO_SPAN

    def close(self) -> None:
        """Does nothing."""


NO_SPAN: Span = _NoSpan()
NO_TRACER: Tracer = _NoTracer()

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

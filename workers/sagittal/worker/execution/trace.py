"""The spans of a job on this worker: its wait in the queue, the attempt, and a summary of the engine."""

from collections.abc import Mapping
from typing import Any

import structlog

from sagittal.core.jobs import JobState, Lease
from sagittal.engine import Task
from sagittal.explain import events
from sagittal.process.logs import trace_id
from sagittal.process.tracing import JOB_ID, JOB_STATE, Attributes, Span, SpanKind, Tracer

log = structlog.get_logger(__name__)


def job_log(lease: Lease) -> Any:
    """Returns a logger whose lines have the job id and the trace id."""
    return log.bind(job_id=lease.job.job_id, trace_id=trace_id(lease.trace_context))


class JobTrace:
    """The spans of one lease, as children of the span that submitted the job."""

    def __init__(self, tracer: Tracer, lease: Lease, worker: str) -> None:
        """Starts the span of the attempt, and records the span of the wait before it."""
        job, parent = lease.job, lease.trace_context
        about: dict[str, str | int] = {JOB_ID: job.job_id, "sagittal.model": job.model, "sagittal.lane": job.lane.value}
        if job.attempt == 1:
            waited = tracer.span("queue", parent=parent, start=job.created, attributes=about)
            waited.end()
        self._attempt: Span = tracer.span(
            f"attempt {job.method or job.kind.value}",
            parent=parent,
            kind=SpanKind.CONSUMER,
            attributes={
                **about,
                "sagittal.model.version": job.version,
                "sagittal.method": job.method,
                "sagittal.attempt": job.attempt,
                "sagittal.worker": worker,
                "sagittal.resumed": lease.checkpoint is not None,
            },
        )
        self._engine: Span | None = None

    def enter_engine(self, *, batch_size: int) -> None:
        """Starts the span of the engine."""
        self._engine = self._attempt.child("engine", attributes={"sagittal.engine.batch_size": batch_size})

    def note(self, event: events.Event) -> None:
        """Adds an event of the job to the trace, except progress and intermediate masks."""
        describe = NOTED.get(type(event))
        if describe is not None and not (isinstance(event, events.SaliencyMask) and not event.final):
            name, attributes = describe(event)
            self._attempt.note(name, attributes)

    def cancel(self, reason: str) -> None:
        """Records that the cancellation reached this worker, and its reason."""
        self._attempt.note("cancellation received", {"sagittal.cancelled.reason": reason})

    def end(self, outcome: str, task: Task | None, *, error: str = "") -> None:
        """Ends the spans. `outcome` is the job's state, `lost` or `released`."""
        if self._engine is not None and task is not None:
            self._engine.set(_summary(task))
            self._engine.end()
        self._attempt.set({JOB_STATE: outcome})
        if outcome == JobState.FAILED.value:
            self._attempt.fail(error)
        self._attempt.end()


def _summary(task: Task) -> Attributes:
    usage = task.usage
    return {
        "sagittal.engine.batches": task.batches,
        "sagittal.engine.device_seconds": task.device_seconds,
        "sagittal.evaluations": usage.evaluations,
        "sagittal.evaluations.gradient": usage.gradient_evaluations,
        "sagittal.evaluations.metric": usage.metric_evaluations,
        "sagittal.evaluations.remembered": usage.remembered,
    }


def _prediction(event: events.Prediction) -> tuple[str, Attributes]:
    return "prediction", {"target": event.target.index, "score": event.target.score, "baseline": event.baseline_score}


def _mask(_event: events.SaliencyMask) -> tuple[str, Attributes]:
    return "mask", {}


def _set(event: events.SufficientSet) -> tuple[str, Attributes]:
    return "sufficient set", {"patches": len(event.patches), "score": event.score}


def _curve(event: events.Curve) -> tuple[str, Attributes]:
    return f"{event.kind.value} curve", {"auc": event.auc}


def _warning(event: events.Warning) -> tuple[str, Attributes]:
    return "warning", {"reason": event.reason}


def _truncated(event: events.Truncated) -> tuple[str, Attributes]:
    return "truncated", {"limit": event.limit}


def _checkpoint(_event: events.Checkpoint) -> tuple[str, Attributes]:
    return "checkpoint", {}


NOTED: Mapping[type, Any] = {
    events.Prediction: _prediction,
    events.SaliencyMask: _mask,
    events.SufficientSet: _set,
    events.Curve: _curve,
    events.Warning: _warning,
    events.Truncated: _truncated,
    events.Checkpoint: _checkpoint,
}
"""Events that a trace records."""


def load_span(tracer: Tracer, lease: Lease) -> Span:
    """Starts the span of loading the model that a job waits for."""
    attributes = {"sagittal.model": lease.job.model, "sagittal.model.version": lease.job.version}
    return tracer.span("load model", parent=lease.trace_context, attributes={JOB_ID: lease.job.job_id, **attributes})

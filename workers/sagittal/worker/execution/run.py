"""One job on this worker, from its lease to its terminal event."""

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib import metadata
from typing import Any

import torch
from google.protobuf import duration_pb2
from google.rpc import status_pb2

from sagittal.core.errors import (
    Expired,
    FailedPrecondition,
    InvalidRequest,
    ModelFailed,
    QueueFailed,
    SagittalError,
    Unavailable,
    internal_status,
    to_status,
)
from sagittal.core.jobs import JobKind, JobState, Lane, Lease
from sagittal.engine import INTERACTIVE_WEIGHT, Budget, EvaluationFailed, ModelUnreachable, Task, TaskCancelled, Usage
from sagittal.engine.requests import OutOfBudget
from sagittal.explain import InvalidParameter, Unsupported, events
from sagittal.explain.concepts import UnfitImages
from sagittal.explain.messages import EventMessages, Summary
from sagittal.models.loaded import LoadedModel
from sagittal.process.tracing import NO_TRACER, Tracer
from sagittal.queue.protocol import LeaseLost
from sagittal.v1 import explanation_pb2 as pb
from sagittal.worker.execution.checkpoints import Checkpoints
from sagittal.worker.execution.trace import JobTrace, job_log
from sagittal.worker.execution.work import Work
from sagittal.worker.execution.writer import EventWriter, Outbox
from sagittal.worker.metrics import WorkerMetrics
from sagittal.worker.outcomes import OutcomeReports
from sagittal.worker.quality import Quality


class JobRun:
    """A leased job: its task on the engine, its events to the queue."""

    def __init__(
        self,
        lease: Lease,
        loaded: LoadedModel,
        writer: EventWriter,
        metrics: WorkerMetrics,
        name: str,
        *,
        checkpoint_seconds: float,
        outcomes: OutcomeReports,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        """Opens the job's outbox and sends the event that it started."""
        self.lease = lease
        self._loaded = loaded
        self._writer = writer
        self._metrics = metrics
        self._outcomes = outcomes
        self._log = job_log(lease)
        self._trace = JobTrace(tracer, lease, name)
        self._started = time.monotonic()
        self._waited = max(0.0, time.time() - lease.job.created)
        self._summary = Summary()
        self._quality = Quality()
        self._messages = EventMessages(loaded.labels, loaded.digest, loaded.entry.preprocessing)
        self._outbox: Outbox = writer.open(lease)
        self._checkpoints = Checkpoints(partial(writer.checkpoint, self._outbox), loaded, seconds=checkpoint_seconds)
        self._work: Work | None = None
        self._last_sent, self._last_phase = -float("inf"), ""
        self._cancelled_because = ""
        self._cancelled_at = 0.0
        self._expired = False
        self._releasing = False
        self.task: Task | None = None
        started = pb.Started(worker=name, attempt=lease.job.attempt, waited=duration(self._waited))
        self._send(pb.ExplanationEvent(started=started))
        metrics.retries.labels(lease.job.model).inc(lease.job.attempt > 1)
        metrics.wait.labels(lease.job.model, lease.job.lane.value).observe(self._waited)

    @property
    def ended(self) -> bool:
        """Whether no more events will be written for this lease."""
        return self._outbox.closed.is_set()

    @property
    def lost(self) -> bool:
        """Whether the lease was lost."""
        return self._outbox.lost

    def begin(self, work: Work) -> Task:
        """Returns the task for the engine."""
        self._work = work
        job = self.lease.job
        deadline = None if job.deadline is None else time.monotonic() + job.deadline - time.time()
        self.task = Task(
            steps=work.steps,
            on_event=self._on_event,
            on_end=self._on_end,
            budget=Budget(evaluations=work.max_evaluations, deadline=deadline, measurements=work.measurements),
            weight=INTERACTIVE_WEIGHT if job.lane is Lane.INTERACTIVE else 1.0,
            usage=replace(work.used),
        )
        self._checkpoints.begin(self.task.usage, work.ran)
        self._trace.enter_engine(batch_size=self._loaded.found.batch_size)
        return self.task

    def cancel(self, reason: str, *, age: float = 0.0) -> None:
        """Ends the job before the engine's next step. Safe from any thread.

        Args:
            reason: Why.
            age: Time since the queue accepted the cancellation, in seconds.
        """
        if not self._cancelled_at:
            self._cancelled_because, self._cancelled_at = reason, time.monotonic() - age
            self._trace.cancel(reason)
        if self.task is not None:
            self.task.cancel()

    def expire(self) -> None:
        """Fails the job before the engine's next step, because its deadline passed. Thread-safe."""
        self._expired = True
        if self.task is not None:
            self.task.cancel()

    def drop(self) -> None:
        """Stops the job without further calls to the queue: its lease is lost."""
        self._writer.drop(self._outbox)
        if self.task is not None:
            self.task.cancel()

    def release(self) -> None:
        """Stops the job and releases it to the queue."""
        self._releasing = True
        if self.task is not None:
            self.task.cancel()

    def fail(self, error: BaseException) -> None:
        """Ends the job with an error before it reaches the engine."""
        self._on_end(error)

    def _on_event(self, event: events.Event) -> None:
        self._quality.note(event)
        self._summary.note(event)
        self._trace.note(event)
        self._checkpoints.note(event)
        passing = isinstance(event, events.Progress) or (isinstance(event, events.SaliencyMask) and not event.final)
        if passing and not self._due(event):
            return
        message = self._messages.message(event, self.task.usage.evaluations if self.task else 0)
        if message is not None:
            self._send(message)

    def _due(self, event: events.Event) -> bool:
        """Returns whether a progress event or intermediate mask is due: after its interval, or the first of a phase."""
        work = self._work
        if work is None or (isinstance(event, events.SaliencyMask) and not work.partial_masks):
            return False
        now = time.monotonic()
        if isinstance(event, events.SaliencyMask):
            return now - self._last_sent < work.progress_seconds  # accompanies the progress event just sent
        begun = isinstance(event, events.Progress) and event.phase != self._last_phase
        if now - self._last_sent < work.progress_seconds and not begun:
            return False
        self._last_sent = now
        self._last_phase = event.phase if isinstance(event, events.Progress) else self._last_phase
        return True

    def _on_end(self, error: BaseException | None) -> None:
        """Writes the one terminal event, or releases the job."""
        if isinstance(error, LeaseLost):
            self._writer.drop(self._outbox)
        if self.lost:
            self._trace.end("lost", self.task)
            return
        # If the queue is unavailable while a job's parts are read, the job does not end: another attempt reads them.
        away = isinstance(error, Unavailable) and not isinstance(error, QueueFailed)
        if away or (isinstance(error, TaskCancelled) and self._releasing):
            self._trace.end("released", self.task)
            self._checkpoints.store_newest()
            self._writer.release(self._outbox)
            return
        if isinstance(error, TaskCancelled) and self._expired and not self._cancelled_at:
            error = Expired("the deadline passed while it ran; allow more time")
        if error is None:
            event, state = pb.ExplanationEvent(completed=self._completed()), JobState.COMPLETED
        elif isinstance(error, TaskCancelled):
            reason = self._cancelled_because or "requested"
            event, state = pb.ExplanationEvent(cancelled=pb.Cancelled(reason=reason)), JobState.CANCELLED
            self._metrics.cancel_to_idle.observe(time.monotonic() - self._cancelled_at)
        else:
            event, state = pb.ExplanationEvent(failed=self._status(error)), JobState.FAILED
        self._count(state)
        insertion = self._quality.insertion if state is JobState.COMPLETED else None
        self._outcomes.count(self.lease.job, state, code=event.failed.code, insertion=insertion)
        self._trace.end(state.value, self.task, error=event.failed.message)
        self._writer.settle(self._outbox, self._stamped(event), state)

    def _completed(self) -> pb.Completed:
        work, usage = self._work, self.task.usage if self.task else Usage()
        return self._summary.message(
            usage,
            work.parameters if work else {},
            run_time=duration(self._checkpoints.seconds),
            wait_time=duration(self._waited),
            model_digest=self._loaded.digest,
            model_version=self._loaded.entry.version,
            versions=software_versions(),
            seed=work.seed if work else 0,
            method=work.method if work else "",
        )

    def _status(self, error: BaseException) -> status_pb2.Status:
        """Returns the status for the caller; details of a bug stay in the log, under an identifier."""
        expected = translate(error, self._work.method_field if self._work else "")
        if expected is not None:
            self._log.info("job-failed", reason=expected.reason, error=expected.message)
            return to_status(expected)
        incident = uuid.uuid4().hex
        self._log.error("job-crashed", incident=incident, exc_info=error)
        return internal_status(incident)

    def _count(self, state: JobState) -> None:
        job, metrics = self.lease.job, self._metrics
        metrics.jobs.labels(job.model, job.method, state.value).inc()
        metrics.run.labels(job.model, job.method).observe(time.monotonic() - self._started)
        if state is JobState.COMPLETED and job.kind is JobKind.EXPLANATION:
            self._quality.observe(metrics.quality, job)
        if self.task is not None:
            metrics.device_seconds.labels(job.model, job.method).inc(self.task.device_seconds)
            usage = self.task.usage
            metrics.evaluations.labels(job.model, job.method, "gradient").inc(usage.gradient_evaluations)
            metrics.evaluations.labels(job.model, job.method, "forward").inc(
                usage.evaluations - usage.gradient_evaluations - usage.remembered
            )
            metrics.remembered.labels(job.model, job.method).inc(usage.remembered)

    def _send(self, event: pb.ExplanationEvent) -> None:
        self._writer.put(self._outbox, self._stamped(event))

    def _stamped(self, event: pb.ExplanationEvent) -> bytes:
        event.job_id, event.request_id = self.lease.job.job_id, self.lease.job.request_id
        event.time.GetCurrentTime()
        return event.SerializeToString()


def failed_event(lease: Lease, error: SagittalError) -> bytes:
    """Returns the terminal event of a job that fails before it runs."""
    event = pb.ExplanationEvent(job_id=lease.job.job_id, request_id=lease.job.request_id, failed=to_status(error))
    event.time.GetCurrentTime()
    return event.SerializeToString()


#: Retry delay while a remote model is unavailable, in seconds.
MODEL_AWAY_SECONDS = 5.0

TRANSLATIONS: Mapping[type[BaseException], Callable[[Any], SagittalError]] = {
    ModelUnreachable: lambda error: Unavailable(f"{error}", retry_after=MODEL_AWAY_SECONDS),
    EvaluationFailed: lambda error: ModelFailed(f"{error}"),
    UnfitImages: lambda error: InvalidRequest(str(error), field="image"),
    Unsupported: lambda error: FailedPrecondition(str(error), field="spec.method"),
    torch.cuda.OutOfMemoryError: lambda _error: ModelFailed("the device has not enough memory for this method"),
}
"""Errors of the library, and the errors that callers get."""


def translate(error: BaseException, method_field: str = "") -> SagittalError | None:
    """Returns the error for the caller; None for a bug. `method_field` is the method's field in the request."""
    if isinstance(error, SagittalError):
        return error
    if isinstance(error, OutOfBudget):
        return _out_of_budget(error)
    if isinstance(error, InvalidParameter):
        field = ".".join(part for part in ("spec.method", method_field, error.name) if part)
        return InvalidRequest(f"{field}: {error.message}", field=field)
    for kind, translation in TRANSLATIONS.items():
        if isinstance(error, kind):
            return translation(error)
    return None


def _out_of_budget(error: OutOfBudget) -> SagittalError:
    if error.limit == "deadline":
        return Expired("the deadline passed before there was a first result; allow more time, or fewer iterations")
    return FailedPrecondition(
        "max_evaluations is too small for a first result of this method; increase it, or choose a cheaper method",
        field="spec.max_evaluations",
    )


def software_versions() -> dict[str, str]:
    """Returns the versions of the software that results depend on."""
    return {"sagittal": metadata.version("sagittal"), "torch": torch.__version__}


def duration(seconds: float) -> duration_pb2.Duration:
    """Returns seconds as a message."""
    message = duration_pb2.Duration()
    message.FromNanoseconds(max(0, int(seconds * 1e9)))
    return message

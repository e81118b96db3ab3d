"""Outcomes of the jobs of each model version, by which the registry judges a version on trial (canary)."""

import threading
import time

import structlog
from google.rpc import code_pb2

from sagittal.core.jobs import Job, JobState
from sagittal.registry.protocol import Outcomes, WorkerRegistry
from sagittal.worker.metrics import WorkerMetrics

_log = structlog.get_logger(__name__)

#: Statuses of jobs that failed by a mistake of their caller.
MISTAKES = frozenset({code_pb2.INVALID_ARGUMENT, code_pb2.FAILED_PRECONDITION, code_pb2.NOT_FOUND})


class OutcomeReports:
    """Counts ended jobs by version, and reports them to the registry. Thread-safe."""

    def __init__(self, registry: WorkerRegistry, metrics: WorkerMetrics, worker: str) -> None:
        self._registry = registry
        self._metrics = metrics
        self._worker = worker
        self._ended: dict[tuple[str, str], Outcomes] = {}
        self._lock = threading.Lock()

    def count(self, job: Job, state: JobState, *, code: int = 0, insertion: float | None = None) -> None:
        """Counts a job, unless it was cancelled, or failed with a status of its caller's fault."""
        if state is JobState.CANCELLED or code in MISTAKES:
            return
        version = (job.model, job.version)
        self._metrics.version_jobs.labels(*version, state.value).inc()
        with self._lock:
            outcomes = self._ended.setdefault(version, Outcomes(name=job.model, version=job.version))
            outcomes.completed += state is JobState.COMPLETED
            outcomes.failed += state is JobState.FAILED
            if insertion is not None:
                self._metrics.version_insertion.labels(*version).observe(insertion)
                outcomes.scored += 1
                outcomes.insertion += insertion

    def send(self) -> None:
        """Reports what has ended since the last report. What could not be sent is lost. Raises Unavailable."""
        with self._lock:
            ended, self._ended = self._ended, {}
        for (name, version), outcomes in ended.items():
            if reason := self._registry.report(self._worker, time.time_ns(), outcomes):
                _log.error("canary-rolled-back", model=name, version=version, reason=reason)

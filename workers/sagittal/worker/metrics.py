"""Prometheus metrics of a worker. Labels are registered models and listed methods, so that their number is bounded."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from sagittal.core.jobs import JobState
from sagittal.worker.quality import QualityMetrics

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)
_SHARES = tuple(step / 20 for step in range(1, 21))
_STEP_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

#: Outcomes of loading a model.
READY, FAILED, DIED, QUARANTINED = OUTCOMES = ("ready", "failed", "died", "quarantined")

_MODEL = ("model",)
_METHOD = (*_MODEL, "method")
_VERSION = (*_MODEL, "version")


@dataclass(frozen=True, slots=True)
class WorkerMetrics:
    """Metrics of a worker."""

    jobs: Counter
    version_jobs: Counter
    version_insertion: Histogram
    running: Gauge
    wait: Histogram
    run: Histogram
    evaluations: Counter
    remembered: Counter
    batch_fill: Histogram
    busy: Counter
    step: Histogram
    device_seconds: Counter
    quality: QualityMetrics
    retries: Counter
    leases_lost: Counter
    cancel_to_idle: Histogram
    loaded: Gauge
    load_seconds: Gauge
    loads: Counter
    model_memory: Gauge
    device_memory: Gauge
    queue_errors: Counter
    restarts: Counter

    @classmethod
    def create(cls, registry: CollectorRegistry) -> "WorkerMetrics":
        """Registers the metrics."""
        made: Mapping[str, Any] = {field: row.register(registry) for field, row in _METRICS.items()}
        return cls(quality=QualityMetrics.create(registry), **made)

    def expect(self, model: str, methods: Iterable[str]) -> None:
        """Sets the counters that alerts use to 0 before a model's first job, so that its first failure is visible."""
        self.retries.labels(model)
        for method in methods:
            self.quality.expect(model, method)
            for state in JobState:
                if state.ended:
                    self.jobs.labels(model, method, state.value)

    def forget(self, model: str, version: str) -> None:
        """Removes the series of a version that is no longer registered: versions change while a worker runs."""
        for gauge in (self.loaded, self.load_seconds, self.model_memory):
            gauge.remove(model, version)
        for outcome in OUTCOMES:
            self.loads.remove(model, version, outcome)
        for state in (JobState.COMPLETED, JobState.FAILED):
            self.version_jobs.remove(model, version, state.value)
        self.version_insertion.remove(model, version)


@dataclass(frozen=True, slots=True)
class _Row:
    """Declaration of a metric."""

    kind: type[Counter | Gauge | Histogram]
    name: str
    text: str
    labels: Sequence[str] = ()
    buckets: Sequence[float] = ()
    """Upper bounds of a histogram."""

    def register(self, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
        """Registers and returns the metric."""
        bounds: Mapping[str, Any] = {"buckets": self.buckets} if self.buckets else {}
        return self.kind(self.name, self.text, self.labels, registry=registry, **bounds)


#: Each field of `WorkerMetrics` except the quality metrics.
_METRICS: Mapping[str, _Row] = {
    "jobs": _Row(Counter, "sagittal_jobs", "Jobs ended, by state.", (*_METHOD, "state")),
    "version_jobs": _Row(
        Counter,
        "sagittal_version_jobs",
        "Jobs ended, by version of the model: completed, or failed without a mistake of the caller.",
        (*_VERSION, "state"),
    ),
    "version_insertion": _Row(
        Histogram,
        "sagittal_version_insertion_auc",
        "Insertion AUC served, by version of the model.",
        _VERSION,
        (0.25, 0.5, 0.75, 1.0),
    ),
    "running": _Row(Gauge, "sagittal_jobs_running", "Jobs that are running.", _MODEL),
    "wait": _Row(
        Histogram, "sagittal_queue_wait_seconds", "Time from acceptance to start.", (*_MODEL, "lane"), _SECONDS
    ),
    "run": _Row(Histogram, "sagittal_run_seconds", "Time from start to end.", _METHOD, _SECONDS),
    "evaluations": _Row(
        Counter, "sagittal_evaluations", "Model evaluations, by kind: forward or gradient.", (*_METHOD, "kind")
    ),
    "remembered": _Row(
        Counter,
        "sagittal_remembered_evaluations",
        "Evaluations answered from memory, because a job on the same image and baseline had requested them.",
        _METHOD,
    ),
    "batch_fill": _Row(
        Histogram, "sagittal_batch_fill_ratio", "Masked images in a batch over the batch size.", _MODEL, _SHARES
    ),
    "busy": _Row(
        Counter,
        "sagittal_device_busy_seconds",
        "Time of batches and of calls with the model; on a GPU, by its own clock.",
        _MODEL,
    ),
    "step": _Row(
        Histogram,
        "sagittal_engine_step_seconds",
        "Time of an engine step: a batch, or a call with the model.",
        _MODEL,
        _STEP_SECONDS,
    ),
    "device_seconds": _Row(
        Counter, "sagittal_device_seconds", "Device time of jobs: their share of each batch, by rows.", _METHOD
    ),
    "retries": _Row(Counter, "sagittal_retries", "Attempts after a job's first.", _MODEL),
    "leases_lost": _Row(Counter, "sagittal_leases_lost", "Leases that this worker lost."),
    "cancel_to_idle": _Row(
        Histogram,
        "sagittal_cancel_to_idle_seconds",
        "Time from the acceptance of a cancellation to the end of the job's last step.",
        (),
        _STEP_SECONDS,
    ),
    "loaded": _Row(Gauge, "sagittal_model_ready", "1 if the model is ready.", _VERSION),
    "load_seconds": _Row(Gauge, "sagittal_model_load_seconds", "Time to load the model.", _VERSION),
    "loads": _Row(
        Counter,
        "sagittal_model_loads",
        "Loads of a model, by outcome: ready, failed, died (the process died or hung), or quarantined.",
        (*_VERSION, "outcome"),
    ),
    "model_memory": _Row(Gauge, "sagittal_model_memory_bytes", "Memory of a loaded model's weights.", _VERSION),
    "device_memory": _Row(
        Gauge,
        "sagittal_device_memory_bytes",
        "Memory of the device, by kind: used and total. On a CPU, that of this process.",
        ("device", "kind"),
    ),
    "restarts": _Row(
        Counter,
        "sagittal_worker_restarts",
        "Restarts of this worker's process, by the reason: crashed, killed, hung or memory.",
        ("reason",),
    ),
    "queue_errors": _Row(Counter, "sagittal_queue_errors", "Failed calls to the queue, by call.", ("call",)),
}

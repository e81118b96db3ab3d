"""Prometheus metrics of a worker. Labels come from registered models and the table of methods: they are bounded."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from sagittal.core.jobs import JobState
from sagittal.worker.quality import QualityMetrics

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)
_SHARES = tuple(step / 20 for step in range(1, 21))
_STEP_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

#: How loading a model may end.
READY, FAILED, DIED, QUARANTINED = OUTCOMES = ("ready", "failed", "died", "quarantined")

_MODEL = ("model",)
_METHOD = (*_MODEL, "method")
_VERSION = (*_MODEL, "version")


@dataclass(frozen=True, slots=True)
class WorkerMetrics:
    """What a worker counts."""

    jobs: Counter
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
        """Shows the counters that alerts watch as 0 before a model's first job, so that its first failure counts."""
        self.retries.labels(model)
        for method in methods:
            self.quality.baseline_confident.labels(model, method)
            for state in JobState:
                if state.ended:
                    self.jobs.labels(model, method, state.value)

    def forget(self, model: str, version: str) -> None:
        """Shows a version no more that is no longer registered: versions come and go while a worker lives."""
        for gauge in (self.loaded, self.load_seconds, self.model_memory):
            gauge.remove(model, version)
        for outcome in OUTCOMES:
            self.loads.remove(model, version, outcome)


@dataclass(frozen=True, slots=True)
class _Row:
    """How a metric is declared."""

    kind: type[Counter | Gauge | Histogram]
    name: str
    text: str
    labels: Sequence[str] = ()
    buckets: Sequence[float] = ()
    """Upper bounds of a histogram."""

    def register(self, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
        """Returns the metric, which the registry shows from now on."""
        bounds: Mapping[str, Any] = {"buckets": self.buckets} if self.buckets else {}
        return self.kind(self.name, self.text, self.labels, registry=registry, **bounds)


#: Each field of `WorkerMetrics`, but the quality's.
_METRICS: Mapping[str, _Row] = {
    "jobs": _Row(Counter, "sagittal_jobs", "Jobs ended, by state.", (*_METHOD, "state")),
    "running": _Row(Gauge, "sagittal_jobs_running", "Jobs that run now.", _MODEL),
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
        "Evaluations that were spared, since a job on the same picture and baseline had asked for the same.",
        _METHOD,
    ),
    "batch_fill": _Row(
        Histogram, "sagittal_batch_fill_ratio", "Masked images in a batch over the batch size.", _MODEL, _SHARES
    ),
    "busy": _Row(Counter, "sagittal_device_busy_seconds", "Time spent in engine steps.", _MODEL),
    "step": _Row(
        Histogram,
        "sagittal_engine_step_seconds",
        "Time of an engine step: a batch, or a call with the model.",
        _MODEL,
        _STEP_SECONDS,
    ),
    "device_seconds": _Row(
        Counter, "sagittal_device_seconds", "Device time of jobs: of each batch, their share by rows.", _METHOD
    ),
    "retries": _Row(Counter, "sagittal_retries", "Attempts after a job's first.", _MODEL),
    "leases_lost": _Row(Counter, "sagittal_leases_lost", "Leases taken from this worker."),
    "cancel_to_idle": _Row(
        Histogram,
        "sagittal_cancel_to_idle_seconds",
        "Time from when a cancellation was accepted to the end of the job's last step.",
        (),
        _STEP_SECONDS,
    ),
    "loaded": _Row(Gauge, "sagittal_model_ready", "1 where the model is ready.", _VERSION),
    "load_seconds": _Row(Gauge, "sagittal_model_load_seconds", "Time that loading took.", _VERSION),
    "loads": _Row(
        Counter,
        "sagittal_model_loads",
        "Times that a model was loaded, by outcome: ready, failed, died (its process did, or hung), or quarantined.",
        (*_VERSION, "outcome"),
    ),
    "model_memory": _Row(Gauge, "sagittal_model_memory_bytes", "Memory of a loaded model's weights.", _VERSION),
    "device_memory": _Row(
        Gauge,
        "sagittal_device_memory_bytes",
        "Memory of the device, by kind: used and total. On the CPU, that of this process.",
        ("device", "kind"),
    ),
    "restarts": _Row(
        Counter,
        "sagittal_worker_restarts",
        "Restarts of this worker's process, by why the one before ended: crashed, killed, hung or memory.",
        ("reason",),
    ),
    "queue_errors": _Row(Counter, "sagittal_queue_errors", "Calls to the queue that failed, by call.", ("call",)),
}

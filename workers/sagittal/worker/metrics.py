"""Prometheus metrics of a worker. Labels come from registered models and the table of methods: they are bounded."""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from sagittal.worker.quality import QualityMetrics

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)
_SHARES = tuple(step / 20 for step in range(1, 21))
_STEP_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


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

    @classmethod
    def create(cls, registry: CollectorRegistry) -> "WorkerMetrics":
        """Registers the metrics."""
        by_method = ("model", "method")
        return cls(
            jobs=Counter("sagittal_jobs", "Jobs ended, by state.", (*by_method, "state"), registry=registry),
            running=Gauge("sagittal_jobs_running", "Jobs that run now.", ("model",), registry=registry),
            wait=Histogram(
                "sagittal_queue_wait_seconds",
                "Time from acceptance to start.",
                ("model", "lane"),
                registry=registry,
                buckets=_SECONDS,
            ),
            run=Histogram(
                "sagittal_run_seconds", "Time from start to end.", by_method, registry=registry, buckets=_SECONDS
            ),
            evaluations=Counter(
                "sagittal_evaluations",
                "Model evaluations, by kind: forward or gradient.",
                (*by_method, "kind"),
                registry=registry,
            ),
            remembered=Counter(
                "sagittal_remembered_evaluations",
                "Evaluations that were spared, since a job on the same picture and baseline had asked for the same.",
                by_method,
                registry=registry,
            ),
            batch_fill=Histogram(
                "sagittal_batch_fill_ratio",
                "Masked images in a batch over the batch size.",
                ("model",),
                registry=registry,
                buckets=_SHARES,
            ),
            busy=Counter("sagittal_device_busy_seconds", "Time spent in engine steps.", ("model",), registry=registry),
            step=Histogram(
                "sagittal_engine_step_seconds",
                "Time of an engine step: a batch, or a call with the model.",
                ("model",),
                registry=registry,
                buckets=_STEP_SECONDS,
            ),
            device_seconds=Counter(
                "sagittal_device_seconds",
                "Device time of jobs: of each batch, their share by rows.",
                by_method,
                registry=registry,
            ),
            quality=QualityMetrics.create(registry),
            retries=Counter("sagittal_retries", "Attempts after a job's first.", ("model",), registry=registry),
            leases_lost=Counter("sagittal_leases_lost", "Leases taken from this worker.", registry=registry),
            cancel_to_idle=Histogram(
                "sagittal_cancel_to_idle_seconds",
                "Time from when a cancellation was accepted to the end of the job's last step.",
                registry=registry,
                buckets=_STEP_SECONDS,
            ),
            loaded=Gauge(
                "sagittal_model_ready", "1 where the model is ready.", ("model", "version"), registry=registry
            ),
            load_seconds=Gauge(
                "sagittal_model_load_seconds", "Time that loading took.", ("model", "version"), registry=registry
            ),
            loads=Counter(
                "sagittal_model_loads",
                "Times that a model was loaded, by outcome: ready or failed.",
                ("model", "version", "outcome"),
                registry=registry,
            ),
            model_memory=Gauge(
                "sagittal_model_memory_bytes",
                "Memory of a loaded model's weights.",
                ("model", "version"),
                registry=registry,
            ),
            device_memory=Gauge(
                "sagittal_device_memory_bytes",
                "Memory of the device, by kind: used and total. On the CPU, that of this process.",
                ("device", "kind"),
                registry=registry,
            ),
            queue_errors=Counter(
                "sagittal_queue_errors", "Calls to the queue that failed, by call.", ("call",), registry=registry
            ),
        )

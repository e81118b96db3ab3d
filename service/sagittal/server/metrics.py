"""Prometheus metrics of the service. Labels have few values, such as RPCs, codes, models and lanes."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from typing import Any

import grpc
import structlog
from grpc.aio import AbortError
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sagittal.core.errors import Overloaded, SagittalError, StreamMoved, Unavailable
from sagittal.core.jobs import Backlog, Job, Lane, NewJob
from sagittal.process.decoder_metrics import DecoderMetrics
from sagittal.server.rpc.access import OPEN_SERVICES, current_caller
from sagittal.server.rpc.endpoint import CertificateFiles
from sagittal.server.rpc.layers import Call, Proceed
from sagittal.server.tenant_refusals import TenantRefusals

_log = structlog.get_logger(__name__)

#: Upper bounds of the histogram of RPC durations, in seconds.
_RPC_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)

_IDLE = Backlog(queued=0, running=0, oldest_seconds=0.0)

_CODES: Mapping[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


class ServiceMetrics:
    """Metrics of RPCs, jobs and the queue."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.rpcs_started = Counter("sagittal_rpcs_started", "RPCs started.", ["rpc"], registry=registry)
        self.rpcs_handled = Counter(
            "sagittal_rpcs_handled",
            "RPCs ended, including cancelled ones, by status code.",
            ["rpc", "code"],
            registry=registry,
        )
        self.rpc_seconds = Histogram(
            "sagittal_rpc_seconds", "Duration of RPCs in seconds.", ["rpc"], buckets=_RPC_SECONDS, registry=registry
        )
        self.calls_refused = Counter(
            "sagittal_calls_refused",
            "Calls refused because too many were open, by the setting that limits them.",
            ["reason"],
            registry=registry,
        )
        self.streams = Gauge("sagittal_streams_in_flight", "Open streams.", ["rpc"], registry=registry)
        self.jobs_accepted = Counter(
            "sagittal_jobs_accepted", "Accepted jobs.", ["model", "method", "lane"], registry=registry
        )
        self.jobs_rejected = Counter(
            "sagittal_jobs_rejected", "Refused requests for a job, by error reason.", ["reason"], registry=registry
        )
        self._tenant_refusals = TenantRefusals(registry)
        self.jobs_dropped = Counter(
            "sagittal_jobs_dropped", "Jobs cancelled because their caller disconnected.", ["rpc"], registry=registry
        )
        self.first_event = Histogram(
            "sagittal_first_event_seconds",
            "Time from acceptance of a job to the first result in its stream, in seconds.",
            ["model", "method", "lane"],
            buckets=_RPC_SECONDS,
            registry=registry,
        )
        self.certificate = CertificateGauge(registry)
        self.queue = QueueGauges(registry)
        self.decoders = DecoderMetrics(registry)
        self.queue_up = Gauge("sagittal_queue_up", "1 while Redis answers, otherwise 0.", registry=registry)
        self.queue_errors = Counter(
            "sagittal_queue_errors", "Failed calls to the queue, by call.", ["call"], registry=registry
        )
        self.stored_bytes = Gauge(
            "sagittal_stored_bytes", "Stored bytes of requests, images, events and uploads.", registry=registry
        )
        self.stored_bytes_limit = Gauge(
            "sagittal_stored_bytes_limit",
            "Limit of the stored bytes (max_stored_bytes), past which the oldest results are deleted early.",
            registry=registry,
        )
        self.rolled_back = Gauge(
            "sagittal_canary_rolled_back",
            "1 if the canary was rolled back, 0 while it runs; absent without a canary.",
            ["model", "version"],
            registry=registry,
        )
        self._canaries: set[tuple[str, str]] = set()
        self.registry_lost = Counter(
            "sagittal_registry_lost",
            "Times that the model registry was found to have lost its data.",
            registry=registry,
        )
        self.queue_errors.labels("look")  # starts at 0
        self.jobs_rejected.labels(Overloaded.reason)

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Layer that counts RPCs by status code."""
        rpc = call.method.removeprefix("/")
        self.rpcs_started.labels(rpc).inc()
        if call.streams:
            self.streams.labels(rpc).inc()
        begin, code = time.perf_counter(), "OK"
        try:
            return await proceed()
        except BaseException as error:
            code = self._code(error, call)
            if not call.method.startswith(OPEN_SERVICES):
                self.refused(error, current_caller().tenant)
            raise
        finally:
            self.rpcs_handled.labels(rpc, code).inc()
            self.rpc_seconds.labels(rpc).observe(time.perf_counter() - begin)
            if call.streams:
                self.streams.labels(rpc).dec()

    def accepted(self, job: NewJob) -> None:
        """Counts an accepted job."""
        self.jobs_accepted.labels(job.model, job.method or job.kind.value, job.lane.value).inc()

    def refused(self, error: BaseException, tenant: str) -> None:
        """Counts an error that a tenant got because a limit was reached."""
        if isinstance(error, Overloaded):
            self._tenant_refusals.count(tenant)

    def first_result(self, job: Job) -> None:
        """Observes the time to the first result that is sent to the job's caller."""
        seconds = max(0.0, time.time() - job.created)
        self.first_event.labels(job.model, job.method or job.kind.value, job.lane.value).observe(seconds)

    def backlog(self, backlog: Mapping[tuple[str, str], Backlog], models: Iterable[str]) -> None:
        """Publishes the queue's present state: zeros for idle registered models, nothing for removed ones."""
        self.queue.show({(model, lane.value): _IDLE for model in models for lane in Lane} | dict(backlog))

    def canaries(self, rolled_back: Mapping[tuple[str, str], bool]) -> None:
        """Publishes whether each canary was rolled back, by its name and version."""
        for gone in self._canaries - rolled_back.keys():
            self.rolled_back.remove(*gone)
        self._canaries = set(rolled_back)
        for canary, ended in rolled_back.items():
            self.rolled_back.labels(*canary).set(ended)

    def _code(self, error: BaseException, call: Call) -> str:
        if isinstance(error, SagittalError):
            if isinstance(error, Unavailable) and not isinstance(error, StreamMoved):
                self.queue_errors.labels(call.method.rpartition("/")[2]).inc()
            return _CODES[error.code]
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            return "CANCELLED"
        if isinstance(error, AbortError):
            code: Any = call.context.code()
            return str(getattr(code, "name", _CODES.get(code, "UNKNOWN")))
        return "INTERNAL"


class CertificateGauge(Collector):
    """Gauge of the time until the endpoint's certificate expires; nothing without TLS, or if the file has none."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.files: CertificateFiles | None = None
        self._left = Gauge(
            "sagittal_certificate_expiry_seconds",
            "Time until the certificate of the gRPC endpoint expires; negative afterwards. Absent without TLS.",
            registry=None,
        )
        self.metrics = (self._left,)
        registry.register(self)

    def collect(self) -> Sequence[Metric]:
        """Returns the gauge; called by the thread of a scrape."""
        if self.files is None:
            return []
        try:
            self._left.set(self.files.expires() - time.time())
        except ValueError as error:
            _log.warning("certificate-not-understood", error=str(error), remedy="set tls.certificate to a PEM file")
            return []
        return list(self._left.collect())


class QueueGauges(Collector):
    """Gauges of the queue, replaced together, so that no scrape counts a job both as queued and as running."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["model", "lane"]
        self._queued = Gauge("sagittal_queue_depth", "Queued executions.", labels, registry=None)
        self._running = Gauge("sagittal_queue_running", "Running executions.", labels, registry=None)
        self._oldest = Gauge(
            "sagittal_queue_oldest_seconds", "Age of the oldest queued execution in seconds.", labels, registry=None
        )
        self._evaluations = Gauge(
            "sagittal_queue_evaluations",
            "Model evaluations that the queued executions are estimated to need.",
            labels,
            registry=None,
        )
        self.metrics = (self._queued, self._running, self._oldest, self._evaluations)
        self._shown: set[tuple[str, str]] = set()
        self._lock = Lock()
        registry.register(self)

    def collect(self) -> Sequence[Metric]:
        """Returns all gauges; called by the thread of a scrape."""
        with self._lock:
            return [family for metric in self.metrics for family in metric.collect()]

    def show(self, backlog: Mapping[tuple[str, str], Backlog]) -> None:
        """Replaces all values, by model and lane."""
        with self._lock:
            for gone in self._shown - backlog.keys():
                for metric in self.metrics:
                    metric.remove(*gone)
            self._shown = set(backlog)
            for (model, lane), work in backlog.items():
                self._queued.labels(model, lane).set(work.queued)
                self._running.labels(model, lane).set(work.running)
                self._oldest.labels(model, lane).set(work.oldest_seconds)
                self._evaluations.labels(model, lane).set(work.queued_evaluations)

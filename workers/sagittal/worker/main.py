"""The program `sagittal-worker`."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

import structlog
import torch
from prometheus_client import REGISTRY

from sagittal.core.models import InvalidModelFile
from sagittal.engine.cpu.memory import keep_freed_memory
from sagittal.models.loading import choose_device
from sagittal.models.sources import ModelUnavailable
from sagittal.process.build_info import export_build_info
from sagittal.process.decoder_metrics import DecoderMetrics
from sagittal.process.logs import configure_logging
from sagittal.process.probes import LIVE, READY, serve_metrics, start_metrics_server
from sagittal.process.settings import UnusableSettings, read_settings
from sagittal.process.supervision import SupervisionMetrics
from sagittal.process.tracing import Tracer
from sagittal.process.tracing_start import TracingMissing, start_tracing
from sagittal.queue.metrics import QueueMetrics
from sagittal.queue.shards import open_worker
from sagittal.registry.redis import RedisWorkerRegistry
from sagittal.worker.concepts.store import connect_concept_store
from sagittal.worker.cpu_quota import usable_processors
from sagittal.worker.devices import named_devices, watch_memory
from sagittal.worker.hosting.reconciler import LoadLimits, Reconciler
from sagittal.worker.metrics import WorkerMetrics
from sagittal.worker.outcomes import OutcomeReports
from sagittal.worker.process import Worker
from sagittal.worker.processes import CRASHED, OUTGROWN, USAGE, run_on_each
from sagittal.worker.settings import WorkerSettings
from sagittal.worker.vitals import Watched

log = structlog.get_logger(__name__)


def main() -> None:
    """Runs a worker's processes until SIGTERM or SIGINT."""
    try:
        settings = read_settings(WorkerSettings)
    except UnusableSettings as error:
        sys.stderr.write(f"sagittal-worker: {error}\n")
        sys.exit(USAGE)
    configure_logging(settings.log_format, settings.log_level)
    try:
        sys.exit(run_on_each(named_devices(settings.device), settings, work))
    except (ModelUnavailable, OSError) as error:
        log.error("cannot-start", error=str(error))
        sys.exit(USAGE)


def work(settings: WorkerSettings, watched: Watched | None = None) -> None:
    """Runs the process of one device until SIGTERM or SIGINT, or until it must restart.

    Args:
        settings: Settings of this process.
        watched: State shared with the parent that watches the process; None if there is no parent.
    """
    try:
        device = choose_device(settings.device)
        _settle_memory(device)
        tracer = start_tracing(settings.tracing, program="sagittal-worker", instance=settings.worker_name)
        worker = _make(settings, device, tracer, watched or Watched())
    except (InvalidModelFile, ModelUnavailable, OSError, TracingMissing) as error:
        log.error("cannot-start", error=str(error))
        sys.exit(USAGE)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _drain(worker))
    told = {"models": str(settings.models_file), "threads": torch.get_num_threads()}
    log.info("worker-started", worker=settings.worker_name, pid=os.getpid(), **told)
    worker.run()
    tracer.close()
    log.info("worker-stopped", worker=settings.worker_name)
    if worker.crashed:
        sys.exit(CRASHED)
    if worker.outgrown:
        sys.exit(OUTGROWN)


def _settle_memory(device: torch.device) -> None:
    """Configures the allocator, on a CPU; it must be called before the first thread starts."""
    if device.type == "cpu" and not keep_freed_memory():
        log.info("allocator-left-alone", reason="the C library has no mallopt")


def _make(settings: WorkerSettings, device: torch.device, tracer: Tracer, watched: Watched) -> Worker:
    torch.set_num_threads(settings.threads or usable_processors())
    metrics = WorkerMetrics.create(REGISTRY)
    DecoderMetrics(REGISTRY)
    observer = QueueMetrics(REGISTRY)
    registry = RedisWorkerRegistry(settings.queue, observer)
    for reason, count in watched.restarts.items():
        metrics.restarts.labels(reason).inc(count)
    watch_memory(metrics.device_memory, device)
    models = Reconciler(
        settings.models_file,
        registry,
        metrics,
        worker=settings.worker_name,
        device=device,
        memory_mib=settings.model_memory_mib,
        memo_mib=settings.score_memo_mib,
        access=settings.access(),
        selection=settings.selection(),
        limits=LoadLimits(seconds=settings.load_seconds, attempts=settings.load_attempts),
        watched=watched,
    )
    queue = open_worker(settings.queue, worker=settings.worker_name, observer=observer)
    concepts = connect_concept_store(settings.concepts, settings.queue, observer)
    supervision = SupervisionMetrics(REGISTRY)
    export_build_info(REGISTRY)
    outcomes = OutcomeReports(registry, metrics, settings.worker_name)
    worker = Worker(
        settings, queue, models, metrics, tracer, supervision, watched.vitals, concepts=concepts, outcomes=outcomes
    )
    checks = {LIVE: worker.live, READY: worker.ready}
    if watched.listener is not None:
        serve_metrics(watched.listener, REGISTRY, checks, worker.supervisor)
    elif settings.metrics_port:
        start_metrics_server(settings.metrics_host, settings.metrics_port, REGISTRY, checks, worker.supervisor)
    return worker


def _drain(worker: Worker) -> Callable[[int, FrameType | None], None]:
    def handle(_signal: int, _frame: FrameType | None) -> None:
        worker.drain()

    return handle


if __name__ == "__main__":
    main()

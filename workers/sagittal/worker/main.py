"""The program `sagittal-worker`."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

import structlog
import torch
from prometheus_client import REGISTRY

from sagittal.engine.allocator import keep_freed_memory
from sagittal.models.entry import InvalidModelFile
from sagittal.models.loading import choose_device
from sagittal.models.sources import ModelUnavailable
from sagittal.runtime.probes import LIVE, READY, serve_metrics, start_metrics_server
from sagittal.runtime.queue_metrics import QueueMetrics
from sagittal.runtime.reading_settings import UnusableSettings, read_settings
from sagittal.runtime.redis_queue import connect_worker_queue, connect_worker_registry
from sagittal.runtime.supervision import SupervisionMetrics
from sagittal.runtime.telemetry import configure_logging
from sagittal.runtime.tracing import Tracer
from sagittal.runtime.tracing_start import TracingMissing, start_tracing
from sagittal.worker.device_memory import watch_memory
from sagittal.worker.devices import inherited_listener, named_devices, run_on_each
from sagittal.worker.metrics import WorkerMetrics
from sagittal.worker.models import HostedModels
from sagittal.worker.processors import usable_processors
from sagittal.worker.settings import WorkerSettings
from sagittal.worker.worker import Worker

log = structlog.get_logger(__name__)

#: Exit statuses for a worker that ended by an error of its own, and for settings that cannot be used.
CRASHED, USAGE = 1, 2


def main() -> None:
    """Runs a worker until SIGTERM or SIGINT."""
    try:
        settings = read_settings(WorkerSettings)
    except UnusableSettings as error:
        sys.stderr.write(f"sagittal-worker: {error}\n")
        sys.exit(USAGE)
    configure_logging(settings.log_format, settings.log_level)
    try:
        if len(devices := named_devices(settings.device)) > 1:
            sys.exit(run_on_each(devices, settings))
        _settle_memory(devices)
        tracer = start_tracing(settings.tracing, program="sagittal-worker", instance=settings.worker_name)
        worker = _make(settings, tracer)
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


def _settle_memory(devices: Sequence[str]) -> None:
    """Settles how memory is kept, on a CPU; before the first thread, as it must be."""
    if choose_device(next(iter(devices), "")).type == "cpu" and not keep_freed_memory():
        log.info("allocator-left-alone", reason="the C library has no mallopt")


def _make(settings: WorkerSettings, tracer: Tracer) -> Worker:
    torch.set_num_threads(settings.threads or usable_processors())
    metrics = WorkerMetrics.create(REGISTRY)
    observer = QueueMetrics(REGISTRY)
    registry = connect_worker_registry(settings.queue, observer)
    device = choose_device(next(iter(named_devices(settings.device)), ""))
    watch_memory(metrics.device_memory, device)
    models = HostedModels(
        settings.models_file,
        registry,
        metrics,
        worker=settings.worker_name,
        device=device,
        memory_mib=settings.model_memory_mib,
        memo_mib=settings.score_memo_mib,
        access=settings.access(),
        selection=settings.selection(),
    )
    queue = connect_worker_queue(settings.queue, worker=settings.worker_name, observer=observer)
    worker = Worker(settings, queue, models, metrics, tracer, SupervisionMetrics(REGISTRY))
    checks = {LIVE: worker.live, READY: worker.ready}
    if (listener := inherited_listener()) is not None:
        serve_metrics(listener, REGISTRY, checks, worker.supervisor)
    elif settings.metrics_port:
        start_metrics_server(settings.metrics_host, settings.metrics_port, REGISTRY, checks, worker.supervisor)
    return worker


def _drain(worker: Worker) -> Callable[[int, FrameType | None], None]:
    def handle(_signal: int, _frame: FrameType | None) -> None:
        worker.drain()

    return handle


if __name__ == "__main__":
    main()

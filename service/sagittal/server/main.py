"""`sagittal-service`: serves the API until SIGTERM, then drains and exits with status 0."""

import argparse
import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import structlog
from prometheus_client import REGISTRY
from pydantic import BaseModel

from sagittal.core.models import InvalidModelFile, ModelEntry, read_entries
from sagittal.page.settings import PageSettings
from sagittal.process.build_info import export_build_info
from sagittal.process.logs import configure_logging, own_name
from sagittal.process.probes import LIVE, READY, MetricsServer, start_metrics_server
from sagittal.process.settings import UnusableSettings, read_settings
from sagittal.process.starting import naming_extra
from sagittal.process.supervision import SupervisionMetrics, Supervisor
from sagittal.process.tracing import NO_TRACER, Tracer
from sagittal.process.tracing_start import TracingMissing, start_tracing
from sagittal.queue.connection import check_server
from sagittal.queue.metrics import QueueMetrics
from sagittal.queue.shards import open_jobs
from sagittal.registry.concept_sets import ConceptSets
from sagittal.registry.redis import RedisModelRegistry
from sagittal.server.rpc.endpoint import CannotListen
from sagittal.server.service import Service
from sagittal.server.settings import ServiceSettings

#: Exit statuses: stopped on request; invalid setting; address not available.
EXIT_OK, EXIT_SETTINGS, EXIT_ADDRESS = 0, 2, 3

Close = Callable[[], Coroutine[Any, Any, None]]

_log = structlog.get_logger(__name__)


def main() -> int:
    """Runs the service and returns its exit status."""
    _arguments()
    try:
        settings = read_settings(ServiceSettings)
        page = read_settings(PageSettings) if settings.page else None
        entries = [entry for path in settings.models_files for entry in read_entries(path)]
    except (UnusableSettings, InvalidModelFile) as error:
        sys.stderr.write(f"sagittal-service: {error}\n")
        return EXIT_SETTINGS
    configure_logging(settings.log_format, settings.log_level)
    try:
        tracer = start_tracing(settings.tracing, program="sagittal-service", instance=own_name())
    except TracingMissing as error:
        sys.stderr.write(f"sagittal-service: {error}\n")
        return EXIT_SETTINGS
    gc.freeze()  # full collections, which stop all calls, do not visit what was imported
    try:
        asyncio.run(serve(settings, tracer, entries, page))
    except (CannotListen, OSError) as error:
        _log.error("service-cannot-start", error=str(error))
        return EXIT_ADDRESS
    finally:
        tracer.close()
    return EXIT_OK


async def serve(
    settings: ServiceSettings,
    tracer: Tracer = NO_TRACER,
    entries: Sequence[ModelEntry] = (),
    page: PageSettings | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then drains.

    Args:
        settings: Settings of the service.
        tracer: Creates spans.
        entries: Entries of model files.
        page: Settings of the page, if this process serves it.

    Raises:
        CannotListen, OSError: an address is not available.
        RuntimeError: the HTTP server of the page ended.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    export_build_info(REGISTRY)
    observer = QueueMetrics(REGISTRY)
    registry = RedisModelRegistry(settings.queue, observer)
    inspect = partial(check_server, settings.queue)
    supervisor = Supervisor(SupervisionMetrics(REGISTRY))
    asyncio.get_running_loop().set_exception_handler(supervisor.note_loop_failure)
    queue = open_jobs(settings.queue, observer, supervisor)
    most = settings.concepts.max_tenant_bytes
    service = Service(
        settings,
        queue,
        registry,
        REGISTRY,
        concepts=ConceptSets(settings.queue, max_tenant_bytes=most, observer=observer),
        inspect=inspect,
        tracer=tracer,
        supervisor=supervisor,
        entries=entries,
    )
    metrics = _metrics(settings, service, supervisor)
    closing: list[Close] = [service.stop]
    try:
        await service.start()
        await (stop.wait() if page is None else _serve_page(service, page, stop, closing))
    finally:
        for close in closing:  # the page after the service, which moves the streams of browsers before they are cut
            await close()
        await registry.close()
        if metrics is not None:
            await asyncio.to_thread(metrics.close)


async def _serve_page(service: Service, settings: PageSettings, stop: asyncio.Event, closing: list[Close]) -> None:
    """Serves the page over the service's own channel until `stop`. Raises CannotListen or ServerEnded."""
    with naming_extra("sagittal-service", "page"):
        from sagittal.page.app import make_app  # noqa: PLC0415 - only if the page is served
        from sagittal.page.http import HttpServer  # noqa: PLC0415
    channel: Any = service.channel  # is called as a grpc.aio.Channel is
    server = HttpServer(make_app(channel, settings), settings)
    await server.start()
    closing.append(server.stop)
    _log.info("page-started", listen=f"{settings.listen_host}:{settings.listen_port}")
    await server.serve_until(stop)


def _metrics(settings: ServiceSettings, service: Service, supervisor: Supervisor) -> MetricsServer | None:
    if not settings.metrics_port:
        return None
    try:
        checks = {LIVE: service.live, READY: service.ready}
        return start_metrics_server(settings.metrics_host, settings.metrics_port, REGISTRY, checks, supervisor)
    except OSError as error:
        place = f"{settings.metrics_host}:{settings.metrics_port}"
        raise CannotListen(
            f"cannot serve metrics on {place}: {error.strerror}; set SAGITTAL_METRICS_PORT to a free port, or 0"
        ) from error


def _arguments() -> None:
    """Handles --help and --version; the service takes no other arguments."""
    parser = argparse.ArgumentParser(
        prog="sagittal-service",
        description="The gRPC service of Sagittal. Its settings are environment variables:",
        epilog="\n".join(describe(ServiceSettings, "SAGITTAL_")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sagittal {version('sagittal')}")
    parser.parse_args()


def describe(settings: type[BaseModel], prefix: str) -> Iterator[str]:
    """Yields the help of each setting: its environment variable, default and description."""
    for name, field in settings.model_fields.items():
        variable = f"{prefix}{name.upper()}"
        nested: Any = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            yield from describe(nested, f"{variable}__")
        else:
            default = field.get_default(call_default_factory=True)
            yield f"{variable} (default: {_shown(default)})\n    {' '.join((field.description or '').split())}"


def _shown(default: object) -> str:
    if default in (None, (), "", {}):
        return "not set"
    return ",".join(default) if isinstance(default, tuple) else str(default)


if __name__ == "__main__":
    sys.exit(main())

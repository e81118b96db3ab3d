"""Assembles the service: servicers on top of queue and registry, inside the layers, on an endpoint."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import grpc
import structlog
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from sagittal.core.models import ModelEntry
from sagittal.process.supervision import Supervised, SupervisionMetrics, Supervisor
from sagittal.process.tracing import NO_TRACER, Tracer
from sagittal.queue.protocol import JobQueue
from sagittal.registry.concept_files import ConceptFiles
from sagittal.registry.concept_sets import ConceptSets
from sagittal.registry.protocol import ModelRegistry
from sagittal.server.batches import BatchServicer
from sagittal.server.catalogue import Catalogue
from sagittal.server.concepts import ConceptFits, ConceptServicer
from sagittal.server.explain_many import Many
from sagittal.server.explanations import ExplanationServicer, Retries
from sagittal.server.images import Pictures
from sagittal.server.intake import Intake
from sagittal.server.job_images import JobImages
from sagittal.server.job_lists import JobLists
from sagittal.server.metrics import ServiceMetrics
from sagittal.server.models import ModelServicer, Registration
from sagittal.server.readiness import READY_SERVICES, Readiness, RegistryWatch
from sagittal.server.regions import Regions
from sagittal.server.relay import BackgroundTasks, Relay
from sagittal.server.rpc.access import Access, FailedLogins
from sagittal.server.rpc.calls import Calls
from sagittal.server.rpc.endpoint import CertificateFiles, bind, open_addresses, server_options
from sagittal.server.rpc.failures import answer_failures
from sagittal.server.rpc.layers import Layers
from sagittal.server.rpc.local_channel import LocalChannel
from sagittal.server.rpc.requests import RequestBytes
from sagittal.server.rpc.streams import Streams
from sagittal.server.rpc.tracing import Tracing
from sagittal.server.settings import ServiceSettings
from sagittal.v1 import (
    batch_service_pb2_grpc,
    concept_service_pb2_grpc,
    explanation_service_pb2_grpc,
    model_service_pb2_grpc,
)

_SERVICES = ("grpc.health.v1.Health", "grpc.channelz.v1.Channelz", reflection.SERVICE_NAME)

_log = structlog.get_logger(__name__)


class Admin:
    """A second listener for operators: health and channelz, without TLS, tokens or the API."""

    def __init__(self, health: health_aio.HealthServicer) -> None:
        self._health = health
        self._server: grpc.aio.Server | None = None

    async def start(self, address: str) -> int:
        """Starts serving and returns the port.

        Raises:
            CannotListen: the address is not available.
        """
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        channelz.add_channelz_servicer(self._server)
        reflection.enable_server_reflection(_SERVICES, self._server)
        (port,) = bind(self._server, (address,))
        await self._server.start()
        if open_addresses((address,)):
            _log.warning(
                "admin-open-to-the-network",
                listen=address,
                remedy="listen on 127.0.0.1, because channelz shows the addresses of callers",
            )
        _log.info("admin-started", listen=address, port=port)
        return port

    async def stop(self) -> None:
        """Stops immediately; operators' tools retry."""
        if self._server is not None:
            await self._server.stop(None)


#: Time between moving the streams and ending the remaining calls, in seconds.
_LAST_GRACE = 5.0

_REFLECTED = (
    *READY_SERVICES,
    health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
    reflection.SERVICE_NAME,
)


class Service:
    """One replica. It is stateless: any replica can serve any job."""

    def __init__(
        self,
        settings: ServiceSettings,
        queue: JobQueue,
        registry: ModelRegistry,
        metrics: CollectorRegistry,
        *,
        concepts: ConceptSets,
        inspect: Callable[[], Sequence[str]] = tuple,
        tracer: Tracer = NO_TRACER,
        supervisor: Supervisor | None = None,
        entries: Sequence[ModelEntry] = (),
    ) -> None:
        """Assembles the service; `start` starts it.

        Args:
            settings: All settings.
            queue: The queue; closed with the service.
            registry: The model registry.
            metrics: Prometheus registry for the service's metrics.
            concepts: The concept sets; closed with the service.
            inspect: Returns warnings about the queue's server for the operator.
            tracer: Creates the spans of RPCs and jobs.
            supervisor: Supervises the background tasks, including the queue's; None creates one for the service's own.
            entries: Entries of model files to register, so that jobs can be accepted before their workers start.
        """
        self._inspect = inspect
        self._supervisor = supervisor or Supervisor(SupervisionMetrics(metrics))
        self._tracer = tracer
        self._settings = settings
        self._queue = queue
        self._metrics = ServiceMetrics(metrics)
        self._metrics.stored_bytes_limit.set(settings.queue.max_stored_bytes)
        self._streams = Streams(settings.connections.max_stream_seconds)
        self._background = BackgroundTasks(self._supervisor)
        self._registry = registry
        self._entries = tuple(entries)
        self._concepts = concepts
        self._concept_files = ConceptFiles(settings.concepts)
        self._catalogue = Catalogue(registry, settings.model_refresh)
        self._pictures = Pictures(settings.images.limits(), settings.images.decode_processes)
        self._health = health_aio.HealthServicer()
        self._server: grpc.aio.Server | None = None
        self._admin = Admin(self._health)
        self._readiness: Readiness | None = None
        self._tasks: list[Supervised] = []
        self._draining = False
        self.channel: LocalChannel | None = None
        """The RPCs for callers in this process, from `start` on."""
        self.admin_port = 0
        """Port of the second listener; 0 if there is none."""

    async def start(self) -> list[int]:
        """Starts serving, even if Redis does not answer, and returns the ports.

        Raises:
            CannotListen: an address is not available.
        """
        access = Access(self._settings.tokens, FailedLogins(self._settings.logins))
        layers = (
            answer_failures,
            Tracing(self._tracer),
            self._metrics,
            access,
            Calls(self._settings.calls, self._metrics.calls_refused),
            self._streams,
        )
        around = Layers(layers, RequestBytes(self._settings.calls.max_request_bytes_per_tenant))
        self._server = grpc.aio.server(
            interceptors=[around],
            options=server_options(
                self._settings.connections, self._settings.calls, channelz=bool(self._settings.admin_listen)
            ),
        )
        self.channel = LocalChannel(around, max_message_bytes=self._settings.connections.max_message_bytes)
        self._add_services(self._server, self.channel)
        files = CertificateFiles.of(self._settings.tls)
        ports = bind(self._server, self._settings.listen, files)
        self._metrics.certificate.files = files
        place = _place(self._settings.queue.url)
        interval = self._settings.health_interval
        self._readiness = Readiness(
            self._queue,
            RegistryWatch(self._registry, self._entries, self._metrics),
            self._health,
            self._metrics,
            interval=interval,
            place=place,
            inspect=self._inspect,
            ailing=self._supervisor.ailing,
        )
        self._tasks.append(self._supervisor.start_task("readiness", self._readiness.run))
        if self._concept_files.configured:
            sweep = partial(self._concepts.keep_sweeping, self._concept_files)
            self._tasks.append(self._supervisor.start_task("concept-files", sweep))
        await self._server.start()
        if self._settings.admin_listen:
            self.admin_port = await self._admin.start(self._settings.admin_listen)
        exposed = open_addresses(self._settings.listen)
        if exposed and not self._settings.tokens:
            _log.warning("open-to-the-network", listen=exposed, remedy="set SAGITTAL_TOKENS, or listen on 127.0.0.1")
        _log.info("service-started", listen=self._settings.listen, ports=ports, redis=place)
        return ports

    def live(self) -> str:
        """Returns why the process must be restarted; empty if it need not. Thread-safe."""
        return "" if self._readiness is None else self._supervisor.failed() or self._readiness.stalled()

    def ready(self) -> str:
        """Returns why the replica is not ready; empty if it is. Thread-safe."""
        if self._readiness is None:
            return "the service is starting"
        return "the service is draining" if self._draining else self._supervisor.ailing() or self._readiness.wrong

    async def stop(self) -> None:
        """Drains: becomes not ready, accepts no new calls, moves the streams after `drain` seconds, and closes."""
        self._draining = True
        _log.info("service-drains", streams=len(self._streams), seconds=self._settings.drain)
        await self._health.enter_graceful_shutdown()
        if self._server is not None and self.channel is not None:
            grace = self._settings.drain + _LAST_GRACE
            closing = [asyncio.ensure_future(each) for each in (self._server.stop(grace), self.channel.close(grace))]
            await asyncio.wait(closing, timeout=self._settings.drain)
            self._streams.move_all()
            await asyncio.gather(*closing)
        for task in self._tasks:
            await self._supervisor.stop_task(task)
        await self._admin.stop()
        await self._background.wait()
        self._pictures.close()
        await self._concepts.close()
        await self._queue.close()
        _log.info("service-stopped")

    def _add_services(self, server: grpc.aio.Server, channel: LocalChannel) -> None:
        jobs = self._settings.jobs
        intake = Intake(self._queue, self._catalogue, self._pictures, jobs, self._metrics)
        relay = Relay(self._queue, self._background, self._metrics)
        many = Many(intake, relay, jobs.max_in_flight)
        regions = Regions(self._queue, self._catalogue, self._pictures, intake, relay)
        images = JobImages(self._queue, self._pictures)
        retries = Retries(self._queue, intake, relay)
        explanations = ExplanationServicer(
            self._queue,
            intake,
            relay,
            many,
            retries,
            regions,
            images,
            JobLists(self._queue),
            regions_deadline=jobs.regions_deadline,
        )
        registration = Registration(self._registry, self._catalogue, self._queue)
        models = ModelServicer(self._catalogue, registration, intake, relay, jobs.predict_deadline)
        limits = self._settings.fits
        fits = ConceptFits(self._queue, self._catalogue, intake, self._concept_files, limits)
        concepts = ConceptServicer(self._catalogue, relay, fits, self._concepts, self._concept_files, limits)
        batches = BatchServicer(self._queue, intake, max_items_in_flight=jobs.max_items_in_flight)
        places: tuple[Any, ...] = (server, channel)  # both take servicers from the generated functions
        for each in places:
            explanation_service_pb2_grpc.add_ExplanationServiceServicer_to_server(explanations, each)
            batch_service_pb2_grpc.add_BatchServiceServicer_to_server(batches, each)
            model_service_pb2_grpc.add_ModelServiceServicer_to_server(models, each)
            concept_service_pb2_grpc.add_ConceptServiceServicer_to_server(concepts, each)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._settings.reflection:
            reflection.enable_server_reflection(_REFLECTED, server)


def _place(url: str) -> str:
    """Returns the addresses of Redis without credentials."""
    if "," in url:
        return ", ".join(_place(each.strip()) for each in url.split(","))
    parts = urlsplit(url)
    if parts.hostname is None:
        return parts.path
    return f"{parts.hostname}:{parts.port or 6379}"

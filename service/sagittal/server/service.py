"""The service, put together: servicers over the queue and the registry, within the layers, on an endpoint."""

import asyncio
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from sagittal.core.entries import ModelEntry
from sagittal.runtime.queue import JobQueue
from sagittal.runtime.registry import ModelRegistry
from sagittal.runtime.supervision import Supervised, SupervisionMetrics, Supervisor
from sagittal.runtime.tracing import NO_TRACER, Tracer
from sagittal.server.access import Access
from sagittal.server.admin import Admin
from sagittal.server.aftermath import Aftermath
from sagittal.server.catalogue import Catalogue
from sagittal.server.concept_fits import ConceptFits
from sagittal.server.concepts import ConceptServicer
from sagittal.server.endpoint import bind, open_addresses, server_options
from sagittal.server.explanations import ExplanationServicer
from sagittal.server.failures import answer_failures
from sagittal.server.intake import Intake
from sagittal.server.layers import Layers
from sagittal.server.logins import FailedLogins
from sagittal.server.many import Many
from sagittal.server.metrics import ServiceMetrics
from sagittal.server.models import ModelServicer
from sagittal.server.pictures import Pictures
from sagittal.server.readiness import READY_SERVICES, Readiness
from sagittal.server.regions import Regions
from sagittal.server.registration import Registration
from sagittal.server.registry_watch import RegistryWatch
from sagittal.server.relay import Relay
from sagittal.server.retries import Retries
from sagittal.server.settings import ServiceSettings
from sagittal.server.streams import Streams
from sagittal.server.tracing import Tracing
from sagittal.v1 import concept_service_pb2_grpc, explanation_service_pb2_grpc, model_service_pb2_grpc

#: Time between moving the streams and cutting off what is left, in seconds.
_LAST_GRACE = 5.0

_SERVICES = (
    *READY_SERVICES,
    health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
    reflection.SERVICE_NAME,
)

_log = structlog.get_logger(__name__)


class Service:
    """One replica. It holds no state: any replica answers for any job."""

    def __init__(
        self,
        settings: ServiceSettings,
        queue: JobQueue,
        registry: ModelRegistry,
        metrics: CollectorRegistry,
        *,
        inspect: Callable[[], Sequence[str]] = tuple,
        tracer: Tracer = NO_TRACER,
        supervisor: Supervisor | None = None,
        entries: Sequence[ModelEntry] = (),
    ) -> None:
        """Puts the service together.

        Args:
            settings: All settings.
            queue: The queue; closed with the service.
            registry: The models.
            metrics: Where the service's metrics are registered.
            inspect: Returns what an operator should hear of the queue's server.
            tracer: Makes the spans of RPCs and jobs.
            supervisor: Of the background tasks, the queue's included; None for one of the service's own tasks alone.
            entries: Models of files, which the service registers, so that jobs may come before their workers.
        """
        self._inspect = inspect
        self._supervisor = supervisor or Supervisor(SupervisionMetrics(metrics))
        self._tracer = tracer
        self._settings = settings
        self._queue = queue
        self._metrics = ServiceMetrics(metrics)
        self._streams = Streams(settings.connections.max_stream_seconds)
        self._aftermath = Aftermath(self._supervisor)
        self._registry = registry
        self._entries = tuple(entries)
        self._catalogue = Catalogue(registry, settings.model_refresh)
        self._pictures = Pictures(settings.images.limits(), settings.images.decode_processes)
        self._health = health_aio.HealthServicer()
        self._server: grpc.aio.Server | None = None
        self._admin = Admin(self._health)
        self._readiness: Readiness | None = None
        self._watching: Supervised | None = None
        self._draining = False
        self.admin_port = 0
        """Port of the second listener; 0 where there is none."""

    async def start(self) -> list[int]:
        """Begins to serve, whether Redis answers or not, and returns the ports.

        Raises:
            CannotListen: an address cannot be had.
        """
        access = Access(self._settings.tokens, FailedLogins(self._settings.logins))
        layers = (
            answer_failures,
            Tracing(self._tracer),
            self._metrics,
            access,
            self._streams,
        )
        self._server = grpc.aio.server(
            interceptors=[Layers(layers, access.admits)],
            options=server_options(self._settings.connections, channelz=bool(self._settings.admin_listen)),
        )
        self._add_services(self._server)
        ports = bind(self._server, self._settings.listen, self._settings.tls)
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
        self._watching = self._supervisor.start_task("readiness", self._readiness.run)
        await self._server.start()
        if self._settings.admin_listen:
            self.admin_port = await self._admin.start(self._settings.admin_listen)
        exposed = open_addresses(self._settings.listen)
        if exposed and not self._settings.tokens:
            _log.warning("open-to-the-network", listen=exposed, remedy="set SAGITTAL_TOKENS, or listen on 127.0.0.1")
        _log.info("service-started", listen=self._settings.listen, ports=ports, redis=place)
        return ports

    def live(self) -> str:
        """Says why the process must be restarted; empty where it need not. Safe from any thread."""
        return "" if self._readiness is None else self._supervisor.failed() or self._readiness.stalled()

    def ready(self) -> str:
        """Says why the replica takes no calls; empty where it does. Safe from any thread."""
        if self._readiness is None:
            return "it starts"
        return "it drains" if self._draining else self._supervisor.ailing() or self._readiness.wrong

    async def stop(self) -> None:
        """Drains: not ready, no new calls, streams moved when their time is up, and then the end."""
        self._draining = True
        _log.info("service-drains", streams=len(self._streams), seconds=self._settings.drain)
        await self._health.enter_graceful_shutdown()
        if self._server is not None:
            stopping = asyncio.create_task(self._server.stop(self._settings.drain + _LAST_GRACE))
            await asyncio.wait({stopping}, timeout=self._settings.drain)
            self._streams.move_all()
            await stopping
        await self._end_watching()
        await self._admin.stop()
        await self._aftermath.wait()
        self._pictures.close()
        await self._queue.close()
        _log.info("service-stopped")

    def _add_services(self, server: grpc.aio.Server) -> None:
        jobs = self._settings.jobs
        intake = Intake(self._queue, self._catalogue, self._pictures, jobs, self._metrics)
        relay = Relay(self._queue, self._aftermath, self._metrics)
        many = Many(intake, relay, jobs.max_in_flight)
        regions = Regions(self._queue, self._catalogue, self._pictures, intake, relay)
        retries = Retries(self._queue, intake, relay)
        explanations = ExplanationServicer(
            self._queue, intake, relay, many, retries, regions, regions_deadline=jobs.regions_deadline
        )
        registration = Registration(self._registry, self._catalogue, self._queue)
        models = ModelServicer(self._catalogue, registration, intake, relay, jobs.predict_deadline)
        limits = self._settings.fits
        fits = ConceptFits(self._queue, self._catalogue, intake, limits)
        concepts = ConceptServicer(self._catalogue, intake, relay, fits, limits)
        explanation_service_pb2_grpc.add_ExplanationServiceServicer_to_server(explanations, server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(models, server)
        concept_service_pb2_grpc.add_ConceptServiceServicer_to_server(concepts, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._settings.reflection:
            reflection.enable_server_reflection(_SERVICES, server)

    async def _end_watching(self) -> None:
        if self._watching is not None:
            await self._supervisor.stop_task(self._watching)


def _place(url: str) -> str:
    """Returns where Redis is, without credentials."""
    parts = urlsplit(url)
    if parts.hostname is None:
        return parts.path
    return f"{parts.hostname}:{parts.port or 6379}"

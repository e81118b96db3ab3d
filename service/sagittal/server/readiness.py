"""Readiness: a replica is ready while Redis answers and every background task runs."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

import structlog
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio

from sagittal.core.errors import SagittalError
from sagittal.core.models import ModelEntry, declaration_of
from sagittal.queue.protocol import JobQueue
from sagittal.registry.protocol import ModelRegistry
from sagittal.server.metrics import ServiceMetrics
from sagittal.v1 import model_pb2

_log = structlog.get_logger(__name__)


class RegistryWatch:
    """Detects whether the registry lost its data, reports it, and registers the models of model files again."""

    def __init__(self, registry: ModelRegistry, entries: Sequence[ModelEntry], metrics: ServiceMetrics) -> None:
        """Stores the arguments; `look` accesses the registry.

        Args:
            registry: The registry to watch.
            entries: Entries of model files to register, so that jobs can be accepted before their workers start.
            metrics: Metrics in which a loss is counted.
        """
        self._registry = registry
        self._entries = entries
        self._metrics = metrics
        self._epoch = ""
        self._by_api: frozenset[str] = frozenset()

    async def look(self) -> Sequence[model_pb2.Model]:
        """Returns every model; first registers those of model files if the registry is new or lost its data."""
        epoch = await self._registry.epoch()
        if epoch != self._epoch:
            if self._epoch:
                self._report()
            for entry in self._entries:
                await self._registry.declare(declaration_of(entry), latest=entry.latest)
            self._epoch = epoch
        models = await self._registry.models()
        self._by_api = frozenset(
            f"{model.name} {model.version}" for model in models if model.origin == model_pb2.MODEL_ORIGIN_API
        )
        return models

    async def rolled_back(self) -> Mapping[tuple[str, str], bool]:
        """Returns whether each canary was rolled back, by its name and version."""
        canaries = await self._registry.canaries()
        return {(name, each.version): bool(each.canary.rolled_back) for name, each in canaries.items()}

    def _report(self) -> None:
        self._metrics.registry_lost.inc()
        _log.error(
            "registry-emptied",
            models_gone=sorted(self._by_api),
            reason="the registry's data in Redis is lost: Redis was flushed or replaced, or lost its disk",
            remedy="register these models again; models of model files are registered automatically",
        )


#: Services whose health status follows Redis. The status of `""` is liveness and does not.
READY_SERVICES = (
    "sagittal.v1.BatchService",
    "sagittal.v1.ConceptService",
    "sagittal.v1.ExplanationService",
    "sagittal.v1.ModelService",
)

#: Time beyond the interval after which a check that has not ended means that the event loop hangs, in seconds.
STALLED_SECONDS = 60.0


class Readiness:
    """Checks Redis every `interval` seconds, sets the health status, and updates the queue's gauges."""

    def __init__(
        self,
        queue: JobQueue,
        watch: RegistryWatch,
        health: health_aio.HealthServicer,
        metrics: ServiceMetrics,
        *,
        interval: float,
        place: str,
        inspect: Callable[[], Sequence[str]],
        ailing: Callable[[], str] = str,
    ) -> None:
        """Stores the arguments; `run` checks.

        Args:
            queue: The queue that must answer.
            watch: The registry's watch; empty queues of its models are shown as zeros.
            health: Health servicer whose status is set.
            metrics: Metrics that show the queue's depth.
            interval: Time between two checks, in seconds.
            place: Address of Redis, for the log.
            inspect: Returns warnings about Redis for the operator; may block; called whenever Redis starts to answer.
            ailing: Returns which background task of the service does not run; empty if all do.
        """
        self._inspect = inspect
        self._ailing = ailing
        self._queue = queue
        self._watch = watch
        self._health = health
        self._metrics = metrics
        self._interval = interval
        self._place = place
        self._ready: bool | None = None
        self._looked = time.monotonic()
        self.wrong = "Redis was not checked yet"
        """Why the replica is not ready; empty if it is ready."""

    def stalled(self) -> str:
        """Returns a message if the event loop hangs because no check has ended for long; empty if not. Thread-safe."""
        silent = time.monotonic() - self._looked
        return f"the event loop has hung for {silent:.0f} s" if silent > self._interval + STALLED_SECONDS else ""

    async def run(self) -> None:
        """Checks repeatedly until it is cancelled."""
        self._metrics.queue_up.set(0)
        await self._set(ready=False)
        try:
            while True:
                await self._look()
                self._looked = time.monotonic()
                await asyncio.sleep(self._interval)
        finally:
            self.wrong = "the check of Redis is not running"
            self._metrics.queue_up.set(0)
            await self._set(ready=False)

    async def _look(self) -> None:
        patience = max(self._interval, 1.0)
        try:
            async with asyncio.timeout(patience):
                await self._queue.ping()
                models = {model.name for model in await self._watch.look()}
                self._metrics.canaries(await self._watch.rolled_back())
                self._metrics.backlog(await self._queue.backlog(), models)
                self._metrics.stored_bytes.set(await self._queue.stored_bytes())
        except (SagittalError, TimeoutError) as error:
            self._metrics.queue_errors.labels("look").inc()
            reason = str(error) or f"no answer within {patience:g} s"
            wrong = f"Redis does not answer: {reason}"
            if wrong != self.wrong:
                said = {"error": reason, "cause": str(error.__cause__ or "")}
                _log.warning("queue-away", redis=self._place, **said, doing="waiting until it answers")
            self.wrong = wrong
            self._metrics.queue_up.set(0)
            await self._set(ready=False)
        else:
            if self.wrong:
                _log.info("queue-answers", redis=self._place)
                await self._warn()
            self.wrong = ""
            self._metrics.queue_up.set(1)
            await self._set(ready=not self._ailing())

    async def _warn(self) -> None:
        try:
            for warning in await asyncio.to_thread(self._inspect):
                _log.warning("queue-unsafe", redis=self._place, warning=warning)
        except SagittalError as error:
            _log.warning("queue-not-inspected", redis=self._place, error=error.message)

    async def _set(self, *, ready: bool) -> None:
        if ready != self._ready:
            self._ready = ready
            await self._say(ready=ready)

    async def _say(self, *, ready: bool) -> None:
        serving = health_pb2.HealthCheckResponse.SERVING
        status = serving if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in READY_SERVICES:
            await self._health.set(service, status)

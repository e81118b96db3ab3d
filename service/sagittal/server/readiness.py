"""Health: alive always, ready while Redis answers."""

import asyncio

import structlog
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio

from sagittal.core.errors import SagittalError
from sagittal.runtime.queue import JobQueue
from sagittal.server.metrics import ServiceMetrics

#: Services whose readiness follows Redis. `""` is liveness and does not.
READY_SERVICES = ("sagittal.v1.ExplanationService", "sagittal.v1.ModelService")

_log = structlog.get_logger(__name__)


class Readiness:
    """Looks every `interval` seconds whether Redis answers, tells health checkers, and shows the queue's depth."""

    def __init__(
        self, queue: JobQueue, health: health_aio.HealthServicer, metrics: ServiceMetrics, interval: float, place: str
    ) -> None:
        self._queue = queue
        self._health = health
        self._metrics = metrics
        self._interval = interval
        self._place = place
        self._ready: bool | None = None

    async def run(self) -> None:
        """Looks again and again, until it is cancelled."""
        await self._say(ready=False)
        while True:
            await self._look()
            await asyncio.sleep(self._interval)

    async def _look(self) -> None:
        try:
            async with asyncio.timeout(max(self._interval, 1.0)):
                await self._queue.ping()
                self._metrics.backlog(await self._queue.backlog())
        except (SagittalError, TimeoutError) as error:
            self._metrics.queue_errors.inc()
            if self._ready is not False:
                _log.warning("queue-away", redis=self._place, error=str(error), doing="waiting until it answers")
            await self._set(ready=False)
        else:
            if not self._ready:
                _log.info("queue-answers", redis=self._place)
            await self._set(ready=True)

    async def _set(self, *, ready: bool) -> None:
        if ready != self._ready:
            self._ready = ready
            await self._say(ready=ready)

    async def _say(self, *, ready: bool) -> None:
        self._metrics.queue_up.set(int(ready))
        serving = health_pb2.HealthCheckResponse.SERVING
        status = serving if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in READY_SERVICES:
            await self._health.set(service, status)

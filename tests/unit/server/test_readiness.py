"""What health checkers are told: whether Redis answers, and whether every background task runs."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio
from prometheus_client import CollectorRegistry

from sagittal.core.errors import Unavailable
from sagittal.server.metrics import ServiceMetrics
from sagittal.server.readiness import READY_SERVICES, Readiness

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Asked:
    """A queue and a catalogue that answer, or fail with what a test says."""

    def __init__(self) -> None:
        self.failing: BaseException | None = None

    async def ping(self) -> None:
        if self.failing is not None:
            raise self.failing

    async def backlog(self) -> Mapping[Any, Any]:
        return {}

    async def stored_bytes(self) -> int:
        return 0

    async def look(self) -> Sequence[Any]:
        return []

    async def rolled_back(self) -> Mapping[tuple[str, str], bool]:
        return {}


class Health(health_aio.HealthServicer):
    """Keeps what checkers would be told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[str, int] = {}

    async def set(self, service: str, status: Any) -> None:
        self.told[service] = status


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it never came to pass")


async def test_a_replica_is_ready_while_redis_answers_and_all_background_work_runs() -> None:
    asked, health, registry, ailing = Asked(), Health(), CollectorRegistry(), ["the sweeper failed"]
    readiness = Readiness(
        asked,  # type: ignore[arg-type]
        asked,  # type: ignore[arg-type]
        health,
        ServiceMetrics(registry),
        interval=0.005,
        place="here",
        inspect=list,
        ailing=lambda: ailing[0],
    )

    def told(status: int) -> bool:
        return [health.told.get(service) for service in READY_SERVICES] == [status] * len(READY_SERVICES)

    def up() -> float | None:
        return registry.get_sample_value("sagittal_queue_up")

    looking = asyncio.create_task(readiness.run())
    await eventually(lambda: up() == 1)
    assert told(NOT_SERVING)  # Redis answers, and something else is wrong
    ailing[0] = ""
    await eventually(lambda: told(SERVING))
    asked.failing = Unavailable("away")
    await eventually(lambda: told(NOT_SERVING))
    assert up() == 0
    asked.failing = None
    await eventually(lambda: told(SERVING))
    asked.failing = ZeroDivisionError("a bug by construction")
    await asyncio.wait([looking])
    assert told(NOT_SERVING)
    assert up() == 0
    assert readiness.wrong
    assert isinstance(looking.exception(), ZeroDivisionError)

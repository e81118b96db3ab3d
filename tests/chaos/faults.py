"""What is broken besides processes that meet their fate: a table of faults, each ending with everything mended."""

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import redis
from chaos.points import SERVICE_POINTS, WORKER_POINTS
from chaos.world import LEASE, World
from redis_states import STATES


@dataclass(slots=True)
class Fault:
    """A fault as it was injected, by wall-clock times."""

    kind: str
    began: float
    mended: float


def _kill_redis(world: World) -> None:
    world.kill_server(away=world.random.uniform(0.1, 1.5))


def _refuse(state: str, world: World) -> None:
    """The server is put into a state in which it refuses, for up to longer than an operation is tried."""
    with redis.Redis(port=world.port) as operator, STATES[state](operator):
        time.sleep(world.random.uniform(0.3, 3.0))


def _cut_network(world: World) -> None:
    """A worker is cut off for longer than its lease."""
    world.segment.cut()
    time.sleep(LEASE * world.random.uniform(1.3, 1.8))
    world.segment.mend()


def _cut_network_briefly(world: World) -> None:
    world.segment.cut()
    time.sleep(LEASE * world.random.uniform(0.2, 0.6))
    world.segment.mend()


def _delay_worker(world: World) -> None:
    _delay(world, 1)


def _delay_service(world: World) -> None:
    _delay(world, 0)


def _delay(world: World, number: int) -> None:
    world.queue_proxies[number].delay(world.random.uniform(0.05, 0.3))
    time.sleep(world.random.uniform(1.0, 2.0))
    world.queue_proxies[number].delay(0.0)


def _hold_worker(world: World) -> None:
    """A worker's connections are silent for longer than its lease, and then everything that was said arrives."""
    world.queue_proxies[1].hold()
    time.sleep(LEASE * world.random.uniform(1.3, 1.8))
    world.queue_proxies[1].release()


def _reset_worker(world: World) -> None:
    _reset(world, 1)


def _reset_service(world: World) -> None:
    _reset(world, 0)


def _reset(world: World, number: int) -> None:
    for _ in range(world.random.randrange(2, 6)):
        world.queue_proxies[number].reset()
        time.sleep(world.random.uniform(0.02, 0.3))


def _reset_callers(world: World) -> None:
    world.door.reset()


def _kill_service(world: World) -> None:
    world.restart_killed(world.services[0])


def _stop_service(world: World) -> None:
    """A service is told to end, drains, and is brought back."""
    service = world.services[0]
    world.end(service, signal.SIGTERM)
    service.kept = True
    world.start(service)


#: States that would do more than refuse: one moves the directory of the append-only file.
UNFIT = {"MISCONF"}

FAULTS: Mapping[str, Callable[[World], None]] = {
    "Redis killed and restarted": _kill_redis,
    **{f"Redis refuses: {state}": partial(_refuse, state) for state in sorted(STATES.keys() - UNFIT)},
    "network of a worker cut for longer than a lease": _cut_network,
    "network of a worker cut briefly": _cut_network_briefly,
    "worker's connections to Redis delayed": _delay_worker,
    "worker's connections to Redis held for longer than a lease": _hold_worker,
    "worker's connections to Redis reset": _reset_worker,
    "service's connections to Redis delayed": _delay_service,
    "service's connections to Redis reset": _reset_service,
    "callers' connections to a service reset": _reset_callers,
    "service killed at any moment": _kill_service,
    "service stopped and started again": _stop_service,
}

#: Faults that need a network namespace.
NEED_SEGMENT = ("network of a worker cut for longer than a lease", "network of a worker cut briefly")


class Schedule:
    """Deals faults and fates from shuffled decks, so that each comes before any comes again."""

    def __init__(self, world: World) -> None:
        self.faults: list[Fault] = []
        self._world = world
        self._kinds = [kind for kind in FAULTS if world.segment or kind not in NEED_SEGMENT]
        self._deck: list[str] = []
        self.dealt = 0
        self._worker_fates: list[str] = []
        self._service_fates: list[str] = []

    @property
    def once_through(self) -> bool:
        """Whether every fault was injected, and every fate of a worker was met."""
        met = sum(death.life.startswith("worker") for death in self._world.deaths)
        return self.dealt >= len(self._kinds) and met >= len(self._world.workers) + len(WORKER_POINTS) + 2

    def next(self) -> None:
        """Injects the next fault and sees that it is mended."""
        if not self._deck:
            self._deck = self._world.random.sample(self._kinds, len(self._kinds))
        kind = self._deck.pop()
        began = time.time()
        FAULTS[kind](self._world)
        self.faults.append(Fault(kind, began, time.time()))
        self.dealt += 1

    def deal_fates(self) -> None:
        """Sees that every process has a fate for its next life."""
        for program, deal in [(each, self._worker_fate) for each in self._world.workers] + [
            (each, self._service_fate) for each in self._world.services[:1]
        ]:
            if not program.fates:
                program.fates.append(deal())

    def _worker_fate(self) -> str:
        if not self._worker_fates:
            kills = [f"{point}:{self._world.random.randrange(1, 4)}:SIGKILL" for point in WORKER_POINTS]
            stops = ["mid_run:2:SIGSTOP", "before_ack:1:SIGSTOP"]
            self._worker_fates = self._world.random.sample(kills + stops, len(kills + stops))
        return self._worker_fates.pop()

    def _service_fate(self) -> str:
        if not self._service_fates:
            fates = [f"{point}:{self._world.random.randrange(1, 5)}:SIGKILL" for point in SERVICE_POINTS]
            self._service_fates = self._world.random.sample(fates, len(fates))
        return self._service_fates.pop()

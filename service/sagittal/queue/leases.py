"""The workers' side of the queue on Redis."""

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog

from sagittal.core.errors import Overloaded, QueueFailed, Unavailable
from sagittal.core.jobs import Cancellation, JobState, Lane, Lease
from sagittal.queue.connection import WORKER_ATTEMPTS, SyncRunner, close_sync, connect_sync
from sagittal.queue.events import TERMINAL, Ending, classify, read_settled
from sagittal.queue.metrics import UNOBSERVED, QueueObserver
from sagittal.queue.notifications import WorkBell, WorkerNotifications, wait_for_bells
from sagittal.queue.protocol import LeaseLost, never
from sagittal.queue.scripts import load_script, model_key, parse_lease, room, root_key
from sagittal.queue.settings import QueueSettings
from sagittal.queue.sweep import (
    STANDBY_INTERVALS,
    elected_seconds,
    end_arguments,
    parse_endings,
    parse_sweep,
    sweep_arguments,
)

log = structlog.get_logger(__name__)

#: Lanes, the first first.
LANES = tuple(lane.value for lane in Lane)

#: Longest time between two checks whether a wait must stop, in seconds; they do not use Redis.
STOP_SECONDS = 0.25

#: Longest time between two reads of a waiting worker, for a wake-up that was lost, in seconds.
LOOK_SECONDS = 5.0

#: Time for which asking Redis to block is not worth a round trip, in seconds.
BRIEF_SECONDS = 0.05


@dataclass(slots=True)
class _Writer:
    """Numbers the batches of one lease, so that a batch that is sent twice counts once."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    written: int = 0
    unsure: tuple[bytes, ...] | None = None
    """The batch to which Redis did not answer; sent again, it keeps its number."""


class RedisWorkerQueue:
    """A `WorkerQueue` on Redis 7 or Valkey 8 and later."""

    def __init__(
        self,
        settings: QueueSettings,
        *,
        worker: str,
        observer: QueueObserver = UNOBSERVED,
        attempts: int = WORKER_ATTEMPTS,
    ) -> None:
        """Constructs a worker's side; it connects on first use.

        Args:
            settings: Its settings, with one server.
            worker: Name of the worker.
            observer: Is notified of what the queue observes.
            attempts: Largest number of attempts of one operation.
        """
        self._observer = observer
        self._settings = settings
        self._worker = worker
        self._root = root_key(settings)
        self._redis = SyncRunner(connect_sync(settings), settings, self._root, observer, attempts)
        self._bells = SyncRunner(connect_sync(settings), settings, self._root, observer, attempts)
        channels = f"{self._root}worker:{worker}", f"{self._root}models"
        self.notifications = WorkerNotifications(self._redis, channels)
        self._writers: dict[tuple[str, int], _Writer] = {}
        self._writers_lock = threading.Lock()
        self._candidate = secrets.token_hex(8)
        self._next_sweep, self._elected = 0.0, True

    def lease(
        self,
        models: Sequence[tuple[str, str]],
        *,
        block_seconds: float,
        busy: bool = False,
        stop: Callable[[], bool] = never,
    ) -> Lease | None:
        """Leases the next execution for these models, after requeueing those whose worker was lost."""
        return lease_from([self], models, block_seconds=block_seconds, busy=busy, stop=stop)

    def visit(self, names: Sequence[str], *, busy: bool, lane: str = "") -> Lease | None:
        """Sweeps if it is time, and leases the next execution for these models in a lane, or in any."""
        self.sweep_when_due()
        return self._take(names, busy=busy, lane=lane) if names else None

    def bell(self, names: Sequence[str]) -> WorkBell:
        """Returns what rings when work arrives for these models; close it."""
        return WorkBell(self._bells, [f"{self._root}bell:{name}" for name in names])

    def has_work(self, names: Sequence[str], lanes: Sequence[str] = LANES) -> bool:
        """Returns whether executions wait in these lanes for these models, by one cheap read."""
        queues = [f"{kind}:{lane}" for kind in ("ready", "alone") for lane in lanes]
        keys = [f"{self._root}{queue}:{name}" for queue in queues for name in names]
        return bool(self._redis.run(lambda: self._redis.client.exists(*keys), name="exists"))

    @property
    def pause(self) -> float:
        """Longest time until a waiting worker must look at this server again, in seconds."""
        return min(STANDBY_INTERVALS * self._settings.sweep_seconds, LOOK_SECONDS)

    @property
    def seconds_to_sweep(self) -> float:
        """Time until `sweep_when_due` has something to do, in seconds."""
        return max(self._next_sweep - time.monotonic(), 0.0)

    def heartbeat(self, leases: Sequence[Lease]) -> tuple[Sequence[Lease], Sequence[Cancellation]]:
        """Renews leases, all in one round trip."""
        if not leases:
            return [], []
        flat = [value for lease in leases for value in (lease.job.job_id, lease.token)]
        answers = self._script("heartbeat", self._settings.lease_seconds, *flat)
        lost, cancelled = [], []
        for lease, answer in zip(leases, answers, strict=True):
            if answer == b"lost":
                self._forget(lease)
                lost.append(lease)
            elif answer == b"expired":
                cancelled.append(Cancellation(lease=lease, reason="", age=0.0, expired=True))
            elif answer:
                _, age, reason = answer.decode(errors="replace").split(":", 2)
                cancelled.append(Cancellation(lease=lease, reason=reason, age=float(age)))
        return lost, cancelled

    def listen(self, *, block_seconds: float) -> bool:
        """Waits for a notification that an attempt of this worker may have to end, or that a model changed."""
        return self.notifications.wait(block_seconds)

    def attachment(self, job_id: str, name: str) -> bytes | None:
        """Returns a part that was attached to a job; None if it is deleted."""
        found = self._script("attachment", job_id, name)
        return found if isinstance(found, bytes) else None

    def append(self, lease: Lease, events: Sequence[bytes]) -> None:
        """Appends events in the order of the calls; each batch counts once.

        Raises LeaseLost, or Overloaded if the job's log would exceed `max_log_bytes`.
        """
        batch = tuple(events)
        if not batch:
            return
        with self._writing(lease, batch) as number:
            elements = [classify(event) + event for event in batch]
            answer = self._script(
                "append",
                lease.job.job_id,
                lease.token,
                number,
                self._settings.max_log_bytes,
                *room(self._settings),
                *elements,
            )
        self._check(lease, answer)

    def checkpoint(self, lease: Lease, state: bytes) -> None:
        """Stores state from which a later attempt can continue."""
        self._check(lease, self._script("checkpoint", lease.job.job_id, lease.token, state))

    def settle(self, lease: Lease, event: bytes, state: JobState, events: Sequence[bytes] = ()) -> None:
        """Appends the last events and the terminal one, and ends the job, in one round trip."""
        if not state.ended:
            raise ValueError(f"state is {state.value}; a job settles as completed, failed or cancelled")
        settled = read_settled(event)
        elements = [classify(each) + each for each in events]
        with self._writer(lease).lock:
            answer = self._script(
                "settle",
                lease.job.job_id,
                lease.token,
                state.value,
                self._settings.cache_seconds if settled.may_answer else 0,
                self._settings.max_log_bytes,
                *room(self._settings),
                settled.evaluations,
                settled.seconds,
                settled.reason,
                *elements,
                TERMINAL + event,
            )
        self._check(lease, answer)
        self._forget(lease)

    def release(self, lease: Lease) -> None:
        """Returns an unfinished job to the queue, or ends it if its cancellation was requested."""
        verdict, *ending = self._script("release", lease.job.job_id, lease.token)
        self._check(lease, verdict)
        self._end(parse_endings(ending))
        self._forget(lease)

    def ping(self) -> None:
        """Returns when Redis answers."""
        self._redis.run(self._redis.client.ping, name="ping")

    def close(self) -> None:
        """Closes all connections."""
        self.notifications.close()
        close_sync(self._bells.client)
        close_sync(self._redis.client)

    def _script(self, name: str, *arguments: bytes | str | int | float) -> Any:
        return self._redis.script(load_script(name), *arguments)

    def _take(self, names: Sequence[str], *, busy: bool, lane: str) -> Lease | None:
        """Leases an execution; on the way it ends those at the head that must end."""
        while True:
            nonce = secrets.token_hex(8)
            settings = self._settings
            bounds = settings.lease_seconds, settings.batch_every
            answer = self._script("lease", self._worker, nonce, *bounds, "1" if busy else "", lane, *names)
            match answer[0]:
                case b"none" | b"hold":
                    return None
                case b"lease":
                    return parse_lease(answer)
                case _:
                    self._end(parse_endings(answer[1:]))

    def sweep_when_due(self) -> None:
        """Sweeps every `sweep_seconds`; if another process does, looks at longer intervals whether it still does."""
        if self.seconds_to_sweep:
            return
        interval, standby = self._settings.sweep_seconds, STANDBY_INTERVALS * self._settings.sweep_seconds
        self._next_sweep = time.monotonic() + interval
        if not self._elected and self._another_sweeps():
            self._next_sweep = time.monotonic() + standby
            return
        swept = parse_sweep(self._script("sweep", *sweep_arguments(self._settings, candidate=self._candidate)))
        self._elected = swept.elected
        if not swept.elected:
            self._next_sweep = time.monotonic() + standby
        for record in swept.quarantined:
            record.report(self._observer)
        self._end(swept.endings)

    def _end(self, endings: Iterable[Ending]) -> None:
        for ending in endings:
            try:
                trace_context = self._script("end", *end_arguments(ending, time.time()))
            except QueueFailed as error:
                log.error("end-failed", job_id=ending.job_id, error=error.message)  # the others still end
                continue
            if trace_context is not None:
                self._observer.ended(ending.reason)
                ending.log(trace_context)

    def _another_sweeps(self) -> bool:
        key = f"{self._root}sweeper"
        left = int(self._redis.run(lambda: self._redis.client.ttl(key), name="ttl"))
        return 0 <= left <= elected_seconds(self._settings) + 1  # as `sweep.lua` decides

    def _check(self, lease: Lease, answer: bytes) -> None:
        if answer == b"lost":
            self._forget(lease)
            raise LeaseLost(f"job {lease.job.job_id} was leased again or has ended; token {lease.token} is stale")
        if answer == b"full":
            raise Overloaded(
                f"the events of job {lease.job.job_id} have reached {self._settings.max_log_bytes} bytes, its limit "
                "(max_log_bytes): ask for fewer partial masks"
            )

    def _writer(self, lease: Lease) -> _Writer:
        with self._writers_lock:
            return self._writers.setdefault((lease.job.job_id, lease.token), _Writer())

    def _forget(self, lease: Lease) -> None:
        with self._writers_lock:
            self._writers.pop((lease.job.job_id, lease.token), None)

    @contextmanager
    def _writing(self, lease: Lease, batch: tuple[bytes, ...]) -> Iterator[int]:
        """Yields the number of a batch, and excludes other batches of this lease meanwhile."""
        writer = self._writer(lease)
        with writer.lock:
            number = writer.written + 1
            if writer.unsure is not None and writer.unsure != batch:
                number += 1
            try:
                yield number
            except Unavailable:
                writer.written, writer.unsure = number - 1, batch
                raise
            writer.written, writer.unsure = number, None


def lease_from(
    queues: Sequence[RedisWorkerQueue],
    models: Sequence[tuple[str, str]],
    *,
    block_seconds: float,
    busy: bool,
    stop: Callable[[], bool],
    visits: Callable[[Sequence[str]], Iterable[tuple[RedisWorkerQueue, str]]] | None = None,
) -> Lease | None:
    """Leases the next execution for these models from one of the queues; waits until work arrives in any of them.

    Args:
        queues: The queues.
        models: The models whose jobs may be leased.
        block_seconds: Longest time to wait, in seconds.
        busy: Whether the worker is executing anything.
        stop: Ends the wait by returning True.
        visits: Returns the queues to visit, in order, each with a lane or '' for all, for the names of models; None to
            visit each once.
    """
    until = time.monotonic() + block_seconds
    names = [model_key(*model) for model in models]
    with ExitStack() as stack:
        bells = [stack.enter_context(closing(queue.bell(names))) for queue in queues if names]
        while not stop():
            for queue, lane in visits(names) if visits else [(queue, "") for queue in queues]:
                lease = queue.visit(names, busy=busy, lane=lane)
                if lease is not None:
                    return lease
            if time.monotonic() >= until:
                return None
            _wait_for_work(queues, bells, names, until, stop)
    return None


def _wait_for_work(
    queues: Sequence[RedisWorkerQueue],
    bells: Sequence[WorkBell],
    names: Sequence[str],
    until: float,
    stop: Callable[[], bool],
) -> None:
    """Waits until there may be work, or until a time, or until `stop`. Sweeps meanwhile."""
    look = time.monotonic() + min(queue.pause for queue in queues)
    while not stop() and (left := until - time.monotonic()) > 0:
        if left < BRIEF_SECONDS:
            time.sleep(left)
            return
        for bell in bells:
            bell.ask(left - BRIEF_SECONDS / 2)
        if wait_for_bells(bells, min(left, STOP_SECONDS, *(queue.seconds_to_sweep for queue in queues))):
            return
        for queue in queues:
            queue.sweep_when_due()
        if time.monotonic() >= look:
            look = time.monotonic() + min(queue.pause for queue in queues)
            if names and any(queue.has_work(names) for queue in queues):
                return

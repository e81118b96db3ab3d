"""The workers' side of the queue on Redis."""

import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog

from sagittal.core.errors import Overloaded, QueueFailed, Unavailable
from sagittal.core.jobs import Cancellation, JobState, Lease
from sagittal.queue.connection import SOCKET_SHARE, SyncRunner, close_sync, connect_sync
from sagittal.queue.events import TERMINAL, Ending, classify, read_settled
from sagittal.queue.metrics import UNOBSERVED, WAIT, QueueObserver
from sagittal.queue.notifications import WorkerNotifications
from sagittal.queue.protocol import LeaseLost
from sagittal.queue.scripts import load_script, model_key, parse_lease, room, root_key
from sagittal.queue.settings import QueueSettings
from sagittal.queue.sweep import end_arguments, parse_endings, parse_sweep, sweep_arguments

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Writer:
    """Numbers the batches of one lease, so that a batch that is sent twice counts once."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    written: int = 0
    unsure: tuple[bytes, ...] | None = None
    """The batch to which Redis did not answer; sent again, it keeps its number."""


class RedisWorkerQueue:
    """A `WorkerQueue` on Redis 7 or Valkey 8 and later."""

    def __init__(self, settings: QueueSettings, *, worker: str, observer: QueueObserver = UNOBSERVED) -> None:
        self._observer = observer
        self._settings = settings
        self._worker = worker
        self._root = root_key(settings)
        self._redis = SyncRunner(connect_sync(settings), settings, self._root, observer)
        self._notifications = WorkerNotifications(self._redis, f"{self._root}worker:{worker}")
        self._writers: dict[tuple[str, int], _Writer] = {}
        self._writers_lock = threading.Lock()
        self._swept = 0.0

    def lease(self, models: Sequence[tuple[str, str]], *, block_seconds: float, busy: bool = False) -> Lease | None:
        """Leases the next execution for these models, after requeueing those whose worker was lost."""
        until = time.monotonic() + block_seconds
        names = [model_key(*model) for model in models]
        while True:
            self._sweep_when_due()
            lease = self._take(names, busy=busy) if names else None
            left = until - time.monotonic()
            if lease is not None or left <= 0:
                return lease
            self._wait(names, left)

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
        """Waits for a notification that an attempt of this worker may have to end."""
        return self._notifications.wait(block_seconds)

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
        self._notifications.close()
        close_sync(self._redis.client)

    def _script(self, name: str, *arguments: bytes | str | int | float) -> Any:
        return self._redis.script(load_script(name), *arguments)

    def _take(self, names: Sequence[str], *, busy: bool) -> Lease | None:
        """Leases an execution; on the way it ends those at the head that must end."""
        while True:
            nonce = secrets.token_hex(8)
            settings = self._settings
            bounds = settings.lease_seconds, settings.batch_every
            answer = self._script("lease", self._worker, nonce, *bounds, "1" if busy else "", *names)
            match answer[0]:
                case b"none" | b"hold":
                    return None
                case b"lease":
                    return parse_lease(answer)
                case _:
                    self._end(parse_endings(answer[1:]))

    def _wait(self, names: Sequence[str], left: float) -> None:
        """Waits for new work, or until the next sweep is due."""
        socket_timeout = self._settings.operation_timeout * SOCKET_SHARE
        seconds = min(left, self._settings.sweep_seconds, socket_timeout / 2)
        if not names:
            time.sleep(seconds)
            return
        bells = [f"{self._root}bell:{name}" for name in names]
        self._redis.run(lambda: self._redis.client.blpop(bells, timeout=seconds), name=WAIT)

    def _sweep_when_due(self) -> None:
        now = time.monotonic()
        if now - self._swept < self._settings.sweep_seconds:
            return
        self._swept = now
        swept = parse_sweep(self._script("sweep", *sweep_arguments(self._settings)))
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

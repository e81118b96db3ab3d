"""Several servers as one queue: each is a shard with a queue of its own, and a job lives on one of them.

A job's shard follows from its content, so equal jobs meet; its identifier names the shard, so everything about it goes
straight there. Nothing is shared between shards but the workers. A shard that does not answer stops its own jobs only.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar

import structlog

from sagittal.core.errors import Unavailable
from sagittal.core.jobs import (
    EVERY_JOB,
    Backlog,
    Cancellation,
    Cost,
    EventPage,
    Job,
    JobFilter,
    JobKind,
    JobState,
    Lease,
    NewJob,
    StoredEvent,
    StoredRequest,
)
from sagittal.process.supervision import Supervisor
from sagittal.queue.jobs import RedisJobQueue
from sagittal.queue.leases import LANES, RedisWorkerQueue, lease_from
from sagittal.queue.metrics import UNOBSERVED, QueueObserver
from sagittal.queue.notifications import WorkBell, wait_for_notifications
from sagittal.queue.protocol import JobQueue, WorkerQueue, never
from sagittal.queue.settings import QueueSettings
from sagittal.queue.watch import JobChanges

log = structlog.get_logger(__name__)

Result = TypeVar("Result")

#: Hexadecimal digits of an identifier on the first shard; on the others, the number of the shard follows in two more.
ID_DIGITS = 32

#: Shortest and longest time for which a worker leaves a shard alone that did not answer, in seconds. Between them it is
#: ten times as long as the shard kept the worker waiting.
SHORTEST_REST, LONGEST_REST, REST_FACTOR = 1.0, 5.0, 10.0

#: Share of the operation timeout after which a shard counts as away for the service, if another one has answered.
LATE_SHARE = 1 / 12


def open_jobs(
    settings: QueueSettings, observer: QueueObserver = UNOBSERVED, supervisor: Supervisor | None = None
) -> JobQueue:
    """Returns the service's side of a queue on one server or several."""
    shards = settings.shards()
    if len(shards) == 1:
        return RedisJobQueue(settings, observer, supervisor)
    return ShardedJobQueue(shards, observer, supervisor or Supervisor())


def open_worker(settings: QueueSettings, *, worker: str, observer: QueueObserver = UNOBSERVED) -> WorkerQueue:
    """Returns a worker's side of a queue on one server or several."""
    shards = settings.shards()
    if len(shards) == 1:
        return RedisWorkerQueue(settings, worker=worker, observer=observer)
    return ShardedWorkerQueue(shards, worker=worker, observer=observer)


def shard_name(job_id: str) -> str:
    """Returns what distinguishes the shard of a job in its identifier; empty for the first one."""
    return job_id[ID_DIGITS:]


def shard_of(job_id: str, count: int) -> int:
    """Returns the number of the shard that an identifier names; 0 for one that names none of them."""
    return shard_number(shard_name(job_id), count)


def shard_number(text: str, count: int) -> int:
    """Returns the number in a text from a caller, in hexadecimal digits; 0 if it is none of a shard."""
    try:
        number = int(text or "0", 16)
    except ValueError:
        return 0
    return number if 0 <= number < count else 0


def choose_shard(key: str, open_shards: Sequence[int]) -> int:
    """Returns the shard for a key: if another shard is added, only the keys that it gets move."""

    def weight(shard: int) -> bytes:
        return hashlib.sha256(f"{shard}:{key}".encode()).digest()

    return max(open_shards, key=weight)


class ShardedJobQueue:
    """A `JobQueue` on several servers."""

    def __init__(self, settings: Sequence[QueueSettings], observer: QueueObserver, supervisor: Supervisor) -> None:
        self._shards = [RedisJobQueue(each, observer, supervisor, shard=number) for number, each in enumerate(settings)]
        self._open = [number for number, each in enumerate(settings) if not each.draining]
        self._away_until = [0.0] * len(settings)
        self._late_seconds = LATE_SHARE * settings[0].operation_timeout
        self.batches = self._shards[0].batches

    def place(self, job: NewJob) -> NewJob:
        """Returns the job with an identifier that names its shard.

        The first shard has the batches and the concept sets, and so the jobs that change them.
        """
        if job.batch or job.kind is JobKind.FIT:
            return job
        shard = choose_shard(f"{job.tenant}:{job.fingerprint}", self._open)
        return replace(job, job_id=f"{job.job_id}{shard:02x}") if shard else job

    async def submit(self, job: NewJob, accepted: bytes) -> tuple[Job, bool]:
        """Accepts a job on the shard that its identifier names."""
        return await self._of(job.job_id).submit(job, accepted)

    async def attach(self, job_id: str, name: str, part: bytes, *, tenant: str) -> None:
        """Stores a large part of a job that is submitted later."""
        await self._of(job_id).attach(job_id, name, part, tenant=tenant)

    async def get(self, job_id: str) -> Job:
        """Returns a job."""
        return await self._of(job_id).get(job_id)

    def events(self, job_id: str, after_sequence: int = 0) -> AsyncIterator[StoredEvent]:
        """Yields the events after a sequence number as they arrive."""
        return self._of(job_id).events(job_id, after_sequence)

    async def page(
        self, job_id: str, after_sequence: int = 0, *, limit: int, max_bytes: int, lasting: bool = False
    ) -> EventPage:
        """Returns the events after a sequence number without waiting."""
        shard = self._of(job_id)
        return await shard.page(job_id, after_sequence, limit=limit, max_bytes=max_bytes, lasting=lasting)

    async def request_of(self, job_id: str) -> StoredRequest:
        """Returns a job's request and images."""
        return await self._of(job_id).request_of(job_id)

    async def cancel(self, job_id: str, reason: str) -> Job:
        """Cancels a job."""
        return await self._of(job_id).cancel(job_id, reason)

    async def delete(self, job_id: str) -> None:
        """Deletes an ended job."""
        await self._of(job_id).delete(job_id)

    async def list(self, wanted: JobFilter = EVERY_JOB, *, limit: int, page_token: str) -> tuple[Sequence[Job], str]:
        """Returns a page of jobs, newest first. A token is the place of a job among all of them."""
        pages = await self._ask_all(lambda shard: shard.list(wanted, limit=limit, page_token=page_token))
        # Each shard has looked at its jobs down to its token; what is older must wait for the next page.
        reached = max((token for _, token in pages if token), default="")
        found = sorted((job for jobs, _ in pages for job in jobs), key=_place_in_list, reverse=True)
        page = [job for job in found if _place_in_list(job) >= reached][:limit]
        more = bool(reached) or len(page) < len(found)
        if not more:
            return page, ""
        return page, _place_in_list(page[-1]) if len(page) == limit else reached

    async def count(self, wanted: JobFilter, *, page_token: str) -> tuple[Mapping[JobState, int], str]:
        """Returns the numbers of matching jobs by state on one shard; a token names the next, or a place on it."""
        number, _, place = page_token.rpartition("|")
        shard = shard_number(number, len(self._shards))
        counts, following = await self._shards[shard].count(wanted, page_token=place)
        if not following and shard + 1 < len(self._shards):
            return counts, f"{shard + 1:x}|"
        return counts, f"{shard:x}|{following}" if following else ""

    @contextmanager
    def changes(self, tenant: str) -> Iterator[JobChanges]:
        """Gives the changes of a tenant's explanations on all shards from now on."""
        changes = JobChanges(sources=len(self._shards))
        with ExitStack() as stack:
            for shard in self._shards:
                stack.enter_context(shard.changes(tenant, changes))
            yield changes

    async def backlog(self) -> Mapping[tuple[str, str], Backlog]:
        """Returns the queued and running executions by (model, lane), of all shards that answer."""
        found: dict[tuple[str, str], Backlog] = {}
        for backlog in await self._ask_those_there(lambda shard: shard.backlog()):
            for where, part in backlog.items():
                before = found.get(where, Backlog(queued=0, running=0, oldest_seconds=0.0, queued_evaluations=0))
                found[where] = Backlog(
                    queued=before.queued + part.queued,
                    running=before.running + part.running,
                    oldest_seconds=max(before.oldest_seconds, part.oldest_seconds),
                    queued_evaluations=before.queued_evaluations + part.queued_evaluations,
                )
        return found

    async def stored_bytes(self) -> int:
        """Returns the stored bytes of all shards that answer."""
        return sum(await self._ask_those_there(lambda shard: shard.stored_bytes()))

    async def costs(self, model: str, version: str, method: str) -> Mapping[str, Cost]:
        """Returns the cost of each setting of a method on a model; each shard learns from its own jobs."""
        found: dict[str, Cost] = {}
        for costs in await self._ask_those_there(lambda shard: shard.costs(model, version, method)):
            found = {**costs, **found}
        return found

    async def sweep(self) -> int:
        """Sweeps all shards that answer; returns the number of ended jobs."""
        return sum(await self._ask_those_there(lambda shard: shard.sweep()))

    async def ping(self) -> None:
        """Returns when the first shard answers, which has the registry of models. The others are asked too."""
        await self._ask_those_there(lambda shard: shard.ping())
        await self._shards[0].ping()

    async def close(self) -> None:
        """Closes all connections."""
        for shard in self._shards:
            await shard.close()

    def _of(self, job_id: str) -> RedisJobQueue:
        return self._shards[shard_of(job_id, len(self._shards))]

    async def _ask_all(self, ask: Callable[[RedisJobQueue], Any]) -> Sequence[Any]:
        """Returns the answers of all shards. Raises Unavailable, naming those that are missing."""
        answers = await asyncio.gather(*map(ask, self._shards), return_exceptions=True)
        away = {number: answer for number, answer in enumerate(answers, 1) if isinstance(answer, Unavailable)}
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, Unavailable):
                raise answer
        for failure in away.values():
            missing = ", ".join(map(str, away))
            text = f"the jobs on shard {missing} of {len(answers)} of the queue are missing, which does not answer"
            retry_after = failure.retry_after
            raise Unavailable(f"{text}: try again, or ask for single jobs", retry_after=retry_after) from failure
        return answers

    async def _ask_those_there(self, ask: Callable[[RedisJobQueue], Any]) -> Sequence[Any]:
        """Returns the answers of the shards that are there. Raises Unavailable if none is.

        A shard that hangs must delay neither readiness nor the acceptance of jobs. So one that answers much later than
        another counts as away, and is not asked again for `LONGEST_REST`.
        """
        now = time.monotonic()
        numbers = [number for number, until in enumerate(self._away_until) if until <= now] or range(len(self._shards))
        asked = [asyncio.create_task(ask(self._shards[number])) for number in numbers]
        try:
            await _wait_for_answers(asked, self._late_seconds)
        finally:
            for each in asked:
                each.cancel()
            answers = await asyncio.gather(*asked, return_exceptions=True)
        there = []
        for number, answer in zip(numbers, answers, strict=True):
            if isinstance(answer, (Unavailable, asyncio.CancelledError)):
                self._away_until[number] = time.monotonic() + LONGEST_REST
                log.warning("shard-away", shard=number + 1, error=str(answer) or "it hangs", rest_seconds=LONGEST_REST)
            else:
                there.append(answer)
        for answer in there or answers:
            if isinstance(answer, BaseException):
                raise answer
        return there


async def _wait_for_answers(asked: Iterable["asyncio.Task[Any]"], late_seconds: float) -> None:
    """Waits until all tasks have ended; once one has succeeded, at most `late_seconds` for the next one."""
    waiting, patience = set(asked), None
    while waiting:
        done, waiting = await asyncio.wait(waiting, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            return
        if any(each.exception() is None for each in done):
            patience = late_seconds


def _place_in_list(job: Job) -> str:
    """Returns a job's place in the index of its shard, which is the token of a page that ends with it."""
    return f"{job.created:017.6f}:{job.job_id}"


class _ShardBell(WorkBell):
    """The bell of a shard, which is silent while the shard does not answer."""

    def __init__(self, shard: "_WorkerShard", bell: WorkBell) -> None:
        super().__init__(bell.runner, bell.keys)
        self._shard = shard

    def ask(self, seconds: float) -> None:
        """Asks the shard if it answers."""
        self._shard.attempt(lambda: super(_ShardBell, self).ask(seconds))

    @property
    def asked(self) -> bool:
        """Whether an answer is to come, and would be read: not while the shard is left alone."""
        return super().asked and not self._shard.away

    def rang(self) -> bool:
        """Returns whether the shard answered that work arrived."""
        return bool(self._shard.attempt(super().rang))


class _WorkerShard(RedisWorkerQueue):
    """One shard of a worker, which is left alone for a while if it does not answer."""

    def __init__(self, settings: QueueSettings, *, worker: str, observer: QueueObserver, number: int) -> None:
        super().__init__(settings, worker=worker, observer=observer, attempts=1)
        self._number = number
        self._away_until = 0.0
        self._failure = Unavailable("")

    @property
    def away(self) -> bool:
        """Whether the shard is left alone."""
        return time.monotonic() < self._away_until

    @property
    def seconds_to_sweep(self) -> float:
        """Time until `sweep_when_due` has something to do, in seconds: not while the shard is left alone."""
        return max(super().seconds_to_sweep, self._away_until - time.monotonic())

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Notes whether the shard answers in the body. Raises Unavailable at once while it is left alone."""
        if self.away:
            raise Unavailable(self._failure.message, retry_after=self._failure.retry_after) from self._failure
        begun = time.monotonic()
        try:
            yield
        except Unavailable as failure:
            rest = min(max(REST_FACTOR * (time.monotonic() - begun), SHORTEST_REST), LONGEST_REST)
            self._failure, self._away_until = failure, time.monotonic() + rest
            log.warning("shard-away", shard=self._number + 1, error=failure.message, rest_seconds=round(rest, 1))
            raise

    def attempt(self, call: Callable[[], Result]) -> Result | None:
        """Returns the result of a call; None if the shard does not answer."""
        with suppress(Unavailable), self.in_use():
            return call()
        return None

    def visit(self, names: Sequence[str], *, busy: bool, lane: str = "") -> Lease | None:
        """Sweeps if it is time, and leases the next execution; None if the shard does not answer."""
        return self.attempt(lambda: super(_WorkerShard, self).visit(names, busy=busy, lane=lane))

    def sweep_when_due(self) -> None:
        """Sweeps if it is time and the shard answers."""
        self.attempt(super().sweep_when_due)

    def has_work(self, names: Sequence[str], lanes: Sequence[str] = LANES) -> bool:
        """Returns whether executions wait for these models; False if the shard does not answer."""
        return bool(self.attempt(lambda: super(_WorkerShard, self).has_work(names, lanes)))

    def bell(self, names: Sequence[str]) -> WorkBell:
        """Returns what rings when work arrives and the shard answers."""
        return _ShardBell(self, super().bell(names))

    def read_notifications(self) -> bool:
        """Reads all notifications that have arrived; returns whether there were any."""
        found = False
        while self.attempt(lambda: super(_WorkerShard, self).listen(block_seconds=0)):
            found = True
        return found


class ShardedWorkerQueue:
    """A `WorkerQueue` on several servers."""

    def __init__(self, settings: Sequence[QueueSettings], *, worker: str, observer: QueueObserver = UNOBSERVED) -> None:
        self._batch_every = settings[0].batch_every
        self._shards = [
            _WorkerShard(each, worker=worker, observer=observer, number=number) for number, each in enumerate(settings)
        ]
        self._turn = 0
        self._last_lane = ""

    def lease(
        self,
        models: Sequence[tuple[str, str]],
        *,
        block_seconds: float,
        busy: bool = False,
        stop: Callable[[], bool] = never,
    ) -> Lease | None:
        """Leases the next execution from the shards in turn; those with interactive work go first."""
        shards = self._shards
        lease = lease_from(shards, models, block_seconds=block_seconds, busy=busy, stop=stop, visits=self._visits)
        if lease is not None:
            self._last_lane = lease.job.lane.value
        return lease

    def _visits(self, names: Sequence[str]) -> Iterator[tuple[RedisWorkerQueue, str]]:
        """Yields the shards to visit, in rotation: first for interactive work on any of them, and then for all work.

        On every `batch_every`-th turn, batch work is first.
        """
        self._turn += 1
        batches, rest = divmod(self._turn, self._batch_every)
        lane, first = (LANES[0], self._turn) if rest else (LANES[1], batches)
        first %= len(self._shards)
        rotated = self._shards[first:] + self._shards[:first]
        for shard in rotated:
            # The lane of the last job is likely to have another one; of the other lane, a cheap read is enough.
            if self._last_lane == lane or shard.has_work(names, [lane]):
                yield shard, lane
        for shard in rotated:
            yield shard, ""

    def heartbeat(self, leases: Sequence[Lease]) -> tuple[Sequence[Lease], Sequence[Cancellation]]:
        """Renews leases, on each shard in one round trip. Raises Unavailable if no shard answers."""
        lost: list[Lease] = []
        cancelled: list[Cancellation] = []
        answered, failure = False, None
        for shard in self._shards:
            own = [lease for lease in leases if self._of(lease.job.job_id) is shard]
            try:
                with shard.in_use():
                    some_lost, some_cancelled = shard.heartbeat(own)
            except Unavailable as away:
                failure = failure or away if own else failure
                continue
            answered = answered or bool(own)
            lost += some_lost
            cancelled += some_cancelled
        if failure is not None and not answered:
            raise failure
        return lost, cancelled

    def listen(self, *, block_seconds: float) -> bool:
        """Waits for a notification of any shard."""
        wait_for_notifications([shard.notifications for shard in self._shards if not shard.away], block_seconds)
        return any([shard.read_notifications() for shard in self._shards])  # noqa: C419 - each has its turn

    def attachment(self, job_id: str, name: str) -> bytes | None:
        """Returns a part that was attached to a job."""
        with self._using(job_id) as shard:
            return shard.attachment(job_id, name)

    def append(self, lease: Lease, events: Sequence[bytes]) -> None:
        """Appends events."""
        with self._using(lease.job.job_id) as shard:
            shard.append(lease, events)

    def checkpoint(self, lease: Lease, state: bytes) -> None:
        """Stores state from which a later attempt can continue."""
        with self._using(lease.job.job_id) as shard:
            shard.checkpoint(lease, state)

    def settle(self, lease: Lease, event: bytes, state: JobState, events: Sequence[bytes] = ()) -> None:
        """Appends the last events and the terminal one, and ends the job."""
        with self._using(lease.job.job_id) as shard:
            shard.settle(lease, event, state, events)

    def release(self, lease: Lease) -> None:
        """Returns an unfinished job to the queue."""
        with self._using(lease.job.job_id) as shard:
            shard.release(lease)

    def ping(self) -> None:
        """Returns when a shard answers. Raises Unavailable if none does."""
        failures = []
        for shard in self._shards:
            try:
                with shard.in_use():
                    return shard.ping()
            except Unavailable as away:
                failures.append(away)
        raise failures[0]

    def close(self) -> None:
        """Closes all connections."""
        for shard in self._shards:
            shard.close()

    def _of(self, job_id: str) -> _WorkerShard:
        return self._shards[shard_of(job_id, len(self._shards))]

    @contextmanager
    def _using(self, job_id: str) -> Iterator[_WorkerShard]:
        shard = self._of(job_id)
        with shard.in_use():
            yield shard

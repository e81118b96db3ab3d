"""The rules of the queue over plain Python objects, under one lock: what the scripts are to Redis."""

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from sagittal.core.errors import AlreadyExists, FailedPrecondition, Overloaded, UnknownJob
from sagittal.core.jobs import Backlog, CachePolicy, Cancellation, Job, JobState, Lane, Lease, NewJob, StoredRequest
from sagittal.runtime.admission import overloaded
from sagittal.runtime.job_events import (
    LASTING,
    TERMINAL,
    Ending,
    cancelled_event,
    forgotten_request,
    position,
    read_settled,
)
from sagittal.runtime.memory_ledger import MemoryLedger
from sagittal.runtime.memory_parts import AttachedParts
from sagittal.runtime.memory_records import Record, Run, lease_of, next_token
from sagittal.runtime.queue import LeaseLost
from sagittal.runtime.settings import QueueSettings

Share = tuple[str, str, Lane]


class MemoryStore:
    """Jobs and runs of one process. `changed` is notified of everything that is queued or written."""

    def __init__(self, settings: QueueSettings, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self.ledger = MemoryLedger(settings)
        self.changed = threading.Condition(threading.RLock())
        self._clock = clock
        self._jobs: dict[str, Record] = {}
        self._runs: dict[str, Run] = {}
        self._requests: dict[tuple[str, str], str] = {}
        self._flights: dict[tuple[str, str], Run] = {}
        self._answers: dict[tuple[str, str], Record] = {}
        self._clocks: defaultdict[Share, float] = defaultdict(float)
        self._tags: defaultdict[tuple[Share, str], float] = defaultdict(float)
        self._listeners: set[Callable[[str], None]] = set()
        self._called: set[str] = set()
        self._parts = AttachedParts()
        self._turn = 0
        self._number = 0

    # --- the service's side

    def submit(self, job: NewJob, accepted: bytes) -> tuple[Job, bool]:
        """Accepts a job, or returns the one that was accepted under its identifier or `request_id`."""
        with self.changed:
            known = self._jobs.get(job.job_id) or self._jobs.get(self._requests.get((job.tenant, job.request_id), ""))
            if known is not None:
                if known.fingerprint != job.fingerprint:
                    raise AlreadyExists(
                        f"request_id {job.request_id!r} belongs to job {known.new.job_id}, whose content is another: "
                        "choose a new request_id, or send the same request",
                        field="spec.request_id",
                    )
                return known.view(), known.new.job_id == job.job_id
            record = self._answer(job, accepted) or self._join(job, accepted) or self._begin(job, accepted)
            self._tell([record])
            return record.view(), True

    def attach(self, job_id: str, name: str, part: bytes) -> None:
        """Stores a part of a job that will be submitted. Raises Overloaded."""
        with self.changed:
            if not self._make_room(len(part)):
                raise overloaded("bytes", self.settings.max_stored_bytes, None, self.settings)
            self._parts.add(job_id, name, part, self._clock())

    def attachment(self, job_id: str, name: str) -> bytes | None:
        """Returns a part of a job; None where it is not kept."""
        with self.changed:
            return self._parts.get(job_id, name)

    def find(self, job_id: str) -> Record:
        """Returns a job's record. Raises UnknownJob."""
        try:
            return self._jobs[job_id]
        except KeyError:
            raise UnknownJob(
                f"no job {job_id!r}: it never was, was deleted, or its retention has passed", field="job_id"
            ) from None

    def request_of(self, job_id: str) -> StoredRequest:
        """Returns what a job was made of. Raises UnknownJob, FailedPrecondition."""
        with self.changed:
            run = self.find(job_id).run
            if run is None or self._runs.get(run.new.job_id) is not run:
                raise forgotten_request(job_id)
            return StoredRequest(request=run.new.request, images=dict(run.new.images))

    def cancel(self, job_id: str, reason: str) -> Job:
        """Cancels a job."""
        with self.changed:
            record = self.find(job_id)
            run = record.run
            if record.state is None and run is not None:
                event = cancelled_event(reason, self._clock())
                if len(run.jobs) > 1:
                    self._leave(record, run, event, JobState.CANCELLED)
                elif run.state is JobState.QUEUED:
                    self._finish(run, event, JobState.CANCELLED, own=False)
                elif not run.cancel:
                    run.cancel, run.cancelled = reason, self._clock()
                    self._called.add(run.worker)
                    self.changed.notify_all()
            return record.view()

    def delete(self, job_id: str) -> None:
        """Deletes an ended job."""
        with self.changed:
            record = self.find(job_id)
            state = record.view().state
            if not state.ended:
                raise FailedPrecondition(f"job {job_id} is {state.value}: cancel it, and delete it when it has ended")
            self._drop(record)

    def page(self, wanted: Callable[[Job], bool], limit: int, token: str) -> tuple[list[Job], str]:
        """Returns a page of jobs, newest first."""
        with self.changed:
            before = int(token) if token.isdecimal() else math.inf
            found: list[Job] = []
            last = 0
            for record in sorted(self._jobs.values(), key=lambda each: -each.number):
                job = record.view()
                if record.number >= before or not wanted(job):
                    continue
                if len(found) == limit:
                    return found, str(last)
                found.append(job)
                last = record.number
            return found, ""

    def backlog(self) -> dict[tuple[str, str], Backlog]:
        """Returns the work by (model, lane)."""
        with self.changed:
            groups: defaultdict[tuple[str, str], list[Run]] = defaultdict(list)
            for run in self._runs.values():
                if run.live:
                    groups[run.new.model, run.lane.value].append(run)
            return {where: self._count(runs) for where, runs in groups.items()}

    def listen(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Calls `listener` with the identifier of each job whose log grows, from any thread; returns how to stop."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    # --- the workers' side

    def take(self, models: Sequence[tuple[str, str]], worker: str) -> Lease | None:
        """Takes the next run of these models."""
        with self.changed:
            self.sweep()
            self._turn += 1
            lanes = [Lane.INTERACTIVE, Lane.BATCH]
            if self._turn % self.settings.batch_every == 0:
                lanes.reverse()
            start = self._turn % len(models) if models else 0
            for lane in lanes:
                for model in [*models[start:], *models[:start]]:
                    waiting = [run for run in self._waiting(lane) if (run.new.model, run.new.version) == model]
                    if waiting:
                        return self._begin_lease(min(waiting, key=lambda run: run.tag), worker)
            return None

    def called(self, worker: str) -> bool:
        """Whether there is word for a worker since it was last asked."""
        with self.changed:
            there = worker in self._called
            self._called.discard(worker)
            return there

    def keep(self, lease: Lease) -> Cancellation | bool:
        """Keeps a lease; returns its cancellation where there is one, else whether it is still held."""
        with self.changed:
            run = self._runs.get(lease.job.job_id)
            if run is None or not _holds(run, lease):
                return False
            now = self._clock()
            run.expires = now + self.settings.lease_seconds
            if run.cancel:
                return Cancellation(lease=lease, reason=run.cancel, age=now - run.cancelled)
            if now > run.deadline + self.settings.lease_seconds:
                return Cancellation(lease=lease, reason="deadline", age=0.0)
            return True

    def write(self, lease: Lease, events: Sequence[tuple[bytes, bytes]]) -> None:
        """Appends events to the logs of all jobs of a run."""
        with self.changed:
            run = self._held(lease)
            size = run.jobs[0].size + sum(len(payload) + 1 for _, payload in events)
            if size > self.settings.max_log_bytes:
                raise Overloaded(
                    f"the events of job {lease.job.job_id} have reached {self.settings.max_log_bytes} bytes, the most "
                    "they may (max_log_bytes): ask for fewer partial masks"
                )
            for kind, payload in events:
                self._write(run, kind, payload, own=True)
            self._tell(run.jobs)

    def checkpoint(self, lease: Lease, state: bytes) -> None:
        """Stores the state from which another attempt goes on."""
        with self.changed:
            self._held(lease).checkpoint = state

    def settle(self, lease: Lease, event: bytes, state: JobState, events: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Ends a run."""
        with self.changed:
            run = self._runs.get(lease.job.job_id)
            if run is not None and run.state is state and run.token == lease.token:
                return
            run, settled = self._held(lease), read_settled(event)
            if events:
                self.write(lease, events)
            self._finish(run, event, state, own=True, reason=settled.reason)
            if state is not JobState.COMPLETED:
                return
            self.ledger.learn(run, settled, self._clock())
            if settled.may_answer and (key := _shared(run.new)) and self.settings.cache_seconds:
                self._answers[key] = run.jobs[0]

    def release(self, lease: Lease) -> None:
        """Hands a run back; the attempt does not count."""
        with self.changed:
            run = self._held(lease)
            run.state, run.attempt, run.worker, run.expires = JobState.QUEUED, run.attempt - 1, "", math.inf
            if run.cancel:
                self._finish(run, cancelled_event(run.cancel, self._clock()), JobState.CANCELLED, own=False)
            self.changed.notify_all()

    # --- both sides

    def sweep(self) -> int:
        """Ends what is overdue, requeues what was lost, drops what retention has passed; returns what it ended."""
        with self.changed:
            now = self._clock()
            ended = sum(self._check_lease(run, now) for run in list(self._runs.values()))
            ended += sum(self._check_deadline(record, now) for record in list(self._jobs.values()))
            for run_id, run in list(self._runs.items()):
                if run.state.ended and now - run.ended >= self.settings.image_retention_seconds:
                    del self._runs[run_id]
                    self._parts.drop(run_id)
            for record in list(self._jobs.values()):
                if record.ended is not None and now - record.ended >= self.settings.retention_seconds:
                    self._drop(record)
            self._parts.forget(set(self._runs), now - self.settings.attachment_seconds)
            return ended

    # --- how

    def _answer(self, job: NewJob, accepted: bytes) -> Record | None:
        key = _shared(job)
        source = self._answers.get(key) if key and job.cache is CachePolicy.USE else None
        if source is None or source.new.job_id not in self._jobs or source.ended is None:
            return None
        now = self._clock()
        if now - source.ended > self.settings.cache_seconds or not self._make_room(source.size, keep=source):
            return None
        record = self._store(job, accepted, source.run, 0)
        record.copy_answer(source, now)
        record.state, record.ended = JobState.COMPLETED, now
        return record

    def _join(self, job: NewJob, accepted: bytes) -> Record | None:
        key = _shared(job)
        run = self._flights.get(key) if key and job.cache is CachePolicy.USE else None
        if run is None or run.cancel or not self._in_time(run, job) or len(run.jobs) >= self.settings.max_sharers:
            return None
        if not self._make_room(run.jobs[0].size):
            return None
        events = run.jobs[0].log[1:]
        queued = run.state is JobState.QUEUED
        older = [each for each in self._waiting(run.lane) if each.new.model == job.model and each.created < run.created]
        record = self._store(job, accepted, run, len(older) if queued else 0)
        for kind, payload in events:
            record.write(kind, payload, own=False)
        run.jobs.append(record)
        if queued:
            run.deadline = max(run.deadline, _deadline(job))
            if job.lane is Lane.INTERACTIVE and run.lane is Lane.BATCH:
                run.lane = job.lane
                run.tag = self._clocks[job.model, job.version, job.lane]
        return record

    def _begin(self, job: NewJob, accepted: bytes) -> Record:
        self._admit(job, len(accepted) + 1)
        share = (job.model, job.version, job.lane)
        if not any((each.new.model, each.new.version) == share[:2] for each in self._waiting(job.lane)):
            self._clocks.pop(share, None)
            for tag_key in [each for each in self._tags if each[0] == share]:
                del self._tags[tag_key]
        cost = self.ledger.evaluations(job) / self.settings.tenant_weights.get(job.tenant, 1.0)
        tag = max(self._clocks[share], self._tags[share, job.tenant]) + cost
        self._tags[share, job.tenant] = tag
        run = Run(new=job, lane=job.lane, deadline=_deadline(job), tag=tag, created=self._clock())
        ahead = sum(each.live and (each.new.model, each.lane) == share[::2] for each in self._runs.values())
        self._runs[job.job_id] = run
        if (key := _shared(job)) is not None:
            self._flights[key] = run
        record = self._store(job, accepted, run, ahead)
        run.jobs.append(record)
        self.changed.notify_all()
        return record

    def _admit(self, job: NewJob, extra: int) -> None:
        running = sum(run.lane is job.lane and run.state is JobState.RUNNING for run in self._runs.values())
        refusal = self.ledger.refusal(job, self._waiting(job.lane), running)
        if refusal is not None:
            raise refusal
        if not self._make_room(len(job.request) + sum(map(len, job.images.values())) + extra):
            raise overloaded("bytes", self.settings.max_stored_bytes, None, self.settings)

    def _store(self, job: NewJob, accepted: bytes, run: Run | None, ahead: int) -> Record:
        self._number += 1
        record = Record(job, self._clock(), self._number, job.fingerprint, run)
        record.write(LASTING, accepted + position(ahead), own=True)
        self._jobs[job.job_id] = record
        if job.request_id:
            self._requests[job.tenant, job.request_id] = job.job_id
        return record

    def _in_time(self, run: Run, job: NewJob) -> bool:
        if run.state is JobState.QUEUED or math.isinf(run.deadline):
            return True
        now = self._clock()
        return run.deadline - now >= (_deadline(job) - now) / 2

    def _make_room(self, size: int, keep: Record | None = None) -> bool:
        """Drops the images, then the logs, of the jobs that ended longest ago until `size` bytes more fit."""
        spent = sorted((run for run in self._runs.values() if run.state.ended), key=lambda run: run.ended)
        ended = [record for record in self._jobs.values() if record.ended is not None and record is not keep]
        ended.sort(key=lambda record: record.ended or 0.0)
        while self._stored() + size > self.settings.max_stored_bytes:
            if spent:
                gone = spent.pop(0).new.job_id
                del self._runs[gone]
                self._parts.drop(gone)
            elif ended:
                self._drop(ended.pop(0))
            else:
                return False
        return True

    def _stored(self) -> int:
        runs = sum(run.size for run in self._runs.values())
        return runs + sum(record.size for record in self._jobs.values()) + self._parts.size

    def _waiting(self, lane: Lane) -> list[Run]:
        return [run for run in self._runs.values() if run.lane is lane and run.state is JobState.QUEUED]

    def _begin_lease(self, run: Run, worker: str) -> Lease:
        self._clocks[run.new.model, run.new.version, run.lane] = run.tag
        run.state, run.worker, run.token = JobState.RUNNING, worker, next_token(run)
        run.attempt += 1
        run.expires = self._clock() + self.settings.lease_seconds
        return lease_of(run)

    def _held(self, lease: Lease) -> Run:
        run = self._runs.get(lease.job.job_id)
        if run is None or not _holds(run, lease):
            raise LeaseLost(f"job {lease.job.job_id} was leased again or has ended; token {lease.token} is stale")
        return run

    def _check_lease(self, run: Run, now: float) -> int:
        if run.state is not JobState.RUNNING or run.expires > now:
            return 0
        if run.cancel:
            return self._end(run, "cancelled", now)
        if run.deadline <= now:
            return self._end(run, "expired", now)
        if run.attempt >= self.settings.max_attempts:
            return self._end(run, "buried", now)
        run.state, run.expires = JobState.QUEUED, math.inf
        self.changed.notify_all()
        return 0

    def _check_deadline(self, record: Record, now: float) -> int:
        run = record.run
        if record.state is not None or run is None or _deadline(record.new) > now:
            return 0
        if len(run.jobs) > 1 and (run.state is JobState.QUEUED or run.deadline != record.new.deadline):
            ending = _ending(run, "expired", "job")
            self._leave(record, run, ending.event(now), ending.state, ending.error_reason)
            return 1
        return self._end(run, "expired", now) if run.state is JobState.QUEUED else 0

    def _end(self, run: Run, reason: Literal["buried", "cancelled", "expired"], now: float) -> int:
        ending = _ending(run, reason, "run")
        self._finish(run, ending.event(now), ending.state, own=False, reason=ending.error_reason)
        return 1

    def _finish(self, run: Run, event: bytes, state: JobState, *, own: bool, reason: str = "") -> None:
        self._write(run, TERMINAL, event, own=own)
        run.ended, run.checkpoint = self._clock(), None
        for record in run.jobs:
            record.state, record.ended = state, run.ended
            record.attempt, record.worker, record.reason = run.attempt, run.worker, reason
        run.state, run.expires = state, math.inf
        key = _shared(run.new)
        if key is not None and self._flights.get(key) is run:
            del self._flights[key]
        self._tell(run.jobs)

    def _leave(self, record: Record, run: Run, event: bytes, state: JobState, reason: str = "") -> None:
        record.write(TERMINAL, event, own=False)
        record.state, record.ended = state, self._clock()
        record.attempt, record.worker, record.reason = run.attempt, run.worker, reason
        run.jobs.remove(record)
        self._tell([record])

    def _write(self, run: Run, kind: bytes, payload: bytes, *, own: bool) -> None:
        for record in run.jobs:
            record.write(kind, payload, own=own and record.new.job_id == run.new.job_id)

    def _drop(self, record: Record) -> None:
        del self._jobs[record.new.job_id]
        key = (record.new.tenant, record.new.request_id)
        if self._requests.get(key) == record.new.job_id:
            del self._requests[key]
        if (answer := _shared(record.new)) is not None and self._answers.get(answer) is record:
            del self._answers[answer]
        if record.run is not None and record in record.run.jobs:
            record.run.jobs.remove(record)
            if not record.run.jobs:
                self._runs.pop(record.run.new.job_id, None)

    def _count(self, runs: Sequence[Run]) -> Backlog:
        queued = [run for run in runs if run.state is JobState.QUEUED]
        oldest = max((self._clock() - run.created for run in queued), default=0.0)
        return Backlog(queued=len(queued), running=len(runs) - len(queued), oldest_seconds=max(oldest, 0.0))

    def _tell(self, records: Iterable[Record]) -> None:
        for listener in list(self._listeners):
            for record in records:
                listener(record.new.job_id)


def _holds(run: Run, lease: Lease) -> bool:
    return run.state is JobState.RUNNING and run.token == lease.token


def _deadline(job: NewJob) -> float:
    return math.inf if job.deadline is None else job.deadline


def _shared(job: NewJob) -> tuple[str, str] | None:
    """Returns the key under which the job's run and answer are shared; None where they are not."""
    return (job.tenant, job.content_key) if job.content_key and job.cache is not CachePolicy.BYPASS else None


def _ending(run: Run, reason: Literal["buried", "cancelled", "expired"], scope: Literal["run", "job"]) -> Ending:
    return Ending(
        reason=reason,
        scope=scope,
        job_id=run.new.job_id,
        token=str(run.token),
        attempt=run.attempt,
        worker=run.worker,
        detail=run.cancel,
    )

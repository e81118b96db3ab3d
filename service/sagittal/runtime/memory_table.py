"""What the in-memory queue holds, and the steps that its rules are made of: what `common.lua` is to the scripts."""

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable

from sagittal.core.errors import UnknownJob
from sagittal.core.jobs import CachePolicy, JobState, Lane, Lease, NewJob
from sagittal.runtime.job_events import LASTING, TERMINAL, position
from sagittal.runtime.memory_ledger import MemoryLedger
from sagittal.runtime.memory_parts import AttachedParts
from sagittal.runtime.memory_records import Record, Run
from sagittal.runtime.queue import LeaseLost
from sagittal.runtime.settings import QueueSettings

Share = tuple[str, str, Lane]
"""Model, version and lane: where tenants share."""


class MemoryTable:
    """Jobs and runs of one process, to be touched under `changed`, which hears of what is queued or written."""

    def __init__(self, settings: QueueSettings, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.ledger = MemoryLedger(settings)
        self.changed = threading.Condition(threading.RLock())
        self.clock = clock
        self.jobs: dict[str, Record] = {}
        self.runs: dict[str, Run] = {}
        self.requests: dict[tuple[str, str], str] = {}
        self.flights: dict[tuple[str, str], Run] = {}
        self.answers: dict[tuple[str, str], Record] = {}
        self.clocks: defaultdict[Share, float] = defaultdict(float)
        self.tags: defaultdict[tuple[Share, str], float] = defaultdict(float)
        self.parts = AttachedParts()
        self._listeners: set[Callable[[str], None]] = set()
        self._number = 0

    def find(self, job_id: str) -> Record:
        """Returns a job's record. Raises UnknownJob."""
        try:
            return self.jobs[job_id]
        except KeyError:
            raise UnknownJob(
                f"no job {job_id!r}: it never was, was deleted, or its retention has passed", field="job_id"
            ) from None

    def held(self, lease: Lease) -> Run:
        """Returns the run of a lease. Raises LeaseLost where it is another's by now."""
        run = self.runs.get(lease.job.job_id)
        if run is None or not holds(run, lease):
            raise LeaseLost(f"job {lease.job.job_id} was leased again or has ended; token {lease.token} is stale")
        return run

    def waiting(self, lane: Lane) -> list[Run]:
        """Returns the runs that wait in a lane."""
        return [run for run in self.runs.values() if run.lane is lane and run.state is JobState.QUEUED]

    def add(self, job: NewJob, accepted: bytes, run: Run | None, ahead: int) -> Record:
        """Stores a job with its first event."""
        self._number += 1
        record = Record(job, self.clock(), self._number, job.fingerprint, run)
        record.write(LASTING, accepted + position(ahead), own=True)
        self.jobs[job.job_id] = record
        if job.request_id:
            self.requests[job.tenant, job.request_id] = job.job_id
        return record

    def append(self, run: Run, kind: bytes, payload: bytes, *, own: bool) -> None:
        """Appends an event to the logs of all jobs of a run."""
        for record in run.jobs:
            record.write(kind, payload, own=own and record.new.job_id == run.new.job_id)

    def finish(self, run: Run, event: bytes, state: JobState, *, own: bool, reason: str = "") -> None:
        """Ends a run with every job that shares it."""
        self.append(run, TERMINAL, event, own=own)
        run.ended, run.checkpoint = self.clock(), None
        for record in run.jobs:
            record.state, record.ended = state, run.ended
            record.attempt, record.worker, record.reason = run.attempt, run.worker, reason
        run.state, run.expires = state, math.inf
        key = shared_key(run.new)
        if key is not None and self.flights.get(key) is run:
            del self.flights[key]
        self.tell(run.jobs)

    def leave(self, record: Record, run: Run, event: bytes, state: JobState, reason: str = "") -> None:
        """Ends one of several jobs that share a run, which goes on for the others."""
        record.write(TERMINAL, event, own=False)
        record.state, record.ended = state, self.clock()
        record.attempt, record.worker, record.reason = run.attempt, run.worker, reason
        run.jobs.remove(record)
        self.tell([record])

    def drop(self, record: Record) -> None:
        """Forgets a job with all that names it, and its run where no other job has it."""
        del self.jobs[record.new.job_id]
        key = (record.new.tenant, record.new.request_id)
        if self.requests.get(key) == record.new.job_id:
            del self.requests[key]
        if (answer := shared_key(record.new)) is not None and self.answers.get(answer) is record:
            del self.answers[answer]
        if record.run is not None and record in record.run.jobs:
            record.run.jobs.remove(record)
            if not record.run.jobs:
                self.runs.pop(record.run.new.job_id, None)

    def make_room(self, size: int, keep: Record | None = None) -> bool:
        """Drops the images, then the logs, of the jobs that ended longest ago until `size` bytes more fit."""
        spent = sorted((run for run in self.runs.values() if run.state.ended), key=lambda run: run.ended)
        ended = [record for record in self.jobs.values() if record.ended is not None and record is not keep]
        ended.sort(key=lambda record: record.ended or 0.0)
        while self._stored() + size > self.settings.max_stored_bytes:
            if spent:
                gone = spent.pop(0).new.job_id
                del self.runs[gone]
                self.parts.drop(gone)
            elif ended:
                self.drop(ended.pop(0))
            else:
                return False
        return True

    def _stored(self) -> int:
        runs = sum(run.size for run in self.runs.values())
        return runs + sum(record.size for record in self.jobs.values()) + self.parts.size

    def listen(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Calls `listener` with the identifier of each job whose log grows, from any thread; returns how to stop."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def tell(self, records: Iterable[Record]) -> None:
        """Tells the listeners of jobs whose logs have grown."""
        for listener in list(self._listeners):
            for record in records:
                listener(record.new.job_id)


def holds(run: Run, lease: Lease) -> bool:
    """Whether a lease is the one that a run has."""
    return run.state is JobState.RUNNING and run.token == lease.token


def deadline_of(job: NewJob) -> float:
    """Returns a job's deadline; infinity for none."""
    return math.inf if job.deadline is None else job.deadline


def shared_key(job: NewJob) -> tuple[str, str] | None:
    """Returns the key under which the job's run and answer are shared; None where they are not."""
    return (job.tenant, job.content_key) if job.content_key and job.cache is not CachePolicy.BYPASS else None

"""The rules of the queue over plain Python objects, under one lock: what the scripts are to Redis."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

from sagittal.core.errors import FailedPrecondition, Overloaded
from sagittal.core.jobs import Backlog, Cancellation, Job, JobState, Lane, Lease, NewJob, StoredRequest
from sagittal.runtime.admission import overloaded
from sagittal.runtime.job_events import cancelled_event, forgotten_request, read_settled
from sagittal.runtime.memory_records import Record, Run, lease_of, next_token
from sagittal.runtime.memory_submission import submit
from sagittal.runtime.memory_sweep import sweep
from sagittal.runtime.memory_table import MemoryTable, holds, shared_key
from sagittal.runtime.settings import QueueSettings


class MemoryStore:
    """Jobs and runs of one process. `changed` is notified of everything that is queued or written."""

    def __init__(self, settings: QueueSettings, clock: Callable[[], float] = time.time) -> None:
        self._table = MemoryTable(settings, clock)
        self.settings, self.ledger, self.changed = settings, self._table.ledger, self._table.changed
        self._called: set[str] = set()
        self._turn = 0

    # --- the service's side

    def submit(self, job: NewJob, accepted: bytes) -> tuple[Job, bool]:
        """Accepts a job, or returns the one that was accepted under its identifier or `request_id`."""
        with self.changed:
            return submit(self._table, job, accepted)

    def attach(self, job_id: str, name: str, part: bytes) -> None:
        """Stores a part of a job that will be submitted. Raises Overloaded."""
        with self.changed:
            if not self._table.make_room(len(part)):
                raise overloaded("bytes", self.settings.max_stored_bytes, None, self.settings)
            self._table.parts.add(job_id, name, part, self._table.clock())

    def attachment(self, job_id: str, name: str) -> bytes | None:
        """Returns a part of a job; None where it is not kept."""
        with self.changed:
            return self._table.parts.get(job_id, name)

    def find(self, job_id: str) -> Record:
        """Returns a job's record. Raises UnknownJob."""
        return self._table.find(job_id)

    def request_of(self, job_id: str) -> StoredRequest:
        """Returns what a job was made of. Raises UnknownJob, FailedPrecondition."""
        with self.changed:
            run = self.find(job_id).run
            if run is None or self._table.runs.get(run.new.job_id) is not run:
                raise forgotten_request(job_id)
            return StoredRequest(request=run.new.request, images=dict(run.new.images))

    def cancel(self, job_id: str, reason: str) -> Job:
        """Cancels a job."""
        with self.changed:
            record = self.find(job_id)
            run = record.run
            if record.state is None and run is not None:
                event = cancelled_event(reason, self._table.clock())
                if len(run.jobs) > 1:
                    self._table.leave(record, run, event, JobState.CANCELLED)
                elif run.state is JobState.QUEUED:
                    self._table.finish(run, event, JobState.CANCELLED, own=False)
                elif not run.cancel:
                    run.cancel, run.cancelled = reason, self._table.clock()
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
            self._table.drop(record)

    def page(self, wanted: Callable[[Job], bool], limit: int, token: str) -> tuple[list[Job], str]:
        """Returns a page of jobs, newest first."""
        with self.changed:
            before = int(token) if token.isdecimal() else math.inf
            found: list[Job] = []
            last = 0
            for record in sorted(self._table.jobs.values(), key=lambda each: -each.number):
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
            for run in self._table.runs.values():
                if run.live:
                    groups[run.new.model, run.lane.value].append(run)
            return {where: self._count(runs) for where, runs in groups.items()}

    def listen(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Calls `listener` with the identifier of each job whose log grows, from any thread; returns how to stop."""
        return self._table.listen(listener)

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
                    waiting = [run for run in self._table.waiting(lane) if (run.new.model, run.new.version) == model]
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
            run = self._table.runs.get(lease.job.job_id)
            if run is None or not holds(run, lease):
                return False
            now = self._table.clock()
            run.expires = now + self.settings.lease_seconds
            if run.cancel:
                return Cancellation(lease=lease, reason=run.cancel, age=now - run.cancelled)
            if now > run.deadline + self.settings.lease_seconds:
                return Cancellation(lease=lease, reason="deadline", age=0.0)
            return True

    def write(self, lease: Lease, events: Sequence[tuple[bytes, bytes]]) -> None:
        """Appends events to the logs of all jobs of a run."""
        with self.changed:
            run = self._table.held(lease)
            size = run.jobs[0].size + sum(len(payload) + 1 for _, payload in events)
            if size > self.settings.max_log_bytes:
                raise Overloaded(
                    f"the events of job {lease.job.job_id} have reached {self.settings.max_log_bytes} bytes, the most "
                    "they may (max_log_bytes): ask for fewer partial masks"
                )
            for kind, payload in events:
                self._table.append(run, kind, payload, own=True)
            self._table.tell(run.jobs)

    def checkpoint(self, lease: Lease, state: bytes) -> None:
        """Stores the state from which another attempt goes on."""
        with self.changed:
            self._table.held(lease).checkpoint = state

    def settle(self, lease: Lease, event: bytes, state: JobState, events: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Ends a run."""
        with self.changed:
            run = self._table.runs.get(lease.job.job_id)
            if run is not None and run.state is state and run.token == lease.token:
                return
            run, settled = self._table.held(lease), read_settled(event)
            if events:
                self.write(lease, events)
            self._table.finish(run, event, state, own=True, reason=settled.reason)
            if state is not JobState.COMPLETED:
                return
            self.ledger.learn(run, settled, self._table.clock())
            if settled.may_answer and (key := shared_key(run.new)) and self.settings.cache_seconds:
                self._table.answers[key] = run.jobs[0]

    def release(self, lease: Lease) -> None:
        """Hands a run back; the attempt does not count."""
        with self.changed:
            run = self._table.held(lease)
            run.state, run.attempt, run.worker, run.expires = JobState.QUEUED, run.attempt - 1, "", math.inf
            if run.cancel:
                self._table.finish(run, cancelled_event(run.cancel, self._table.clock()), JobState.CANCELLED, own=False)
            self.changed.notify_all()

    # --- both sides

    def sweep(self) -> int:
        """Ends what is overdue, requeues what was lost, drops what retention has passed; returns what it ended."""
        with self.changed:
            return sweep(self._table)

    # --- how

    def _begin_lease(self, run: Run, worker: str) -> Lease:
        self._table.clocks[run.new.model, run.new.version, run.lane] = run.tag
        run.state, run.worker, run.token = JobState.RUNNING, worker, next_token(run)
        run.attempt += 1
        run.expires = self._table.clock() + self.settings.lease_seconds
        return lease_of(run)

    def _count(self, runs: Sequence[Run]) -> Backlog:
        queued = [run for run in runs if run.state is JobState.QUEUED]
        oldest = max((self._table.clock() - run.created for run in queued), default=0.0)
        return Backlog(queued=len(queued), running=len(runs) - len(queued), oldest_seconds=max(oldest, 0.0))

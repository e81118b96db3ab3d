"""The queue's state machine as an executable specification: what each Lua script does and answers.

`Queue` has one method for each script; each call happens completely or not at all, as a script does. If the queue may
choose (which execution a lease takes), the specification names the choices. `Queue.faults` returns which of the
promises 1, 2, 3, 5 and 7 of docs/guarantees.md a state breaks. `explore.py` also checks promise 8, and that jobs end
after every client died (promises 1 and 4).

Left out, because other promises are about them: bytes and admission limits, fair shares, batches, images, retention.
Jobs and executions are numbers; an execution has the number of the job that started it. Times are in seconds.
"""

from collections.abc import Hashable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import NamedTuple

QUEUED, RUNNING, COMPLETED, FAILED, CANCELLED = "queued", "running", "completed", "failed", "cancelled"

#: Seconds for which a call of `lease` or `delete` may be repeated, and for which a busy worker is kept free.
REPEAT_SECONDS = HELD_SECONDS = 60


@dataclass(frozen=True)
class Limits:
    """The settings that the specification knows."""

    lease_seconds: int = 20
    cache_seconds: int = 40
    max_attempts: int = 2


class Event(NamedTuple):
    """An event of an execution's log."""

    kind: str
    """'p' passing, 'e' lasting, 't' terminal, 'T' terminal and made by the queue."""
    writer: int
    """Token of the lease under which it was written; 0 for the queue."""
    text: str


class Ending(NamedTuple):
    """An execution or a job that a script asks its caller to end."""

    reason: str
    """'dead-lettered', 'cancelled' or 'expired'."""
    scope: str
    """'run' or 'job'."""
    number: int
    token: int


class Taken(NamedTuple):
    """A lease, as a worker knows it."""

    run: int
    token: int
    attempt: int
    alone: bool
    checkpoint: str


@dataclass
class Job:
    """A job of a caller, which may share its execution with others."""

    run: int
    deadline: int | None
    look: int | None
    """When the sweep next compares its deadline with the clock."""
    state: str = ""
    """Empty until it has ended."""
    ended: int = 0
    reason: str = ""
    attempt: int = 0
    closing: Event | None = None
    """Its own last event, if it ended before its execution."""
    reads: int | None = None
    """Events of the execution's log that belong to it; None for all."""
    cached: bool = False
    """Whether it reads lasting events only, because it was answered from the cache."""


@dataclass
class Run:
    """An execution: the work that equal jobs share."""

    content: str
    subs: list[int]
    """Its jobs that have not left."""
    deadline: int | None
    state: str = QUEUED
    token: int = 0
    attempt: int = 0
    expires: int = 0
    batch: int = 0
    cancelled: int | None = None
    """When its cancellation was accepted."""
    suspect: bool = False
    alone: bool = False
    since: int = 0
    """When it began to wait, as a suspect, for an idle worker."""
    holder: tuple[str, int] | None = None
    """The busy worker that is kept free for it, and until when."""
    checkpoint: str = ""
    log: list[Event] = field(default_factory=list)
    dropped: bool = False
    """Whether it is deleted, with the last of its jobs. Its log is kept for jobs that were answered from the cache."""
    deaths: int = 0
    """Leases that expired; no script knows this number."""
    deaths_alone: int = 0

    def rest(self) -> Iterator[Hashable]:
        """Yields the values of all fields except the lists."""
        return (value for name, value in vars(self).items() if name not in ("subs", "log"))

    def copy(self) -> "Run":
        """Returns an independent copy."""
        other = copy(self)
        other.subs, other.log = list(self.subs), list(self.log)
        return other


def latest(deadlines: Sequence[int | None]) -> int | None:
    """Returns the latest deadline; None if one has none."""
    return None if None in deadlines else max(each for each in deadlines if each is not None)


@dataclass
class Queue:
    """All jobs and executions."""

    limits: Limits = field(default_factory=Limits)
    now: int = 0
    jobs: dict[int, Job] = field(default_factory=dict)
    runs: dict[int, Run] = field(default_factory=dict)
    flights: dict[str, int] = field(default_factory=dict)
    """The execution that an equal job may join, by content."""
    answers: dict[str, tuple[int, int]] = field(default_factory=dict)
    """The job whose answer an equal job gets, and until when, by content."""
    takes: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Run, token and time of the last lease of a worker, for a repeated call."""
    deleted: dict[int, int] = field(default_factory=dict)
    """When jobs were deleted, for a repeated call."""

    # Scripts of the service.

    def submit(self, number: int, content: str, deadline: int | None) -> str:
        """Accepts a job. `content` is TENANT:KEY, or empty if the job shares nothing."""
        if number in self.jobs:
            return "new"  # the call was repeated
        answered, flight = self._answer(content), self._joinable(content, deadline)
        if answered is not None:
            run = self.jobs[answered].run
            lasting = len([event for event in self.runs[run].log if event.kind != "p"])
            self.jobs[number] = Job(run, deadline, None, COMPLETED, self.now, reads=lasting, cached=True)
            return "cached"
        if flight is not None:
            self.jobs[number] = Job(flight, deadline, deadline)
            run_ = self.runs[flight]
            run_.subs.append(number)
            if run_.state == QUEUED:
                run_.deadline = latest([run_.deadline, deadline])
            return "joined"
        self.jobs[number] = Job(number, deadline, deadline)
        self.runs[number] = Run(content, [number], deadline)
        if content:
            self.flights[content] = number
        return "new"

    def _answer(self, content: str) -> int | None:
        job, until = self.answers.get(content, (-1, 0))
        fresh = job in self.jobs and self.now < until and self.now - self.jobs[job].ended <= self.limits.cache_seconds
        return job if fresh else None

    def _joinable(self, content: str, deadline: int | None) -> int | None:
        """Returns the execution that a job joins: one that is not being cancelled and has enough time left."""
        number = self.flights.get(content)
        if number is None or self.runs[number].cancelled is not None:
            return None
        run = self.runs[number]
        if run.state == QUEUED or run.deadline is None:
            return number
        in_time = deadline is not None and run.deadline - self.now >= (deadline - self.now) / 2
        return number if in_time else None

    def cancel(self, number: int) -> str:
        """Cancels a job; a running execution that nobody shares is marked for its worker."""
        job = self.jobs.get(number)
        if job is None:
            return "unknown"
        run = self.runs[job.run]
        if not job.state:
            if len(run.subs) > 1:
                self._leave(number, CANCELLED)
            elif run.state == QUEUED:
                self._finish(job.run, CANCELLED, [Event("T", 0, CANCELLED)])
            elif run.cancelled is None:
                run.cancelled = self.now
        return job.state or run.state

    def delete(self, number: int, *, again: bool) -> str:
        """Deletes an ended job, and succeeds if the call is sent again; the log stays for the jobs that share it."""
        job = self.jobs.get(number)
        if job is None:
            repeated = again and self.now < self.deleted.get(number, -REPEAT_SECONDS) + REPEAT_SECONDS
            return "ok" if repeated else "unknown"
        if not job.state:
            return self.runs[job.run].state
        run = self.runs[job.run]
        if number in run.subs:
            run.subs.remove(number)
            run.dropped = not run.subs
        del self.jobs[number]
        self.deleted[number] = self.now
        self.answers = {content: answer for content, answer in self.answers.items() if answer[0] != number}
        return "ok"

    # Scripts of workers.

    def choices(self, worker: str, *, busy: bool) -> Sequence[int | str]:
        """Returns what a lease may take: executions, 'hold', or 'none'. Suspects wait for an idle worker."""
        waiting = [number for number, run in self.runs.items() if run.state == QUEUED]
        ready: list[int | str] = [number for number in waiting if not self.runs[number].suspect]
        suspects = sorted((self.runs[number].since, number) for number in waiting if self.runs[number].suspect)
        if not suspects:
            return ready or ["none"]
        since, first = suspects[0]
        overdue = self.now - since > self.limits.lease_seconds
        if busy:
            holder = self.runs[first].holder
            free = holder is None or holder[0] == worker or holder[1] <= self.now
            return ["hold"] if overdue and free else ready or ["none"]
        return [*ready, first] if overdue and ready else ready or [first]

    def lease(self, worker: str, choice: int | str, *, again: bool) -> Taken | Ending | str:
        """Leases one of the choices; a call that is sent again returns the same lease while it is held."""
        if again and worker in self.takes:
            number, token, when = self.takes[worker]
            if self._holds(number, token) and self.now < when + REPEAT_SECONDS:
                return self._taken(number)
        self.takes.pop(worker, None)  # the next call has a nonce of its own
        if not isinstance(choice, int):
            if choice == "hold":
                first = min(
                    (run.since, number) for number, run in self.runs.items() if run.state == QUEUED and run.suspect
                )[1]
                held = self.runs[first].holder
                if held is None or held[1] <= self.now:
                    self.runs[first].holder = (worker, self.now + HELD_SECONDS)
            return choice
        run = self.runs[choice]
        if reason := self._due(run, run.deadline):
            return Ending(reason, "run", choice, run.token)
        run.state, run.expires, run.alone, run.holder, run.batch = (
            RUNNING,
            self.now + self.limits.lease_seconds,
            run.suspect,
            None,
            0,
        )
        run.token += 1
        run.attempt += 1
        self.takes[worker] = (choice, run.token, self.now)
        return self._taken(choice)

    def _taken(self, number: int) -> Taken:
        run = self.runs[number]
        return Taken(number, run.token, run.attempt, run.alone, run.checkpoint)

    def append(self, number: int, token: int, batch: int, events: Sequence[Event]) -> str:
        """Appends a numbered batch of events, once."""
        if not self._holds(number, token):
            return "lost"
        if self.runs[number].batch < batch:
            self.runs[number].log += events
            self.runs[number].batch = batch
        return "ok"

    def store(self, number: int, token: int, checkpoint: str) -> str:
        """Stores the state from which a later attempt continues (the script `checkpoint`)."""
        if not self._holds(number, token):
            return "lost"
        self.runs[number].checkpoint = checkpoint
        return "ok"

    def settle(self, number: int, token: int, state: str, events: Sequence[Event]) -> str:
        """Ends an execution with its last events."""
        run = self.runs[number]
        if run.state == state and run.token == token and not run.dropped:
            return "ok"  # the call was repeated
        if not self._holds(number, token):
            return "lost"
        self._finish(number, state, events)
        if state == COMPLETED and run.content:
            self.answers[run.content] = (run.subs[0], self.now + self.limits.cache_seconds)
        return "ok"

    def release(self, number: int, token: int) -> tuple[str, Ending | None]:
        """Returns an execution to the queue; the attempt does not count. It may have to end now."""
        run = self.runs[number]
        if not self._holds(number, token) and (run.state, run.token) != (QUEUED, token):
            return "lost", None
        if run.state == RUNNING:
            run.state = QUEUED
            run.attempt -= 1
            run.since = self.now if run.suspect else 0
            for job in (self.jobs[sub] for sub in run.subs):
                if self._due(run, job.deadline):
                    job.look = self.now  # if this worker dies before it ends the job, the next sweep ends it
        return "ok", None if run.cancelled is None else Ending(CANCELLED, "run", number, token)

    def heartbeat(self, number: int, token: int) -> str:
        """Renews a lease, unless its worker should have ended the attempt more than `lease_seconds` ago."""
        if not self._holds(number, token):
            return "lost"
        run = self.runs[number]
        overdue = run.deadline is not None and self.now > run.deadline + self.limits.lease_seconds
        if not overdue and (run.cancelled is None or self.now - run.cancelled <= self.limits.lease_seconds):
            run.expires = self.now + self.limits.lease_seconds
        return "cancel" if run.cancelled is not None else "expired" if overdue else ""

    # Scripts of the process that sweeps.

    def sweep(self) -> list[Ending]:
        """Requeues executions whose worker died, as suspects; returns what must end."""
        endings = []
        for number, run in self.runs.items():
            if run.state == RUNNING and run.expires <= self.now:
                reason = self._due(run, run.deadline)
                if reason or (run.attempt >= self.limits.max_attempts and run.alone):
                    endings.append(Ending(reason or "dead-lettered", "run", number, run.token))
                else:
                    run.deaths, run.deaths_alone = run.deaths + 1, run.deaths_alone + run.alone
                    run.state, run.suspect, run.since = QUEUED, True, self.now
        for number, job in self.jobs.items():
            if job.state or job.look is None or job.look > self.now:
                continue
            run = self.runs[job.run]
            if run.state == QUEUED or (len(run.subs) > 1 and run.deadline != job.deadline):
                endings.append(Ending(self._due(run, job.deadline) or "expired", "job", number, run.token))
            else:
                job.look = self.now + self.limits.lease_seconds  # its worker ends it
        return endings

    def end(self, ending: Ending) -> bool:
        """Ends an execution, or one of its jobs, if that is still right."""
        job = self.jobs.get(ending.number)
        if ending.scope == "job" and (job is None or job.state):
            return False
        number = job.run if job and ending.scope == "job" else ending.number
        run = self.runs[number]
        if run.state not in (QUEUED, RUNNING) or run.token != ending.token:
            return False
        deadline = job.deadline if job and ending.scope == "job" else run.deadline
        if run.state == QUEUED and not self._due(run, deadline):
            return False
        state = CANCELLED if ending.reason == CANCELLED else FAILED
        event = Event("T", 0, ending.reason)
        if ending.scope == "job" and len(run.subs) > 1:
            self._leave(ending.number, state, event)
            return True
        if run.state == RUNNING and run.expires > self.now:
            return False
        if run.state == RUNNING:
            run.deaths, run.deaths_alone = run.deaths + 1, run.deaths_alone + run.alone
        self._finish(number, state, [event])
        return True

    # Steps that several scripts have in common.

    def _holds(self, number: int, token: int) -> bool:
        return self.runs[number].state == RUNNING and self.runs[number].token == token

    def _due(self, run: Run, deadline: int | None) -> str:
        if run.cancelled is not None:
            return CANCELLED
        return "expired" if deadline is not None and deadline <= self.now else ""

    def _end_job(self, number: int, state: str, event: Event) -> None:
        job = self.jobs[number]
        job.state, job.ended, job.look, job.attempt = state, self.now, None, self.runs[job.run].attempt
        job.reason = event.text if state == FAILED else ""

    def _finish(self, number: int, state: str, events: Sequence[Event]) -> None:
        run = self.runs[number]
        run.state = state
        run.log += events
        run.checkpoint, run.holder = "", None
        for sub in run.subs:
            self._end_job(sub, state, events[-1])
        if self.flights.get(run.content) == number:
            del self.flights[run.content]

    def _leave(self, number: int, state: str, event: Event | None = None) -> None:
        """Ends one of several jobs that share an execution, which continues for the others until their deadline."""
        job, event = self.jobs[number], event or Event("T", 0, state)
        run = self.runs[job.run]
        job.closing, job.reads = event, len(run.log)
        self._end_job(number, state, event)
        run.subs.remove(number)
        run.deadline = latest([self.jobs[sub].deadline for sub in run.subs])

    # Reading jobs and their events, and checking the promises.

    def log_of(self, number: int) -> Sequence[Event]:
        """Returns the events of a job, in order; their sequence numbers are their positions, from 1."""
        job = self.jobs[number]
        log = [event for event in self.runs[job.run].log if event.kind != "p" or not job.cached]
        closing = [job.closing] if job.closing else []
        return [Event("e", 0, "accepted"), *log[: job.reads], *closing]

    def faults(self) -> Sequence[str]:
        """Returns which promises this state breaks."""
        return [*self._faults_of_jobs(), *self._faults_of_runs(), *self._faults_of_sharing()]

    def _faults_of_jobs(self) -> Sequence[str]:
        faults = []
        for number, job in self.jobs.items():
            run, log = self.runs.get(job.run), self.log_of(number)
            terminal = [place for place, event in enumerate(log, 1) if event.kind in "tT"]
            if not job.state and (run is None or run.state not in (QUEUED, RUNNING) or number not in run.subs):
                faults.append(f"1: job {number} waits for nothing")
            if terminal != ([len(log)] if job.state else []):
                faults.append(f"7: job {number} has terminal events at {terminal} of {len(log)}")
        return faults

    def _faults_of_runs(self) -> Sequence[str]:
        faults = []
        for number, run in self.runs.items():
            writers = [event.writer for event in run.log if event.writer]
            if writers != sorted(writers) or any(writer > run.token for writer in writers):
                faults.append(f"2: the log of execution {number} mixes writers: {writers}")
            if run.attempt != run.deaths + (run.state == RUNNING or self._by_worker(run)):
                faults.append(f"3: execution {number} counts {run.attempt} attempts, and {run.deaths} workers died")
            guilty = run.deaths >= self.limits.max_attempts and run.deaths_alone > 0
            dead_lettered = bool(run.log) and run.log[-1].text == "dead-lettered"
            if (guilty and run.state in (QUEUED, RUNNING)) or (dead_lettered and not guilty):
                faults.append(f"3: execution {number} is {run.state} after {run.deaths} deaths")
        return faults

    def _by_worker(self, run: Run) -> bool:
        return bool(run.log) and run.log[-1].kind == "t"

    def _faults_of_sharing(self) -> Sequence[str]:
        faults = []
        live: dict[str, int] = {}
        for number, run in sorted(self.runs.items(), reverse=True):
            if not run.content or run.state not in (QUEUED, RUNNING) or run.cancelled is not None:
                continue
            if run.content in live and run.deadline is None:
                faults.append(f"5: executions {number} and {live[run.content]} of {run.content} are not shared")
            live[run.content] = number
        for number, job in self.jobs.items():
            if job.cached and self.runs[job.run].state != COMPLETED:
                faults.append(f"5: job {number} has an answer that is none")
        return faults

    def copy(self) -> "Queue":
        """Returns an independent copy."""
        other = copy(self)
        other.jobs = {number: copy(job) for number, job in self.jobs.items()}
        other.runs = {number: run.copy() for number, run in self.runs.items()}
        other.flights, other.answers, other.takes = dict(self.flights), dict(self.answers), dict(self.takes)
        other.deleted = dict(self.deleted)
        return other

    def key(self, *, repeats: bool = True) -> Hashable:
        """Returns a value that is equal for equal states; without `repeats`, if no call will be sent again."""
        jobs = tuple((number, *vars(job).values()) for number, job in self.jobs.items())
        runs = tuple((number, tuple(run.subs), tuple(run.log), *run.rest()) for number, run in self.runs.items())
        rest = (self.flights, self.answers, *((self.takes, self.deleted) if repeats else ()))
        return self.now, jobs, runs, *(tuple(sorted(each.items())) for each in rest)

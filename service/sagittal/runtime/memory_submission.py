"""How the in-memory queue accepts a job: it is one already, an answer is there, a run is joined, or one begins."""

import math

from sagittal.core.errors import AlreadyExists
from sagittal.core.jobs import CachePolicy, Job, JobState, Lane, NewJob
from sagittal.runtime.admission import overloaded
from sagittal.runtime.memory_records import Record, Run
from sagittal.runtime.memory_table import MemoryTable, deadline_of, shared_key


def submit(table: MemoryTable, job: NewJob, accepted: bytes) -> tuple[Job, bool]:
    """Accepts a job, or returns the one that was accepted under its identifier or `request_id`."""
    known = table.jobs.get(job.job_id) or table.jobs.get(table.requests.get((job.tenant, job.request_id), ""))
    if known is not None:
        if known.fingerprint != job.fingerprint:
            raise AlreadyExists(
                f"request_id {job.request_id!r} belongs to job {known.new.job_id}, whose content is another: "
                "choose a new request_id, or send the same request",
                field="spec.request_id",
            )
        return known.view(), known.new.job_id == job.job_id
    record = _answer(table, job, accepted) or _join(table, job, accepted) or _begin(table, job, accepted)
    table.tell([record])
    return record.view(), True


def _answer(table: MemoryTable, job: NewJob, accepted: bytes) -> Record | None:
    key = shared_key(job)
    source = table.answers.get(key) if key and job.cache is CachePolicy.USE else None
    if source is None or source.new.job_id not in table.jobs or source.ended is None:
        return None
    now = table.clock()
    if now - source.ended > table.settings.cache_seconds or not table.make_room(source.size, keep=source):
        return None
    record = table.add(job, accepted, source.run, 0)
    record.copy_answer(source, now)
    record.state, record.ended = JobState.COMPLETED, now
    return record


def _join(table: MemoryTable, job: NewJob, accepted: bytes) -> Record | None:
    key = shared_key(job)
    run = table.flights.get(key) if key and job.cache is CachePolicy.USE else None
    if run is None or run.cancel or not _in_time(table, run, job) or len(run.jobs) >= table.settings.max_sharers:
        return None
    if not table.make_room(run.jobs[0].size):
        return None
    events = run.jobs[0].log[1:]
    queued = run.state is JobState.QUEUED
    older = [each for each in table.waiting(run.lane) if each.new.model == job.model and each.created < run.created]
    record = table.add(job, accepted, run, len(older) if queued else 0)
    for kind, payload in events:
        record.write(kind, payload, own=False)
    run.jobs.append(record)
    if queued:
        run.deadline = max(run.deadline, deadline_of(job))
        if job.lane is Lane.INTERACTIVE and run.lane is Lane.BATCH:
            run.lane = job.lane
            run.tag = table.clocks[job.model, job.version, job.lane]
    return record


def _begin(table: MemoryTable, job: NewJob, accepted: bytes) -> Record:
    _admit(table, job, len(accepted) + 1)
    share = (job.model, job.version, job.lane)
    if not any((each.new.model, each.new.version) == share[:2] for each in table.waiting(job.lane)):
        table.clocks.pop(share, None)
        for tag_key in [each for each in table.tags if each[0] == share]:
            del table.tags[tag_key]
    cost = table.ledger.evaluations(job) / table.settings.tenant_weights.get(job.tenant, 1.0)
    tag = max(table.clocks[share], table.tags[share, job.tenant]) + cost
    table.tags[share, job.tenant] = tag
    run = Run(new=job, lane=job.lane, deadline=deadline_of(job), tag=tag, created=table.clock())
    ahead = sum(each.live and (each.new.model, each.lane) == share[::2] for each in table.runs.values())
    table.runs[job.job_id] = run
    if (key := shared_key(job)) is not None:
        table.flights[key] = run
    record = table.add(job, accepted, run, ahead)
    run.jobs.append(record)
    table.changed.notify_all()
    return record


def _admit(table: MemoryTable, job: NewJob, extra: int) -> None:
    running = sum(run.lane is job.lane and run.state is JobState.RUNNING for run in table.runs.values())
    refusal = table.ledger.refusal(job, table.waiting(job.lane), running)
    if refusal is not None:
        raise refusal
    if not table.make_room(len(job.request) + sum(map(len, job.images.values())) + extra):
        raise overloaded("bytes", table.settings.max_stored_bytes, None, table.settings)


def _in_time(table: MemoryTable, run: Run, job: NewJob) -> bool:
    if run.state is JobState.QUEUED or math.isinf(run.deadline):
        return True
    now = table.clock()
    return run.deadline - now >= (deadline_of(job) - now) / 2

"""How the in-memory queue ends what is overdue, and forgets what was kept long enough: what `sweep.lua` is on Redis."""

import math
from typing import Literal

from sagittal.core.jobs import JobState
from sagittal.runtime.job_events import Ending
from sagittal.runtime.memory_records import Record, Run
from sagittal.runtime.memory_table import MemoryTable, deadline_of


def sweep(table: MemoryTable) -> int:
    """Ends what is overdue, requeues what was lost, drops what retention has passed; returns what it ended."""
    now = table.clock()
    ended = sum(_check_lease(table, run, now) for run in list(table.runs.values()))
    ended += sum(_check_deadline(table, record, now) for record in list(table.jobs.values()))
    for run_id, run in list(table.runs.items()):
        if run.state.ended and now - run.ended >= table.settings.image_retention_seconds:
            del table.runs[run_id]
            table.parts.drop(run_id)
    for record in list(table.jobs.values()):
        if record.ended is not None and now - record.ended >= table.settings.retention_seconds:
            table.drop(record)
    table.parts.forget(set(table.runs), now - table.settings.attachment_seconds)
    return ended


def _check_lease(table: MemoryTable, run: Run, now: float) -> int:
    if run.state is not JobState.RUNNING or run.expires > now:
        return 0
    if run.cancel:
        return _end(table, run, "cancelled", now)
    if run.deadline <= now:
        return _end(table, run, "expired", now)
    if run.attempt >= table.settings.max_attempts:
        return _end(table, run, "buried", now)
    run.state, run.expires = JobState.QUEUED, math.inf
    table.changed.notify_all()
    return 0


def _check_deadline(table: MemoryTable, record: Record, now: float) -> int:
    run = record.run
    if record.state is not None or run is None or deadline_of(record.new) > now:
        return 0
    if len(run.jobs) > 1 and (run.state is JobState.QUEUED or run.deadline != record.new.deadline):
        ending = _ending(run, "expired", "job")
        table.leave(record, run, ending.event(now), ending.state, ending.error_reason)
        return 1
    return _end(table, run, "expired", now) if run.state is JobState.QUEUED else 0


def _end(table: MemoryTable, run: Run, reason: Literal["buried", "cancelled", "expired"], now: float) -> int:
    ending = _ending(run, reason, "run")
    table.finish(run, ending.event(now), ending.state, own=False, reason=ending.error_reason)
    return 1


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

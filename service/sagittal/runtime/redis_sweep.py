"""What the service and the workers both look for: lost leases, passed deadlines, spent retention."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, cast

from sagittal.runtime.job_events import Ending
from sagittal.runtime.settings import QueueSettings

#: Entries of each kind that one script handles, so that none holds Redis up.
SWEEP_LIMIT = 100

#: Scripts in a row of one sweep while retention has passed more: 5,000 jobs each time that the service sweeps.
SWEEPS_IN_A_ROW = 50


def sweep_arguments(settings: QueueSettings) -> tuple[int | float, ...]:
    """Returns the arguments of the script `sweep`."""
    return (
        SWEEP_LIMIT,
        settings.max_attempts,
        settings.retention_seconds,
        settings.image_retention_seconds,
        settings.lease_seconds,
        settings.attachment_seconds,
    )


def parse_sweep(answer: Sequence[Any]) -> tuple[bool, list[Ending]]:
    """Returns whether retention has passed more than the script `sweep` dropped, and what it says must be ended."""
    more, *flat = answer
    return bool(int(more)), list(parse_endings(flat))


def parse_endings(flat: Sequence[bytes]) -> Iterable[Ending]:
    """Returns what a script says must be ended."""
    for start in range(0, len(flat), 7):
        reason, scope, job_id, token, attempt, worker, detail = (value.decode() for value in flat[start : start + 7])
        yield Ending(
            reason=cast("Literal['buried', 'cancelled', 'expired']", reason),
            scope=cast("Literal['run', 'job']", scope),
            job_id=job_id,
            token=token,
            attempt=int(attempt),
            worker=worker,
            detail=detail,
        )


def end_arguments(ending: Ending, now: float) -> tuple[str | bytes, ...]:
    """Returns the arguments of the script `end`."""
    return ending.scope, ending.job_id, ending.token, ending.state.value, ending.error_reason, ending.event(now)

"""What the service and the workers both look for: lost leases, passed deadlines, spent retention."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import structlog

from sagittal.queue.events import Ending
from sagittal.queue.metrics import QueueObserver
from sagittal.queue.settings import QueueSettings

log = structlog.get_logger(__name__)

#: Entries of each kind that one script handles, so that none holds Redis up.
SWEEP_LIMIT = 100

#: Scripts in a row of one sweep while retention has passed more: 5,000 jobs each time that the service sweeps.
SWEEPS_IN_A_ROW = 50


#: Time between two audits by one service, in seconds; after damage the next sweep makes one anyway.
AUDIT_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A record that a script found damaged, and moved aside or corrected."""

    kind: str
    """What stands before the first colon of its key."""
    key: str
    """Without the prefix; `quarantine:KEY` keeps it as it was."""
    reason: str

    def report(self, observer: QueueObserver) -> None:
        """Counts and logs it."""
        observer.quarantined(self.kind)
        log.error("record-quarantined", kind=self.kind, key=self.key, reason=self.reason)


@dataclass(frozen=True, slots=True)
class Swept:
    """What the script `sweep` found."""

    more: bool
    """Whether retention has passed more than it dropped."""
    quarantined: Sequence[Quarantined]
    endings: Sequence[Ending]
    """What must be ended."""


def sweep_arguments(settings: QueueSettings, *, audit: bool = False) -> tuple[int | float | str, ...]:
    """Returns the arguments of the script `sweep`; with `audit` it counts and indexes everything anew."""
    return (
        SWEEP_LIMIT,
        settings.max_attempts,
        settings.retention_seconds,
        settings.image_retention_seconds,
        settings.lease_seconds,
        settings.attachment_seconds,
        "1" if audit else "",
    )


def parse_sweep(answer: Sequence[Any]) -> Swept:
    """Returns what the script `sweep` answered."""
    more, notes, *flat = answer
    return Swept(bool(int(more)), [_parse_note(note) for note in notes], list(parse_endings(flat)))


def _parse_note(note: bytes) -> Quarantined:
    kind, _, rest = note.decode(errors="backslashreplace").partition("\0")
    key, _, reason = rest.rpartition("\0")
    return Quarantined(kind, key, reason)


def parse_endings(flat: Sequence[bytes]) -> Iterable[Ending]:
    """Returns what a script says must be ended."""
    for start in range(0, len(flat), 7):
        reason, scope, job_id, token, attempt, worker, detail = (
            value.decode(errors="replace") for value in flat[start : start + 7]
        )
        yield Ending(
            reason=cast("Literal['buried', 'cancelled', 'expired', 'damaged']", reason),
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

"""Sweeping, which service and workers both do: finds lost leases, passed deadlines and expired retention."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import structlog

from sagittal.queue.events import Ending
from sagittal.queue.metrics import QueueObserver
from sagittal.queue.settings import QueueSettings

log = structlog.get_logger(__name__)

#: Entries of each kind that one script handles, so that no script blocks Redis for long.
SWEEP_LIMIT = 100

#: Scripts per sweep of the service while more jobs have expired: up to 5,000 jobs.
SWEEPS_IN_A_ROW = 50


#: One process sweeps: it is elected for this many intervals (`sweep_seconds`), and each sweep renews that. The others
#: look whether there is one after so many intervals.
ELECTED_INTERVALS, STANDBY_INTERVALS = 3, 10

#: Time between two audits by one service, in seconds; after damage the next sweep also audits.
AUDIT_SECONDS = 3600.0

_KIND = re.compile(r"[a-z]{1,16}")


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A record that a script found damaged and moved aside or corrected."""

    kind: str
    """Kind of the key: the part before its first colon."""
    key: str
    """Key without the prefix; `quarantine:KEY` keeps the damaged record."""
    reason: str

    def report(self, observer: QueueObserver) -> None:
        """Counts and logs the record."""
        observer.quarantined(self.kind)
        log.error("record-quarantined", kind=self.kind, key=self.key, reason=self.reason)


@dataclass(frozen=True, slots=True)
class Swept:
    """Result of the script `sweep`."""

    elected: bool
    """False if another process sweeps, so that this one did nothing."""
    more: bool
    """True if more jobs have expired than it deleted."""
    quarantined: Sequence[Quarantined]
    endings: Sequence[Ending]
    """Jobs and executions that must end."""


def sweep_arguments(
    settings: QueueSettings, *, audit: bool = False, candidate: str = ""
) -> tuple[int | float | str, ...]:
    """Returns the arguments of the script `sweep`.

    Args:
        settings: Settings of the queue.
        audit: Whether it recounts and reindexes everything.
        candidate: Name of the process, which sweeps only if no other does; empty to sweep in any case.
    """
    return (
        SWEEP_LIMIT,
        settings.max_attempts,
        settings.retention_seconds,
        settings.image_retention_seconds,
        settings.lease_seconds,
        settings.attachment_seconds,
        "1" if audit else "",
        settings.batch_retention_seconds,
        candidate,
        elected_seconds(settings),
    )


def elected_seconds(settings: QueueSettings) -> float:
    """Returns the time for which a process that sweeps is elected, in seconds."""
    return ELECTED_INTERVALS * settings.sweep_seconds


def parse_sweep(answer: Sequence[Any]) -> Swept:
    """Returns the parsed answer of the script `sweep`."""
    more, notes, *flat = answer
    return Swept(int(more) >= 0, int(more) > 0, [_parse_note(note) for note in notes], list(parse_endings(flat)))


def _parse_note(note: bytes) -> Quarantined:
    """Returns what a note says. One that is damaged itself has a kind of its own: kinds become labels of a metric."""
    text = note.decode(errors="backslashreplace")
    kind, _, rest = text.partition("\0")
    key, separator, reason = rest.rpartition("\0")
    if not separator or not _KIND.fullmatch(kind):
        return Quarantined("quarantined", "quarantined", f"is no note of a damaged record: {text}")
    return Quarantined(kind, key, reason)


def parse_endings(flat: Sequence[bytes]) -> Iterable[Ending]:
    """Yields the jobs and executions that a script says must end."""
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

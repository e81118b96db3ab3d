"""What callers hear past an admission bound: which one, and when there will be room."""

from sagittal.core.errors import Overloaded
from sagittal.runtime.settings import QueueSettings

#: Shortest and longest wait that is asked for, in seconds: a computed one may be of no time, or of a day.
SHORTEST_WAIT, LONGEST_WAIT = 0.5, 300.0

#: What is full, with the setting that bounds it.
FULL = {
    "lane": "the lane holds {bound:,} waiting jobs, the most it may (max_queued)",
    "tenant": "you have {bound:,} jobs waiting in this lane, the most you may (max_queued_per_tenant)",
    "evaluations": "with this job the lane's waiting jobs would need more than {bound:,} model evaluations, the most "
    "they may (max_queued_evaluations)",
    "tenant_evaluations": "with this job your waiting jobs in this lane would need more than {bound:,} model "
    "evaluations, the most they may (max_queued_evaluations_per_tenant)",
    "absent_lane": "no worker serves the model now, and {bound:,} jobs wait for it in this lane, the most that may "
    "(max_queued times absent_share)",
    "absent_tenant": "no worker serves the model now, and {bound:,} jobs of yours wait for it in this lane, the most "
    "that may (max_queued_per_tenant times absent_share)",
    "absent_evaluations": "no worker serves the model now, and with this job those that wait for it in this lane would "
    "need more than {bound:,} model evaluations, the most they may (max_queued_evaluations times absent_share)",
    "absent_tenant_evaluations": "no worker serves the model now, and with this job yours that wait for it in this "
    "lane would need more than {bound:,} model evaluations, the most they may (max_queued_evaluations_per_tenant "
    "times absent_share)",
    "bytes": "the queue stores {bound:,} bytes of requests, images and events, the most it may (max_stored_bytes "
    "without upload_share)",
    "tenant_bytes": "your jobs store {bound:,} bytes of requests, images and events, the most they may (tenant_share "
    "of max_stored_bytes)",
    "uploads": "the queue stores {bound:,} bytes of uploads, the most it may (upload_share of max_stored_bytes)",
    "tenant_uploads": "you store {bound:,} bytes of uploads, the most you may (tenant_share of upload_share of "
    "max_stored_bytes); uploads go when their job has ended, or if no job comes",
}


def overloaded(what: str, bound: int, seconds: float | None, settings: QueueSettings) -> Overloaded:
    """Returns the error of a bound; `seconds` is when there will be room, None where it is not known."""
    wait = settings.overload_retry_after if seconds is None else min(max(seconds, SHORTEST_WAIT), LONGEST_WAIT)
    return Overloaded(f"{FULL[what].format(bound=bound)}: try again in {wait:.3g} s", retry_after=wait)

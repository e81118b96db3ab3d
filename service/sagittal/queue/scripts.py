"""The queue's Lua scripts, what goes into them, and what comes out.

Everything that changes the queue is one script, so it happens wholly or not at all, and each is written so that
running it twice with the same arguments does no more than running it once: that makes it safe to send again after a
lost answer.
"""

import functools
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from sagittal.core.jobs import Cost, EventPage, Job, JobKind, JobState, Lane, Lease, NewJob, StoredEvent, StoredRequest
from sagittal.queue.events import TERMINAL, UNSIGNED_TERMINAL
from sagittal.queue.settings import QueueSettings

#: Fields that the script `view` returns for a job.
VIEW_FIELDS = 17

#: What stands in front of scripts: two parts for the registry of models, three for the queue, and one more for some.
SHARED = ("arguments", "quarantine", "common", "audit", "concepts")

#: The scripts that a full Redis refuses; the others let what was accepted come to its end.
REFUSED_WHEN_FULL = frozenset({"submit", "attach", "concepts_update"})


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script and the digest by which Redis knows it."""

    name: str
    text: str
    digest: str


def script_names() -> Sequence[str]:
    """Returns the names of all scripts."""
    files = (resources.files("sagittal.queue") / "scripts").iterdir()
    return sorted({file.name[:-4] for file in files if file.name.endswith(".lua")} - set(SHARED))


@functools.cache
def load_script(name: str) -> Script:
    """Returns the script of that name, with what all scripts share in front."""
    folder = resources.files("sagittal.queue") / "scripts"
    shebang = "#!lua" if name in REFUSED_WHEN_FULL else "#!lua flags=allow-oom"
    shared = SHARED[: 2 if name.startswith("registry") else 3]
    if name == "sweep":
        shared += ("audit",)
    elif name.startswith("concepts"):
        shared += ("concepts",)
    text = "\n".join([shebang, *((folder / f"{part}.lua").read_text() for part in (*shared, name))])
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def root_key(settings: QueueSettings) -> str:
    """Returns what every key begins with; the braces keep all of them in one slot of a cluster."""
    return f"{{{settings.prefix}}}:"


def model_key(model: str, version: str) -> str:
    """Returns the name of a model's version in keys."""
    return f"{model}@{version}"


def submit_arguments(job: NewJob, accepted: bytes, settings: QueueSettings) -> list[bytes | str | int | float]:
    """Returns the arguments of the script `submit`."""
    arguments: list[bytes | str | int | float] = [
        job.job_id,
        job.kind.value,
        job.model,
        job.version,
        job.method,
        job.lane.value,
        job.tenant,
        job.request_id,
        "" if job.deadline is None else repr(job.deadline),
        job.estimated_evaluations,
        job.trace_context,
        f"{job.tenant}:{job.content_key}" if job.content_key else "",
        job.fingerprint,
        job.cache.value,
        accepted,
        job.request,
        settings.max_queued.get(job.lane.value, UNBOUNDED),
        settings.max_queued_per_tenant.get(job.lane.value, UNBOUNDED),
        settings.max_queued_evaluations.get(job.lane.value, UNBOUNDED),
        settings.max_queued_evaluations_per_tenant.get(job.lane.value, UNBOUNDED),
        settings.max_sharers,
        *room(settings),
        settings.assumed_evaluations,
        settings.tenant_weights.get(job.tenant, 1.0),
        settings.cache_seconds,
        job.setting,
        settings.absent_share,
    ]
    for name, image in job.images.items():
        arguments += [name, image]
    return arguments


def room(settings: QueueSettings) -> tuple[int, int]:
    """Returns how many bytes of requests, images and events are stored at most, of all tenants and of one."""
    most = settings.max_stored_bytes - upload_room(settings)[0]
    return most, int(most * settings.tenant_share)


def upload_room(settings: QueueSettings) -> tuple[int, int]:
    """Returns how many bytes of uploads are stored at most, of all tenants and of one."""
    most = int(settings.max_stored_bytes * settings.upload_share)
    return most, int(most * settings.tenant_share)


#: Stands for no bound where a lane has none.
UNBOUNDED = 2**53


def parse_costs(flat: Sequence[bytes]) -> Mapping[str, Cost]:
    """Returns costs by setting, as the script `settle` keeps them, from settings and values in turns."""
    pairs = zip(flat[::2], flat[1::2], strict=True)
    costs = {setting.decode(errors="replace"): _parse_cost(value) for setting, value in pairs}
    return {setting: cost for setting, cost in costs.items() if cost is not None}


def _parse_cost(value: bytes) -> Cost | None:
    """Returns a cost; None for a damaged one, which the next job with this setting replaces."""
    try:
        evaluations, seconds = (float(part) for part in value.split()[:2])
    except ValueError:
        return None
    sound = 0 < evaluations < math.inf and 0 <= seconds < math.inf
    return Cost(evaluations, seconds) if sound else None


def parse_job(view: Sequence[bytes]) -> Job:
    """Returns a job from what the script function `view` gives."""
    text = [field.decode(errors="replace") for field in view]
    return Job(
        job_id=text[0],
        kind=JobKind(text[1]),
        state=JobState(text[2]),
        model=text[3],
        version=text[4],
        method=text[5],
        lane=Lane(text[6]),
        tenant=text[7],
        request_id=text[8],
        created=float(text[9]),
        ended=float(text[10]) if text[10] else None,
        deadline=float(text[11]) if text[11] else None,
        attempt=int(text[12]),
        worker=text[13],
        last_sequence=int(text[14]),
        cancel_requested=bool(text[15]),
        reason=text[16],
    )


def parse_events(answer: Sequence[bytes]) -> EventPage:
    """Returns events from the answer of the script `read`, each with the identity of the job that was asked for.

    A log is kept once for all jobs of a run. Protobuf: the last value of a field wins and nested messages merge, so
    the identity is appended.
    """
    ended, next_sequence, shared, identity, age, *flat = answer
    events = []
    for number, element in zip(flat[::2], flat[1::2], strict=True):
        kind, payload = element[:1], element[1:]
        terminal = kind in (TERMINAL, UNSIGNED_TERMINAL)
        if int(number) > 1 and (shared or kind == UNSIGNED_TERMINAL):
            payload += (age if terminal else b"") + identity
        events.append(StoredEvent(int(number), payload, terminal))
    return EventPage(events=events, next_sequence=int(next_sequence) if next_sequence else None, ended=bool(ended))


def parse_lease(answer: Sequence[bytes]) -> Lease:
    """Returns a lease from the answer of the script `lease`."""
    view_end = 2 + VIEW_FIELDS
    request, trace, has_checkpoint, checkpoint, alone = answer[view_end : view_end + 5]
    return Lease(
        job=parse_job(answer[2:view_end]),
        request=request,
        images=dict(_pairs(answer[view_end + 5 :])),
        token=int(answer[1]),
        trace_context=trace.decode(errors="replace"),
        checkpoint=checkpoint if has_checkpoint else None,
        alone=bool(alone),
    )


def parse_request(answer: Sequence[bytes]) -> StoredRequest:
    """Returns what a job was made of from the answer of the script `request`."""
    return StoredRequest(request=answer[0], images=dict(_pairs(answer[1:])))


def _pairs(flat: Sequence[bytes]) -> Iterable[tuple[str, bytes]]:
    return ((name.decode(errors="replace"), value) for name, value in zip(flat[::2], flat[1::2], strict=True))

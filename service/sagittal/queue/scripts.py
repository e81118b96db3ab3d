"""The queue's Lua scripts, their arguments, and the parsers of their answers.

Each change of the queue is one script, so it happens completely or not at all. Each script is idempotent: running it
twice with the same arguments has the same effect as once. So it is safe to send it again after a lost answer.
"""

import functools
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from sagittal.core.jobs import (
    Cost,
    EventPage,
    Job,
    JobKind,
    JobState,
    Lane,
    Lease,
    NewJob,
    StoredEvent,
    StoredRequest,
    decode_labels,
    encode_labels,
)
from sagittal.queue.events import TERMINAL, UNSIGNED_TERMINAL
from sagittal.queue.settings import QueueSettings

#: Number of fields that the script function `view` returns for a job.
VIEW_FIELDS = 18

#: Parts shared by scripts: two for the registry of models, four for the queue, and one more for `sweep` and
#: `concepts_*`.
SHARED = ("arguments", "quarantine", "common", "batches", "audit", "concepts")

#: Scripts that Redis refuses if its memory is full. The others complete jobs that are already accepted.
REFUSED_WHEN_FULL = frozenset({"submit", "attach", "batch_create", "batch_fail", "concepts_update"})


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, and the SHA-1 digest by which Redis caches it."""

    name: str
    text: str
    digest: str


def script_names() -> Sequence[str]:
    """Returns the names of all scripts."""
    files = (resources.files("sagittal.queue") / "scripts").iterdir()
    return sorted({file.name[:-4] for file in files if file.name.endswith(".lua")} - set(SHARED))


@functools.cache
def load_script(name: str) -> Script:
    """Returns the script with this name, with its shared parts in front."""
    folder = resources.files("sagittal.queue") / "scripts"
    shebang = "#!lua" if name in REFUSED_WHEN_FULL else "#!lua flags=allow-oom"
    shared = SHARED[: 2 if name.startswith("registry") else 4]
    if name == "sweep":
        shared += ("audit",)
    elif name.startswith("concepts"):
        shared += ("concepts",)
    text = "\n".join([shebang, *((folder / f"{part}.lua").read_text() for part in (*shared, name))])
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def root_key(settings: QueueSettings) -> str:
    """Returns the prefix of every key. The braces keep all keys in one slot of a cluster."""
    return f"{{{settings.prefix}}}:"


def model_key(model: str, version: str) -> str:
    """Returns the name of a model version in keys."""
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
        encode_labels(job.labels),
        job.batch,
        job.item,
        "1" if job.renew else "",
        settings.max_batch_items,
    ]
    for name, image in job.images.items():
        arguments += [name, image]
    return arguments


def room(settings: QueueSettings) -> tuple[int, int]:
    """Returns the limits for stored bytes of requests, images and events: of all tenants, and of one."""
    most = settings.max_stored_bytes - upload_room(settings)[0]
    return most, int(most * settings.tenant_share)


def upload_room(settings: QueueSettings) -> tuple[int, int]:
    """Returns the limits for stored bytes of uploads: of all tenants, and of one."""
    most = int(settings.max_stored_bytes * settings.upload_share)
    return most, int(most * settings.tenant_share)


#: Limit of a lane for which the settings name none.
UNBOUNDED = 2**53


def parse_costs(flat: Sequence[bytes]) -> Mapping[str, Cost]:
    """Returns costs by setting from an answer of the script `costs`: settings and values in turn."""
    pairs = zip(flat[::2], flat[1::2], strict=True)
    costs = {setting.decode(errors="replace"): _parse_cost(value) for setting, value in pairs}
    return {setting: cost for setting, cost in costs.items() if cost is not None}


def _parse_cost(value: bytes) -> Cost | None:
    """Returns a cost; None if it is damaged, since the next job with this setting replaces it."""
    parts = value.split()
    try:
        evaluations, seconds = (float(part) for part in parts[:2])
        device = float(parts[3]) if len(parts) > 4 else seconds  # older releases wrote four parts
    except ValueError:
        return None
    sound = 0 < evaluations < math.inf and 0 <= seconds < math.inf and 0 <= device < math.inf
    return Cost(evaluations, seconds, device) if sound else None


def parse_job(view: Sequence[bytes]) -> Job:
    """Returns the job for an answer of the script function `view`."""
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
        labels=decode_labels(text[17]),
    )


def parse_events(answer: Sequence[bytes]) -> EventPage:
    """Returns the events in an answer of the script `read`, each with the identity of the requested job.

    All jobs of an execution share one log. The identity is appended to the payload, which works because in Protobuf the
    last value of a field wins and nested messages merge.
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
    """Returns the lease in an answer of the script `lease`."""
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
    """Returns the request and images in an answer of the script `request`."""
    return StoredRequest(request=answer[0], images=dict(_pairs(answer[1:])))


def _pairs(flat: Sequence[bytes]) -> Iterable[tuple[str, bytes]]:
    return ((name.decode(errors="replace"), value) for name, value in zip(flat[::2], flat[1::2], strict=True))

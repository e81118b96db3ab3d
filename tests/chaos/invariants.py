"""What must hold after a run: read from the event logs, the journals of the processes, and Redis itself."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import redis
from chaos.load import PATIENCE, Seen
from chaos.world import World

from sagittal.client import Client, SagittalError
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import explanation_service_pb2 as service_pb
from sagittal.v1 import explanation_service_pb2_grpc as service_grpc

Log = Sequence[pb.ExplanationEvent]
ENDS = ("completed", "failed", "cancelled")

#: Time that the queue remembers a nonce or a deletion, in seconds.
MARKED = 60

#: Time that Redis takes to give back the tables of keys that went, in seconds.
SHRINKING = 0.5

#: Bytes that Redis may keep more after a run than before it: scripts that no job had needed yet, other workers' names.
SLACK = 128 * 1024


@dataclass(slots=True)
class Findings:
    """What was found in the logs of all jobs."""

    logs: Mapping[str, Log]
    lost: list[str] = field(default_factory=list)
    """Accepted jobs without a terminal event."""
    duplicated: list[str] = field(default_factory=list)
    """Jobs with an event twice, out of order, after the end, or in the name of a worker that had lost it."""
    different: list[str] = field(default_factory=list)
    """Jobs whose result is not that of an undisturbed run."""
    wrong: list[str] = field(default_factory=list)
    """Everything else that should not be."""

    @property
    def all(self) -> list[str]:
        """Every violation, for a person to read."""
        named = (("lost", self.lost), ("duplicated", self.duplicated), ("different", self.different))
        return [f"{name}: {what}" for name, found in named for what in found] + self.wrong

    def ended_as(self, name: str) -> int:
        """How many jobs ended so."""
        return sum(bool(log) and log[-1].WhichOneof("event") == name for log in self.logs.values())

    @property
    def attempts(self) -> int:
        """Runs that were begun."""
        return sum(event.HasField("started") for log in self.logs.values() for event in log)


def read_logs(client: Client, job_ids: Iterator[str] | set[str]) -> dict[str, Log]:
    """Returns the log of each job, to its end where it has one in time."""
    stub = service_grpc.ExplanationServiceStub(client._channel)
    return {job_id: _read_log(client, stub, job_id) for job_id in job_ids}


def _read_log(client: Client, stub: service_grpc.ExplanationServiceStub, job_id: str) -> Log:
    until = time.monotonic() + PATIENCE
    while client.job(job_id).state not in ENDS and time.monotonic() < until:
        time.sleep(0.2)
    request = service_pb.WatchExplanationRequest(job_id=job_id)
    return [response.event for response in stub.WatchExplanation(request, timeout=120)]


def told(log: Log) -> list[bytes]:
    """Returns what the last attempt found, without what differs from run to run."""
    begun = max((place for place, event in enumerate(log) if event.HasField("started")), default=0)
    found = []
    for event in log[begun + 1 :]:
        kind = event.WhichOneof("event")
        if kind == "progress" or (kind == "mask" and not event.mask.final):
            continue
        plain = pb.ExplanationEvent()
        plain.CopyFrom(event)
        for name in ("job_id", "request_id", "sequence", "time"):
            plain.ClearField(name)
        if kind == "completed":
            for name in ("run_time", "wait_time", "cache_age", "cache_hits"):
                plain.completed.ClearField(name)
        found.append(plain.SerializeToString(deterministic=True))
    return found


def question_of(log: Log) -> tuple[str, int]:
    """Returns which of the questions a completed job answers."""
    completed = log[-1].completed
    return completed.method, completed.seed


def judge(logs: Mapping[str, Log], seen: Seen, answers: Mapping[tuple[str, int], list[bytes]]) -> Findings:
    """Returns what is wrong with the logs of all jobs."""
    found = Findings(logs)
    for job_id, log in logs.items():
        kinds = [event.WhichOneof("event") for event in log]
        if not kinds or kinds[-1] not in ENDS:
            found.lost.append(f"{job_id}: {kinds}")
            continue
        if [event.sequence for event in log] != list(range(1, len(log) + 1)) or sum(k in ENDS for k in kinds) != 1:
            found.duplicated.append(f"{job_id}: {kinds}")
        if not _advances(log):
            found.duplicated.append(f"{job_id}: progress goes back within an attempt")
        if kinds[-1] == "completed" and told(log) != answers.get(question_of(log)):
            found.different.append(f"{job_id} {question_of(log)}: {_difference(told(log), answers[question_of(log)])}")
        if kinds[-1] == "failed" or (kinds[-1] == "cancelled" and job_id in seen.kept):
            found.wrong.append(f"{job_id} ended as {kinds[-1]}: {log[-1]}")
    requests = [log[0].request_id for log in logs.values() if log and log[0].request_id]
    if len(requests) != len(set(requests)):
        found.duplicated.append("one request made two jobs")
    found.lost += [f"{job_id}: accepted, and not listed" for job_id in (seen.kept | seen.left) - logs.keys()]
    found.wrong += seen.wrong
    return found


def _difference(here: Sequence[bytes], there: Sequence[bytes]) -> str:
    """Returns where two answers part, for a person to read."""
    messages = [[str(pb.ExplanationEvent.FromString(each))[:2000] for each in answer] for answer in (here, there)]
    for place, (one, other) in enumerate(zip(*messages, strict=False)):
        if one != other:
            return f"event {place} is\n{one}\nand undisturbed\n{other}"
    return f"{len(here)} events, and undisturbed {len(there)}"


def _advances(log: Log) -> bool:
    """Whether evaluations only grow within each attempt: a stale worker's events among a new one's would not."""
    last = 0
    for event in log:
        if event.HasField("started"):
            last = 0
        elif event.HasField("progress"):
            if event.progress.evaluations < last:
                return False
            last = event.progress.evaluations
    return True


def read_journals(directory: Path) -> dict[str, list[dict[str, object]]]:
    """Returns what each life of each process did."""
    return {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(directory.glob("*.journal"))
    }


def recoveries(journal: Sequence[Mapping[str, object]], at: float, logs: Mapping[str, Log]) -> Iterator[float]:
    """Yields, for each job that a worker held when it died or stopped, the seconds until another had it."""
    held: dict[object, object] = {}
    for line in journal:
        if float(str(line["at"])) > at:
            break
        if line["what"] == "leased":
            held[line["job"]] = line["attempt"]
        elif line["what"] in ("ended", "refused"):
            held.pop(line["job"], None)
    for job_id, attempt in held.items():
        for event in logs.get(str(job_id), ()):
            again = event.HasField("started") and event.started.attempt > int(str(attempt))
            when = event.time.ToNanoseconds() / 1e9
            if when > at and (again or event.WhichOneof("event") in ENDS):
                yield when - at
                break


def leftovers(world: World) -> set[str]:
    """Returns the keys in Redis that do not go by themselves within a minute."""
    with redis.Redis(port=world.port) as server:
        root = f"{{{world.prefix}}}:"
        times = {key: server.ttl(key) for key in server.scan_iter(count=1000)}
        keys = {key.decode().removeprefix(root) for key, ttl in times.items() if ttl == -1 or ttl > MARKED}
        if int(server.get(root + "bytes") or 0) != 0:
            keys.add("bytes that are not 0")
    return keys


def kept_bytes(world: World) -> int:
    """Returns the bytes of all data in Redis with its tables, once the marks of a minute have gone."""
    with redis.Redis(port=world.port) as server:
        for name in ("take", "deleted"):
            for key in server.scan_iter(match=f"{{{world.prefix}}}:{name}:*", count=1000):
                server.unlink(key)  # now, and not in a minute
        time.sleep(SHRINKING)
        stats = server.memory_stats()
    tables = [part for name, part in stats.items() if str(name).startswith("db.") and isinstance(part, dict)]
    return int(stats["dataset.bytes"]) + sum(sum(map(int, table.values())) for table in tables)


def grown(before: int, after: int) -> list[str]:
    """Says where Redis keeps more after all jobs were deleted than before the first."""
    if after - before <= SLACK:
        return []
    return [f"Redis keeps {after - before:,} bytes more than before the first job: something of each job stays"]


def delete_all(client: Client, job_ids: Iterator[str] | set[str]) -> list[str]:
    """Deletes jobs; returns what went wrong."""
    wrong = []
    for job_id in job_ids:
        try:
            client.delete(job_id)
        except SagittalError as error:
            wrong.append(f"deleting {job_id}: {error}")
    return wrong

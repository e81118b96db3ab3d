"""`python -m sagittal.queue.usage` prints the memory that the queue uses in Redis, by kind of key and per job.

It reads the same `SAGITTAL_QUEUE__*` variables as the service. It reads every key (SCAN, MEMORY USAGE), which takes
time on a full queue and needs more rights than the service has. Use an operator's credentials.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import redis
from pydantic_settings import BaseSettings, SettingsConfigDict

from sagittal.process.settings import UnusableSettings, read_settings
from sagittal.queue.connection import close_sync, connect_sync
from sagittal.queue.failures import translate
from sagittal.queue.scripts import root_key
from sagittal.queue.settings import QueueSettings

#: Keys measured in one round trip.
KEYS_AT_ONCE = 500

#: SAMPLES of MEMORY USAGE: values of a key that are measured; 0 for all.
SAMPLES = 0

#: Description of each kind of key, by the part before its first colon.
KINDS: Mapping[str, str] = {
    "job": "jobs: state and identity",
    "log": "logs: events",
    "readers": "logs: number of jobs that read them",
    "run": "executions: requests, images, checkpoints",
    "answer": "shared answers: ids of jobs",
    "flight": "executions that can be shared: ids",
    "request": "request ids",
    "cost": "learned costs",
    "concept": "concept sets: documents",
    "batchitems": "batches: items",
    "batchfailures": "batches: failures",
}

#: Kinds of keys of the model registry.
MODELS = frozenset(
    {
        "changes",
        "created",
        "declared",
        "epoch",
        "latest",
        "models",
        "origins",
        "revision",
        "revisions",
        "served",
        "wishes",
        "worker",
        "workers",
    }
)


class UsageSettings(BaseSettings):
    """Environment variables of this command: the queue's."""

    model_config = SettingsConfigDict(env_prefix="SAGITTAL_", env_nested_delimiter="__", frozen=True)

    queue: QueueSettings = QueueSettings()


@dataclass(slots=True)
class Part:
    """Number and size of the keys of one kind."""

    keys: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Memory that the queue uses."""

    parts: Mapping[str, Part]
    """By kind of key, largest first."""
    jobs: int
    accounted: int
    """Bytes of requests, images and events, as the queue counts them for `max_stored_bytes`."""

    @property
    def bytes(self) -> int:
        """Bytes of all keys, as Redis allocates them."""
        return sum(part.bytes for part in self.parts.values())

    @property
    def bytes_per_job(self) -> float:
        """Bytes of all keys per retained job; 0 if there is none."""
        return self.bytes / self.jobs if self.jobs else 0.0

    def lines(self) -> Iterator[str]:
        """Yields the lines of the report."""
        yield f"{'keys':>10}  {'bytes':>14}  {'per job':>12}  kind"
        for kind, part in self.parts.items():
            share = part.bytes / self.jobs if self.jobs else 0.0
            yield f"{part.keys:>10,}  {part.bytes:>14,}  {share:>12,.0f}  {kind}"
        yield f"{self.jobs:>10,}  {self.bytes:>14,}  {self.bytes_per_job:>12,.0f}  total, per job"
        yield f"counted towards max_stored_bytes: {self.accounted:,} bytes"


def measure_usage(client: "redis.Redis", root: str) -> Usage:
    """Returns the memory used by the keys under a root."""
    parts: defaultdict[str, Part] = defaultdict(Part)
    keys = client.scan_iter(match=_escaped(root) + "*", count=KEYS_AT_ONCE)
    while some := list(islice(keys, KEYS_AT_ONCE)):
        pipeline = client.pipeline(transaction=False)
        for key in some:
            pipeline.memory_usage(key, samples=SAMPLES)
        for key, size in zip(some, pipeline.execute(), strict=True):
            if size is not None:  # None: the key was deleted meanwhile
                part = parts[_kind(key, root)]
                part.keys, part.bytes = part.keys + 1, part.bytes + size
    largest = dict(sorted(parts.items(), key=lambda item: -item[1].bytes))
    return Usage(largest, jobs=int(client.zcard(f"{root}jobs")), accounted=int(client.get(f"{root}bytes") or 0))


def _kind(key: bytes, root: str) -> str:
    name, _, rest = key.decode(errors="replace").removeprefix(root).partition(":")
    if name in MODELS:
        return "models and workers"
    return KINDS.get(name, "indexes") if rest else "indexes"


def _escaped(root: str) -> str:
    """Returns a root escaped for use in a glob pattern."""
    return "".join(f"\\{letter}" if letter in "*?[]^\\" else letter for letter in root)


def main(arguments: Sequence[str] = ()) -> int:
    """Prints the report; returns the exit status: 1 if Redis failed, 2 for wrong arguments or settings."""
    if arguments:
        sys.stdout.write(f"{__doc__}\n")
        return 0 if arguments[0] in ("-h", "--help") else 2
    try:
        settings = read_settings(UsageSettings).queue
    except UnusableSettings as error:
        sys.stderr.write(f"sagittal.queue.usage: {error}\n")
        return 2
    shards = settings.shards()
    for number, shard in enumerate(shards, 1):
        client = connect_sync(shard)
        try:
            lines = list(measure_usage(client, root_key(shard)).lines())
        except (redis.RedisError, OSError) as error:
            sys.stderr.write(f"sagittal.queue.usage: {translate(error, shard)}\n")
            return 1
        finally:
            close_sync(client)
        heading = [f"shard {number} of {len(shards)}"] if len(shards) > 1 else []
        sys.stdout.write("\n".join([*heading, *lines]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

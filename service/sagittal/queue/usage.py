"""`python -m sagittal.queue.usage`: what the queue keeps in Redis, by kind of key, and the bytes of a job.

It reads the same `SAGITTAL_QUEUE__*` variables as the programs, and looks at every key (SCAN, MEMORY USAGE), which
takes a moment on a full queue and more rights than the programs have: give it an operator's credentials.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import redis
from pydantic_settings import BaseSettings, SettingsConfigDict

from sagittal.queue.connection import close_sync, connect_sync
from sagittal.queue.failures import translate
from sagittal.queue.scripts import root_key
from sagittal.queue.settings import QueueSettings

#: Keys that are asked about in one round trip.
KEYS_AT_ONCE = 500

#: Values of a key that are measured to tell its size; 0 for all of them.
SAMPLES = 0

#: What each kind of key is, by what stands before its first colon; `core` keys have none.
KINDS: Mapping[str, str] = {
    "job": "jobs: what callers see",
    "log": "logs: events",
    "readers": "logs: how many jobs read them",
    "run": "runs: requests, images, checkpoints",
    "answer": "answers to give again: names of jobs",
    "flight": "runs that may be shared: names",
    "request": "request ids",
    "cost": "learned costs",
    "concept": "concept sets: documents",
}

#: Kinds of keys that belong to the registry.
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
    """Where the queue is."""

    model_config = SettingsConfigDict(env_prefix="SAGITTAL_", env_nested_delimiter="__", frozen=True)

    queue: QueueSettings = QueueSettings()


@dataclass(slots=True)
class Part:
    """Keys of one kind."""

    keys: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """What the queue keeps."""

    parts: Mapping[str, Part]
    """By kind of key, the largest first."""
    jobs: int
    accounted: int
    """Bytes of requests, images and events, as the queue counts them for `max_stored_bytes`."""

    @property
    def bytes(self) -> int:
        """Bytes of everything, as Redis allocates them."""
        return sum(part.bytes for part in self.parts.values())

    @property
    def bytes_per_job(self) -> float:
        """Bytes of everything for each job that is kept; 0 where none is."""
        return self.bytes / self.jobs if self.jobs else 0.0

    def lines(self) -> Iterator[str]:
        """Yields the report."""
        yield f"{'keys':>10}  {'bytes':>14}  {'a job':>12}  what"
        for kind, part in self.parts.items():
            share = part.bytes / self.jobs if self.jobs else 0.0
            yield f"{part.keys:>10,}  {part.bytes:>14,}  {share:>12,.0f}  {kind}"
        yield f"{self.jobs:>10,}  {self.bytes:>14,}  {self.bytes_per_job:>12,.0f}  jobs, with all that is kept of them"
        yield f"counted towards max_stored_bytes: {self.accounted:,} bytes"


def measure_usage(client: "redis.Redis", root: str) -> Usage:
    """Returns what the queue under a root keeps."""
    parts: defaultdict[str, Part] = defaultdict(Part)
    keys = client.scan_iter(match=_escaped(root) + "*", count=KEYS_AT_ONCE)
    while some := list(islice(keys, KEYS_AT_ONCE)):
        pipeline = client.pipeline(transaction=False)
        for key in some:
            pipeline.memory_usage(key, samples=SAMPLES)
        for key, size in zip(some, pipeline.execute(), strict=True):
            if size is not None:  # the key went meanwhile
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
    """Returns a root as a pattern that matches itself alone."""
    return "".join(f"\\{letter}" if letter in "*?[]^\\" else letter for letter in root)


def main(arguments: Sequence[str] = ()) -> int:
    """Prints the report; returns the exit code."""
    if arguments:
        sys.stdout.write(f"{__doc__}\n")
        return 0 if arguments[0] in ("-h", "--help") else 2
    settings = UsageSettings().queue
    client = connect_sync(settings)
    try:
        lines = list(measure_usage(client, root_key(settings)).lines())
    except (redis.RedisError, OSError) as error:
        sys.stderr.write(f"sagittal.queue.usage: {translate(error, settings)}\n")
        return 1
    finally:
        close_sync(client)
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

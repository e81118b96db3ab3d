"""How much more two servers carry than one, by the processor time that each of them uses.

`python benchmarks/shards.py [--jobs 1500] [--rounds 3] [--write docs/performance.md]`: the same jobs through the
queue's scripts on one Valkey and on two, each pinned to a processor, in turn. A server is full when its one core is, so
servers carry as many jobs per second as the busiest of them has jobs per second of its processor. That does not depend
on who else uses the machine's processors, as elapsed time would.
"""

import argparse
import os
import secrets
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from idle import processor_seconds
from reports import table, write_section

from sagittal.core.jobs import JobKind, Lane, NewJob
from sagittal.process.embedded import EmbeddedValkey
from sagittal.queue.scripts import load_script, room, root_key, submit_arguments
from sagittal.queue.settings import QueueSettings
from sagittal.queue.shards import choose_shard

#: Bytes of an image, and of the events that a worker writes before the last one.
IMAGE, EVENTS = 100_000, [b"started", bytes(200), bytes(1600), bytes(400), bytes(400)]

#: Jobs in the pipelines of a server, about.
AT_ONCE = 64

MODEL = ("model", "1")


@dataclass(frozen=True, slots=True)
class Carried:
    """Jobs that went through some servers."""

    jobs: int
    seconds: Sequence[float]
    """Processor time of each server."""

    @property
    def capacity(self) -> float:
        """Jobs per second when the busiest server uses all of its core."""
        return self.jobs / max(self.seconds)


def carry(urls: Sequence[str], pids: Sequence[int], jobs: int) -> Carried:
    """Sends jobs through servers: each is submitted, leased, settled, and read by its caller."""
    settings = QueueSettings(url=",".join(urls), prefix=secrets.token_hex(4))
    shards = [Shard(each) for each in settings.shards()]
    before = [processor_seconds(pid) for pid in pids]
    at_once = AT_ONCE * len(shards)
    for _ in range(jobs // at_once):
        new: dict[int, list[NewJob]] = {}
        for job in (_new_job() for _ in range(at_once)):
            new.setdefault(choose_shard(f"{job.tenant}:{job.fingerprint}", range(len(shards))), []).append(job)
        for number, some in new.items():
            shards[number].carry(some)
    spent = [processor_seconds(pid) - begun for pid, begun in zip(pids, before, strict=True)]
    for shard in shards:
        shard.client.close()
    return Carried(jobs // at_once * at_once, spent)


class Shard:
    """A server whose scripts are called in pipelines, so that it always has the next call, as under full load."""

    def __init__(self, settings: QueueSettings) -> None:
        self._settings = settings
        self.client: Any = redis.Redis.from_url(settings.url)
        for name in ("submit", "lease", "settle", "read"):
            self.client.script_load(load_script(name).text)

    def carry(self, jobs: Sequence[NewJob]) -> None:
        """Takes jobs from their submission to the reading of their events."""
        settings = self._settings
        self._call("submit", [submit_arguments(job, b"accepted", settings) for job in jobs])
        lease = "worker", settings.lease_seconds, settings.batch_every
        leased = self._call("lease", [(lease[0], secrets.token_hex(8), *lease[1:], "", "", "model@1") for _ in jobs])
        last = "completed", settings.cache_seconds, settings.max_log_bytes, *room(settings), 500, 1.0, ""
        events = [b"e" + event for event in EVENTS] + [b"tdone"]
        self._call("settle", [(answer[2], answer[1], *last, *events) for answer in leased])
        self._call("read", [(job.job_id, 0, 16, 2**20, "") for job in jobs])

    def _call(self, name: str, calls: Sequence[Sequence[Any]]) -> Sequence[Any]:
        pipeline = self.client.pipeline(transaction=False)
        for arguments in calls:
            pipeline.evalsha(load_script(name).digest, 1, root_key(self._settings), *arguments)
        answers: Sequence[Any] = pipeline.execute()
        return answers


def _new_job() -> NewJob:
    return NewJob(
        job_id=secrets.token_hex(16),
        kind=JobKind.EXPLANATION,
        model=MODEL[0],
        version=MODEL[1],
        method="igos++",
        lane=Lane.INTERACTIVE,
        request=bytes(200),
        images={"image": os.urandom(IMAGE)},
        content_key=secrets.token_hex(32),
        setting="{}",
    )


def measure(jobs: int, rounds: int) -> tuple[list[Carried], list[Carried]]:
    """Returns what one server carried, and what two did, in alternating rounds."""
    one, two = [], []
    options = ("--appendfsync", "everysec")
    with ExitStack() as stack:
        servers = []
        for number in range(2):
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="shard-"))
            servers.append(stack.enter_context(EmbeddedValkey(directory, persist=True, options=options)))
            processors = sorted(os.sched_getaffinity(0))
            for task in Path(f"/proc/{servers[-1].pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), {processors[number % len(processors)]})
        urls, pids = [server.url for server in servers], [server.pid for server in servers]
        for _ in range(rounds):
            one.append(carry(urls[:1], pids[:1], jobs))
            two.append(carry(urls, pids, jobs))
    return one, two


def report(one: Sequence[Carried], two: Sequence[Carried]) -> str:
    """Returns the section of the document."""
    ratios = [after.capacity / before.capacity for before, after in zip(one, two, strict=True)]
    rows = [
        [name, f"{statistics.median(run.capacity for run in runs):,.0f}", share]
        for name, runs, share in (
            ("one", one, "100 %"),
            ("two", two, f"{statistics.median(max(run.seconds) / sum(run.seconds) for run in two):.0%}"),
        )
    ]
    header = ["servers", "jobs per second of the busiest server's processor", "share of the busiest"]
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return f"""## Two servers beside one

Written by `make bench-shards`. {one[0].jobs:,} jobs with images of {IMAGE // 1000} kB, each submitted, leased, settled
with {len(EVENTS) + 1} events and read once, by pipelines of the queue's scripts, in {len(one)} alternating rounds
through one Valkey and through two (`appendfsync everysec`, each pinned to a processor); medians.
**Two servers carry {ratio} times as much as one.** The figures are jobs per second of
processor time of the busiest server, which is what limits it. Load of the machine meanwhile, from other programs:
{os.getloadavg()[0]:.0f} on {len(os.sched_getaffinity(0))} processors.

{table(header, rows)}"""


def main() -> None:
    """Measures both sides in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path, help="document whose section is written")
    given = parser.parse_args()
    text = report(*measure(given.jobs, given.rounds))
    print(text)
    if given.write:
        write_section(given.write, "shards", text)


if __name__ == "__main__":
    main()

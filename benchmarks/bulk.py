"""Benchmark of batches of many images: durability, memory, reading ahead, and the client's processor time.

`python benchmarks/bulk.py [--images 10000] [--write docs/performance.md]`: `sagittal batch run` explains small images
through a worker that answers at once. Meanwhile the command is killed three times, the service once and Redis once.
"""

import argparse
import asyncio
import collections
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import grpc
from answering_worker import MODEL
from PIL import Image
from reports import table, write_section
from service_stack import HERE, PATIENCE, Program, free_port

from sagittal.bulk.shards import read_column
from sagittal.client import Batch, BatchItem, Client, NotFound, Options, Retry, Unavailable
from sagittal.core.jobs import JobFilter, JobState
from sagittal.process.embedded import EmbeddedValkey
from sagittal.queue.jobs import RedisJobQueue
from sagittal.queue.settings import QueueSettings

#: Items that the command has in flight.
IN_FLIGHT = 128

#: Shares of the items at which something is killed.
CLIENT_KILLS, SERVICE_KILL, REDIS_KILL = (0.15, 0.3, 0.45), 0.6, 0.8

#: Model evaluations of each answer of the worker.
EVALUATIONS = 100

#: Images whose reading takes `LATENCY` seconds each.
SLOW_IMAGES, LATENCY = 60, 0.05

#: Batches of slow images, of which the fastest counts: other programs make single ones slower.
READINGS = 5

#: Pairs of batches whose processor time is measured, of which the median counts.
COSTS = 3

#: Bars: MiB of the client, seconds to read the slow images, and milliseconds of the client for each image.
MOST_MEMORY, MOST_READING, MOST_PROCESSOR = 200, 1.2, 1.0

MIB = 2**20


@dataclass
class World:
    """Redis, the service and the worker, each of which can be killed and started again at its address."""

    directory: Path
    address: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.redis = EmbeddedValkey(self.directory / "redis", port=free_port(), persist=True)

    def __enter__(self) -> "World":
        self.redis.start()
        self.start("service", "-m", "sagittal.server.main")
        self.start("worker", str(HERE / "answering_worker.py"))
        with grpc.insecure_channel(self.address) as channel:
            grpc.channel_ready_future(channel).result(PATIENCE)
        with self.client() as client:
            client.wait_until_ready(MODEL, timeout=PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait(PATIENCE)
        self.redis.stop()

    def start(self, name: str, *arguments: str) -> None:
        """Starts a program."""
        variables = {
            "SAGITTAL_QUEUE__URL": self.redis.url,
            "SAGITTAL_METRICS_PORT": "0",
            "SAGITTAL_LOG_LEVEL": "error",
            "SAGITTAL_LISTEN": self.address,
        }
        self.processes[name] = subprocess.Popen([sys.executable, *arguments], env=os.environ | variables)

    def kill_service(self) -> None:
        """Kills the service and starts it again."""
        self.processes["service"].kill()
        self.processes["service"].wait()
        time.sleep(2)
        self.start("service", "-m", "sagittal.server.main")

    def kill_redis(self) -> None:
        """Kills Redis and starts it again with what its append-only file has."""
        os.kill(self.redis.pid, signal.SIGKILL)
        self.redis.stop()
        time.sleep(2)
        self.redis.start()

    def client(self) -> Client:
        """Returns a client that waits for what is away."""
        return Client(self.address, options=Options(retry=Retry(call_seconds=PATIENCE, stream_seconds=PATIENCE)))

    def forget_results(self) -> None:
        """Deletes all ended jobs, as retention does two hours later."""
        asyncio.run(_delete_ended(QueueSettings(url=self.redis.url, operation_timeout=PATIENCE)))


async def _delete_ended(settings: QueueSettings) -> None:
    queue = RedisJobQueue(settings)
    ended = JobFilter(states=(JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED))
    while True:
        found, token = await queue.list(ended, limit=1000, page_token="")
        for job in found:
            await queue.delete(job.job_id)
        if not token and not found:
            break
    await queue.close()


@contextlib.contextmanager
def command(world: World, images: Path, out: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Runs `sagittal batch run`; kills it at the end of the context."""
    arguments = ["-m", "sagittal.cli.main", "batch", "run", str(images), "--out", str(out), "--model", MODEL]
    arguments += ["--name", out.name, "--address", world.address, "--in-flight", str(IN_FLIGHT)]
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def write_images(folder: Path, number: int, shade: int) -> Path:
    """Writes small images that all differ, also from those of another shade, so that none shares an answer."""
    folder.mkdir()
    for each in range(number):
        colour = (each % 256, each // 256, shade)
        Image.new("RGB", (32, 32), colour).save(folder / f"{each:06d}.png")
    return folder


def state(client: Client, name: str) -> Batch | None:
    """Returns a batch; None until it is created."""
    try:
        return client.batches.get(name)
    except (NotFound, Unavailable):
        return None


def until(client: Client, name: str, completed: int, process: "subprocess.Popen[bytes]") -> list[int]:
    """Waits until so many items are completed or the command has ended; returns its resident bytes meanwhile."""
    memory = []
    while process.poll() is None:
        found = state(client, name)
        if found is not None and found.counts.completed >= completed:
            break
        with contextlib.suppress(OSError, ValueError, IndexError):
            memory += filter(None, [resident(process.pid)])  # 0 once it has ended
        time.sleep(0.1)
    return memory


def resident(pid: int) -> int:
    """Returns the resident bytes of a process, with the files that it maps."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def keys(out: Path) -> list[str]:
    """Returns the keys of all rows."""
    shards = sorted(out.glob("figures-*.parquet"))
    return [key for shard in shards for key in read_column(shard, "key")]


@dataclass(frozen=True, slots=True)
class Durability:
    """Outcome of a batch whose processes were killed."""

    images: int
    rows: int
    lost: int
    twice: int
    computed: int
    kills: int
    seconds: float
    early: float
    """Resident MiB of the last command a quarter into its run."""
    late: float
    """Resident MiB of the last command at its end."""
    peak: float
    """Largest resident MiB of any command."""

    @property
    def again(self) -> int:
        """Items that were computed more than once."""
        return self.computed - self.images

    @property
    def holds(self) -> bool:
        """Whether nothing was lost or repeated, and nothing was computed again that was not in flight."""
        return not self.lost and not self.twice and self.again <= self.kills * IN_FLIGHT


def kill_everything(world: World, images: Path, number: int, out: Path) -> Durability:
    """Runs a batch while its parts are killed."""
    began, memory = time.monotonic(), list[int]()
    with world.client() as client:
        for share in CLIENT_KILLS:
            with command(world, images, out) as process:
                memory += until(client, out.name, int(share * number), process)
            _settle(client, out.name)
            world.forget_results()
        with command(world, images, out) as process:
            last = until(client, out.name, int(SERVICE_KILL * number), process)
            world.kill_service()
            last += until(client, out.name, int(REDIS_KILL * number), process)
            world.kill_redis()
            last += until(client, out.name, number + 1, process)
            if process.wait():
                raise SystemExit(f"`sagittal batch run` ended with {process.returncode}")
        found = client.batches.get(out.name)
    rows = collections.Counter(keys(out))
    return Durability(
        images=number,
        rows=len(rows),
        lost=number - len(rows),
        twice=sum(count > 1 for count in rows.values()),
        computed=found.spent.evaluations // EVALUATIONS,
        kills=len(CLIENT_KILLS) + 2,
        seconds=time.monotonic() - began,
        early=last[len(last) // 4] / MIB,
        late=last[-1] / MIB,
        peak=max(memory + last) / MIB,
    )


def _settle(client: Client, name: str) -> None:
    """Waits until the items that a killed command left in flight have ended."""
    while (found := state(client, name)) is None or found.counts.in_flight:
        time.sleep(0.1)


def processor_time(world: World, directory: Path, attempt: int, few: int, many: int) -> float:
    """Returns the client's processor time for each image in ms: the slope between a small and a large batch."""
    spent = []
    for shade, number in enumerate((few, many), start=2 * attempt):
        images = write_images(directory / f"images-{shade}", number, shade=shade)
        out = directory / f"cost-{shade}"
        with command(world, images, out) as process:
            program, seconds = Program("client", process.pid), 0.0
            while process.poll() is None:
                with contextlib.suppress(OSError, IndexError):
                    seconds = max(seconds, program.cpu_seconds())
                time.sleep(0.02)
        spent.append(seconds)
    return (spent[1] - spent[0]) / (many - few) * 1e3


def reading_time(world: World, attempt: int) -> float:
    """Returns the seconds of a batch of images each of which takes 50 ms to read."""

    def slow(number: int) -> "Image.Image":
        time.sleep(LATENCY)
        return Image.new("RGB", (32, 32), (number, attempt, 255))

    items = [BatchItem(key=str(each), image=partial(slow, each)) for each in range(SLOW_IMAGES)]
    name = f"slow-{attempt}"
    with world.client() as client:
        client.batches.create(name, model=MODEL)
        began = time.monotonic()
        results = list(client.batches.run(name, items))
        took = time.monotonic() - began
    assert [each.state for each in results] == ["completed"] * SLOW_IMAGES
    return took


def report(found: Durability, reading: float, processor: float, load: float) -> tuple[str, bool]:
    """Returns what was measured, and whether every goal is reached."""
    rows: Sequence[tuple[str, str, str, bool]] = (
        ("images without a row", str(found.lost), "0", not found.lost),
        ("images with two rows", str(found.twice), "0", not found.twice),
        ("images computed again", str(found.again), f"{found.kills} x {IN_FLIGHT} in flight", found.holds),
        (
            "resident memory of the command",
            f"{found.peak:.0f} MiB; {found.early:.0f} early, {found.late:.0f} late",
            f"{MOST_MEMORY} MiB",
            found.peak <= MOST_MEMORY,
        ),
        (
            f"{SLOW_IMAGES} images that take {LATENCY * 1e3:.0f} ms each to read: best of {READINGS} batches",
            f"{reading:.2f} s",
            f"{MOST_READING} s",
            reading <= MOST_READING,
        ),
        (
            f"processor time of the command for each image: median of {COSTS} pairs of batches",
            f"{processor:.2f} ms",
            f"{MOST_PROCESSOR:g} ms",
            processor <= MOST_PROCESSOR,
        ),
    )
    lines = [(name, value, goal, "yes" if reached else "**no**") for name, value, goal, reached in rows]
    kills = ", ".join(f"{share:.0%}" for share in CLIENT_KILLS)
    text = (
        "## A million images\n\n"
        f"Written by `make bench-bulk`. `sagittal batch run` explains {found.images:,} images of 32 x 32 through a\n"
        f"worker that answers at once, with {IN_FLIGHT} in flight. Meanwhile the command is killed (SIGKILL) at\n"
        f"{kills} of the images, the service at {SERVICE_KILL:.0%} and Redis (`appendfsync always`) at\n"
        f"{REDIS_KILL:.0%}. After each kill of the command, all results that the service keeps are deleted, as if\n"
        "its retention had passed. It took\n"
        f"{found.seconds:,.0f} s ({found.images / found.seconds:,.0f} images/s, pauses included), on {os.cpu_count()}\n"
        f"processors with a load of {load:.1f} at the start.\n\n"
        + table(("", "measured", "at most", "reached"), lines)
        + "\nMemory is resident memory with mapped files. Processor time is the slope between two batches without\n"
        "kills, so that start and end do not count; it includes reading files, gRPC, and writing the results.\n"
    )
    return text, all(reached for *_, reached in rows)


def main() -> int:
    """Measures, prints, and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench-bulk-") as name, World(Path(name)) as world:
        directory = Path(name)
        reading = min(reading_time(world, attempt) for attempt in range(READINGS))
        few, many = max(given.images // 20, 100), max(given.images // 5, 400)
        processor = median(processor_time(world, directory, attempt, few, many) for attempt in range(COSTS))
        images = write_images(directory / "images", given.images, shade=100)
        found = kill_everything(world, images, given.images, directory / "night")
    text, reached = report(found, reading, processor, load)
    print(text)
    if given.write:
        write_section(given.write, "bulk", text)
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())

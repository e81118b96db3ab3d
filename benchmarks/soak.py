"""Many small jobs, with the memory of service, worker and Redis over time: growth per job would be visible."""

import argparse
import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from answering_worker import MODEL
from reports import table, write_section
from service_load import run_load
from service_stack import HERE, Stack, running_stack

from sagittal.queue.scripts import root_key
from sagittal.queue.usage import measure_usage

#: Time that ended jobs are kept, in seconds: short, so that what is kept stops growing early.
RETENTION = {"SAGITTAL_QUEUE__RETENTION_SECONDS": "15", "SAGITTAL_QUEUE__IMAGE_RETENTION_SECONDS": "5"}

#: Number of concurrent streams, and seconds between two samples of the memory.
STREAMS, LOOK = 32, 5.0

#: First samples that do not count: pools fill, and the first jobs reach their retention.
WARM_UP = 8

#: Maximum growth of the memory of service or worker per job, in bytes: a leaked identifier is more.
GROWTH = 100

#: Time after the last job until none of it may be kept, in seconds: retention, and a minute for marks of calls.
REST = 80.0

#: Maximum bytes that may then be kept: the registry, the counters, learned estimates.
KEPT = 64 * 1024

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Look:
    """Memory at one time."""

    jobs: int
    mebibytes: Mapping[str, float]


def soak(stack: Stack, jobs: int) -> list[Look]:
    """Runs at least this many jobs; returns the memory over time."""
    looks: list[Look] = []
    done = 0
    while done < jobs:
        load = run_load(stack.address, MODEL, streams=STREAMS, seconds=LOOK, first_seed=done)
        done += asyncio.run(load).jobs
        looks.append(Look(done, _memory(stack)))
    return looks


def _memory(stack: Stack) -> Mapping[str, float]:
    memory = {each.name: each.resident_bytes() / MIB for each in stack.programs}
    with stack.redis() as client:
        memory["Redis, data alone"] = client.info("memory")["used_memory"] / MIB
    return memory


def slopes(looks: Sequence[Look]) -> Mapping[str, float]:
    """Returns the growth of each memory in bytes per job, after the warm-up."""
    jobs = [look.jobs for look in looks]
    return {name: _slope(jobs, _sizes(looks, name)) * MIB for name in looks[0].mebibytes}


def report(looks: Sequence[Look], jobs: int, seconds: float, kept: int) -> str:
    """Returns the section about the soak of `jobs` in `seconds`, from the looks that count and the bytes `kept`."""
    rows = []
    for name, slope in slopes(looks).items():
        sizes = _sizes(looks, name)
        quarter = max(len(sizes) // 4, 1)
        first, last = statistics.mean(sizes[:quarter]), statistics.mean(sizes[-quarter:])
        rows.append([name, f"{first:.1f}", f"{last:.1f}", f"{max(sizes):.1f}", f"{slope:+.0f}"])
    return f"""## Soak

Written by `make soak`: {jobs:,} small jobs over {STREAMS} streams in {seconds:.0f} s. Ended jobs are kept for
{RETENTION["SAGITTAL_QUEUE__RETENTION_SECONDS"]} s. Memory is in MiB (of processes: resident memory that is not shared
with files), read every {LOOK:g} s after a warm-up of {looks[0].jobs:,} jobs. During the soak, the memory of Redis
follows the number of jobs per second. {REST:g} s after the last job, its keys had {kept:,} bytes. The soak fails above
{KEPT:,} bytes, or if service or worker grow by more than {GROWTH} bytes for each job.

{table(["what", "first quarter, mean", "last quarter, mean", "most", "slope, bytes a job"], rows)}
"""


def _sizes(looks: Sequence[Look], name: str) -> list[float]:
    return [look.mebibytes[name] for look in looks]


def _slope(places: Sequence[float], values: Sequence[float]) -> float:
    return statistics.linear_regression(places, values).slope if len(places) > 1 else 0.0


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="file to write the report to")
    parser.add_argument("--jobs", type=int, default=20_000, help="least number of jobs")
    options = parser.parse_args()
    with running_stack([str(HERE / "answering_worker.py")], model=MODEL, environment=RETENTION) as stack:
        started = time.monotonic()
        looks = soak(stack, options.jobs)
        seconds = time.monotonic() - started
        time.sleep(REST)
        kept = measure_usage(stack.redis(), root_key(stack.settings)).bytes
    counted = looks[min(WARM_UP, len(looks) - 1) :]
    text = report(counted, looks[-1].jobs, seconds, kept)
    print(text)
    if grew := {name: slope for name, slope in slopes(counted).items() if slope > GROWTH and "Redis" not in name}:
        raise SystemExit(f"memory grows with each job, in bytes: {grew}")
    if kept > KEPT:
        raise SystemExit(f"Redis keeps {kept:,} bytes when all jobs have gone, and {KEPT:,} are allowed")
    if options.write:
        write_section(options.write, "soak", text)


if __name__ == "__main__":
    main()

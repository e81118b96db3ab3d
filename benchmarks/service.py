"""The cost of the service: jobs per second, latencies, processor time and Redis calls, with an immediate worker.

Then the overhead of the whole system on explanations of about a second, against the library called directly.
"""

import argparse
import asyncio
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import service_cancel
import service_overhead
from answering_worker import MODEL
from reports import table, write_section
from service_load import Timings, percentile, picture, run_load
from service_stack import HERE, Stack, running_stack

from sagittal.queue.scripts import root_key
from sagittal.queue.usage import Usage, measure_usage

#: Numbers of concurrent streams.
STREAMS = (1, 32, 256)

#: Few and many streams, compared in turn, and how often.
FEW, MANY = 32, 256
TURNS = 4

#: Number of streams for the comparison with `appendfsync everysec`.
COMPARED = (32,)

#: Name of the server among the programs.
REDIS = "Redis (Valkey)"

#: Commands that programs send; other commands are sent by scripts.
SENT = ("evalsha", "blpop", "subscribe", "unsubscribe")


@dataclass(frozen=True, slots=True)
class Measured:
    """One load, measured."""

    streams: int
    timings: Timings
    cpu: Mapping[str, float]
    """Seconds of processor time by program."""
    calls: Mapping[str, int] = field(default_factory=dict)
    """Commands that Redis ran, by name."""

    @property
    def jobs_a_second(self) -> float:
        """Completed jobs per second."""
        return self.timings.jobs / self.timings.seconds

    @property
    def cpu_per_job(self) -> float:
        """Seconds of processor time of all programs for each job."""
        return sum(self.cpu.values()) / self.timings.jobs

    def per_job(self, seconds: float) -> str:
        """Returns milliseconds per job."""
        return f"{1e3 * seconds / self.timings.jobs:.2f}"


def measure(stack: Stack, streams: int, seconds: float, first_seed: int) -> Measured:
    """Applies a load to the service."""
    before, calls, own = stack.cpu_seconds(), _calls(stack), time.process_time()
    timings = asyncio.run(run_load(stack.address, MODEL, streams=streams, seconds=seconds, first_seed=first_seed))
    cpu = {name: used - before[name] for name, used in stack.cpu_seconds().items()}
    cpu["caller (this program)"] = time.process_time() - own
    made = {name: number - calls.get(name, 0) for name, number in _calls(stack).items()}
    return Measured(streams, timings, cpu, made)


def measure_loads(
    streams: Sequence[int], seconds: float, *, redis_options: tuple[str, ...] = ()
) -> tuple[list[Measured], Usage]:
    """Applies loads to a new installation, one after another; also returns the memory kept at the end."""
    worker = [str(HERE / "answering_worker.py")]
    with running_stack(worker, model=MODEL, redis_options=redis_options) as stack:
        measure(stack, 8, 2.0, 10**9)  # connections are made, scripts loaded
        loads = [measure(stack, number, seconds, index * 10**6) for index, number in enumerate(streams)]
        return loads, measure_usage(stack.redis(), root_key(stack.settings))


def compare_streams(seconds: float) -> list[tuple[Measured, Measured]]:
    """Applies loads of few and of many streams in turn, each pair in the other order; returns the pairs."""
    with running_stack([str(HERE / "answering_worker.py")], model=MODEL) as stack:
        measure(stack, 8, 2.0, 10**9)
        pairs = []
        for turn in range(TURNS):
            order = (FEW, MANY) if turn % 2 == 0 else (MANY, FEW)
            found = {number: measure(stack, number, seconds, (2 * turn + (number == MANY)) * 10**6) for number in order}
            pairs.append((found[FEW], found[MANY]))
        return pairs


def _calls(stack: Stack) -> Mapping[str, int]:
    with stack.redis() as client:
        stats = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): int(each["calls"]) for name, each in stats.items()}


def report(loads: list[Measured], relaxed: Measured, pairs: Sequence[tuple[Measured, Measured]], usage: Usage) -> str:
    """Returns the section about the load."""
    programs = list(loads[0].cpu)
    cpu = [[each.streams, *(each.per_job(each.cpu[name]) for name in programs)] for each in loads]
    calls = [[each.streams, *(f"{each.calls.get(name, 0) / each.timings.jobs:.2f}" for name in SENT)] for each in loads]
    place = f"{os.cpu_count()} cores that other programs used as well (load average {os.getloadavg()[0]:.0f})"
    return f"""## Service

Written by `make bench-service`. Valkey with an append-only file and `appendfsync always`, the service, a worker that
answers at once with six events (a 28 x 28 mask and two curves among them) and the caller are one process each, on
{place}, {platform.machine()}, Python {platform.python_version()}.
Each request has a JPEG of 224 x 224 pixels and a different seed, so that no result comes from the cache. On a machine
with other programs, latencies and jobs per second depend on their load. The processor time for each job is more
reliable.

### Load

{table(["streams", "jobs/s", "first event p50 / p99, ms", "done p50 / p99, ms"], [_latencies(each) for each in loads])}
With `appendfsync everysec`, which may lose jobs that were accepted in the last second, {relaxed.streams} streams get
{relaxed.jobs_a_second:.0f} jobs/s, done after {_pair(relaxed.timings.done)} ms (p50 / p99), with
{relaxed.per_job(relaxed.cpu[REDIS])} ms of processor time of Redis for each job.

Processor time for each job, in ms:

{table(["streams", *programs], cpu)}
### Few and many streams

{FEW} and {MANY} streams in turn on one installation, {len(pairs)} times, each pair in the other order. The processor
time is that of all four programs. {MANY} streams complete
{_median_ratio(pairs, lambda each: each.jobs_a_second):.2f} times as many jobs per second as {FEW}, for
{_median_ratio(pairs, lambda each: each.cpu_per_job):.2f} times the processor time for each job (medians of the pairs).

{table(["pair", *_COMPARED_COLUMNS], [_pair_of_loads(number, *pair) for number, pair in enumerate(pairs, 1)])}
### Where the time goes

Median ms of each stage, from the times in the events:

{table(["stage", *(f"{each.streams} streams" for each in loads)], _stages(loads))}
### Redis

Calls to Redis for each job. The minimum is one each to submit, lease, settle and read. Idle workers wait (`blpop`). A
watcher subscribes to its job's log, and reads again at each notification.

{table(["streams", *SENT], calls)}
Bytes that Redis keeps for each ended job together with its image ({len(picture()):,} bytes), by
`python -m sagittal.queue.usage`:

{table(["what", "bytes a job"], [[kind, f"{part.bytes / usage.jobs:,.0f}"] for kind, part in usage.parts.items()])}
"""


_COMPARED_COLUMNS = (
    f"jobs/s, {FEW}",
    f"jobs/s, {MANY}",
    "ratio",
    f"ms of processor time a job, {FEW}",
    f"ms of processor time a job, {MANY}",
    "ratio",
)


def _pair_of_loads(number: int, few: Measured, many: Measured) -> list[object]:
    jobs, cpu = (few.jobs_a_second, many.jobs_a_second), (1e3 * few.cpu_per_job, 1e3 * many.cpu_per_job)
    return [
        number, *(f"{each:.0f}" for each in jobs), f"{jobs[1] / jobs[0]:.2f}",
        *(f"{each:.2f}" for each in cpu), f"{cpu[1] / cpu[0]:.2f}",
    ]  # fmt: skip


def _median_ratio(pairs: Sequence[tuple[Measured, Measured]], of: Callable[[Measured], float]) -> float:
    return statistics.median(of(many) / of(few) for few, many in pairs)


def _latencies(measured: Measured) -> list[object]:
    timings = measured.timings
    return [measured.streams, f"{measured.jobs_a_second:.0f}", _pair(timings.first), _pair(timings.done)]


def _pair(values: Sequence[float]) -> str:
    """Returns median and 99th percentile in ms."""
    return f"{1e3 * percentile(values, 0.5):.1f} / {1e3 * percentile(values, 0.99):.1f}"


def _stages(loads: list[Measured]) -> list[list[object]]:
    names = list(loads[0].timings.stages)
    return [[name, *(f"{1e3 * percentile(each.timings.stages[name], 0.5):.1f}" for each in loads)] for name in names]


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="file to write the report to")
    parser.add_argument("--seconds", type=float, default=15.0, help="length of each load; 0 for none")
    parser.add_argument(
        "--pairs", type=int, default=service_overhead.PAIRS, help="explanations on each side; 0 for none"
    )
    parser.add_argument("--calls", type=int, default=service_cancel.CALLS, help="calls that are left")
    options = parser.parse_args()
    if options.seconds:
        loads, usage = measure_loads(STREAMS, options.seconds)
        (relaxed,), _ = measure_loads(COMPARED, options.seconds, redis_options=("--appendfsync", "everysec"))
        pairs = compare_streams(options.seconds)
        _publish("service", report(loads, relaxed, pairs, usage), options.write)
    if options.pairs:
        with service_overhead.running_model() as (stack, loaded):
            _publish("overhead", service_overhead.report(stack, loaded, options.pairs), options.write)
            _publish(
                "cancel",
                service_cancel.report(stack, service_overhead.MODEL, loaded.found.batch_size, options.calls),
                options.write,
            )


def _publish(section: str, text: str, path: Path | None) -> None:
    print(text, flush=True)
    if path:
        write_section(path, section, text)


if __name__ == "__main__":
    main()

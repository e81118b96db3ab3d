"""The cost of a worker's sleeping threads, and their benefit when other programs compute too.

`python benchmarks/waiting.py [--rounds 2] [--write docs/performance.md]`: passes of EfficientNet-Lite0 with one
thread for each processor, in separate programs. Their threads spin or sleep while they wait for each other, in
alternating runs. Each is measured alone, and beside as many programs that only compute.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from reports import table, write_section

from sagittal.models.sources import load_source

#: Images per pass, and passes of each program; the first is not counted.
BATCH, PASSES = 16, 5
#: `ACTIVE` is OpenMP's default.
POLICIES = ("ACTIVE", "PASSIVE")
PROCESSORS = len(os.sched_getaffinity(0))


def pass_times() -> list[float]:
    """Returns how long each pass took, in seconds."""
    torch.set_num_threads(PROCESSORS)
    network = load_source({"kind": "efficientnet-lite", "variant": 0}).module.eval()
    images = torch.rand(BATCH, 3, 224, 224)
    times = []
    with torch.no_grad():
        for _ in range(PASSES):
            began = time.perf_counter()
            network(images)
            times.append(time.perf_counter() - began)
    return times[1:]


def measure(policy: str) -> list[float]:
    """Returns the times of a program whose threads wait by this policy."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_"))}
    environment |= {"OMP_WAIT_POLICY": policy} if policy != "ACTIVE" else {}
    done = subprocess.run([sys.executable, __file__, "--passes"], env=environment, check=True, stdout=subprocess.PIPE)
    return [float(word) for word in done.stdout.split()]


@contextmanager
def company(count: int) -> Iterator[None]:
    """Runs programs that only compute, meanwhile."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in busy:
            program.kill()
            program.wait()


def measure_beside(count: int, rounds: int) -> list[str]:
    """Returns the median times of a pass, in ms, beside so many programs, what sleeping gains, and others' share."""
    times: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    began, others = time.perf_counter(), others_seconds()
    with company(count):
        for _ in range(rounds):
            for policy in POLICIES:
                times[policy] += measure(policy)
    spins, sleeps = (statistics.median(times[policy]) for policy in POLICIES)
    share = (others_seconds() - others) / (time.perf_counter() - began) / PROCESSORS
    return [f"{spins * 1e3:,.0f}", f"{sleeps * 1e3:,.0f}", f"{spins / sleeps:.2f}", f"{share:.0%}"]


def others_seconds() -> float:
    """Returns the processor time spent on this machine by programs that were not started here."""
    user, nice, system, *_ = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:])
    ours = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - ours.ru_utime - ours.ru_stime


def report(rows: Sequence[Sequence[str]], rounds: int) -> str:
    """Returns the section of the document."""
    header = ["beside", "spinning, ms", "asleep, ms", "spinning / asleep", "others"]
    return f"""## Threads that wait asleep

Written by `make bench-service`. A pass of {BATCH} images runs through EfficientNet-Lite0 on {PROCESSORS} threads, one
for each processor. While the threads wait for each other, they spin (OpenMP's default) or sleep (a worker's,
`OMP_WAIT_POLICY=PASSIVE`). Times are wall time, the median of {rounds * (PASSES - 1)} passes in {rounds} programs that
alternate. "Others" is the share of the processors that unrelated programs used meanwhile.
Machine: {platform.machine()},
Python {platform.python_version()}, torch {torch.__version__}.

{table(header, rows)}
"""


def main() -> None:
    """Measures alone and in company."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="programs of each kind")
    parser.add_argument("--passes", action="store_true", help="what this program does for itself")
    parser.add_argument("--write", type=Path, help="document whose section is written")
    given = parser.parse_args()
    if given.passes:
        print(*pass_times())
        return
    places = {"nothing": 0, f"{PROCESSORS} programs that compute": PROCESSORS}
    rows = [[place, *measure_beside(count, given.rounds)] for place, count in places.items()]
    text = report(rows, given.rounds)
    print(text)
    if given.write:
        write_section(given.write, "waiting", text)


if __name__ == "__main__":
    main()

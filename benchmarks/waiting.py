"""What it costs that a worker's threads wait asleep, and what it saves where others compute too.

`python benchmarks/waiting.py [--rounds 3]`: passes of EfficientNet-Lite0 on as many threads as there are processors, in
programs of their own whose threads spin or sleep while they wait for each other, in turn; alone, and beside as many
programs that only compute. Prints the median time of a pass and their ratio.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from sagittal.models.sources import load_source

#: Images in a pass, and passes of each program; the first is not counted.
BATCH, PASSES = 16, 6
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
    """Returns the times of a program whose threads wait by this policy; `ACTIVE` is what OpenMP does untold."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_"))}
    environment |= {"OMP_WAIT_POLICY": policy} if policy != "ACTIVE" else {}
    done = subprocess.run([sys.executable, __file__, "--passes"], env=environment, check=True, stdout=subprocess.PIPE)
    return [float(word) for word in done.stdout.split()]


@contextmanager
def company(count: int) -> Iterator[None]:
    """Programs that only compute, meanwhile."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in busy:
            program.kill()
            program.wait()


def report(place: str, times: dict[str, Sequence[float]]) -> None:
    """Prints a line."""
    spins, sleeps = (statistics.median(times[policy]) for policy in POLICIES)
    print(f"{place}: spinning {spins * 1e3:.0f} ms, asleep {sleeps * 1e3:.0f} ms a pass, {spins / sleeps:.2f} times")


def main() -> None:
    """Measures alone and in company."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--passes", action="store_true", help="what this program does for itself")
    given = parser.parse_args()
    if given.passes:
        print(*pass_times())
        return
    for place, count in (("alone", 0), (f"beside {PROCESSORS} programs that compute", PROCESSORS)):
        times: dict[str, list[float]] = {policy: [] for policy in POLICIES}
        with company(count):
            for _ in range(given.rounds):
                for policy in POLICIES:
                    times[policy] += measure(policy)
        report(place, times)


if __name__ == "__main__":
    main()

"""Everything for minutes on a card: its name, the tests marked `cuda`, and the measurements, most valuable first.

Each part runs in a process of its own, so that a crash of one costs only that part. Results are written as they come. A
second run into the same folder does what the first did not: what was out of time, and what failed.
"""

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from device import explanations, memory, serving, throughput  # noqa: E402 - after the path of the benchmarks
from device.bench import SMALL, Bench, Sizes, card_name  # noqa: E402
from device.results import OutOfTime, Results, Value  # noqa: E402

Measurement = tuple[str, float, Callable[[], Value]]

TESTS, TEST_SECONDS = "tests", 120.0
"""Name of the tests' point, and the most time that they get."""

ALL_PASSED = (0, 5)
"""Exit statuses of pytest: all passed, and none was left to run."""

STOPPING = 5.0
"""Time to end a part that is out of time, in seconds."""


@dataclass(frozen=True, slots=True)
class Part:
    """Measurements that share a process."""

    name: str
    point: str
    measurements: Callable[[Bench, Results], Iterable[Measurement]]
    seconds: float
    """The most time that it gets while others wait."""


PARTS = (
    Part("bare", throughput.POINT, lambda bench, _: throughput.measurements(bench, slow=False), 60.0),
    Part("explanations", explanations.EFFICIENCY, explanations.efficiency, 150.0),
    Part("service", serving.POINT, serving.measurements, 120.0),
    Part("drift", explanations.DRIFT, explanations.drift, 90.0),
    Part("cost", explanations.COST, explanations.cost, 120.0),
    Part("memory", memory.POINT, memory.measurements, 120.0),
    Part("compiled", throughput.POINT, lambda bench, _: throughput.measurements(bench, slow=True), 400.0),
)
"""All parts, most valuable first."""


def run_part(part: Part, bench: Bench, results: Results) -> bool:
    """Measures what a part has left; returns whether everything is measured. A measurement that fails is recorded."""
    whole = True
    for key, seconds, work in part.measurements(bench, results):
        known = results.find(part.point, key)
        if known is not None and "error" in known:
            results.forget(part.point, key)
        try:
            results.measure(part.point, key, work, seconds=seconds if bench.on_card else 0.0)
        except OutOfTime as late:
            print(f"out of time: {late}", flush=True)
            whole = False
        except Exception as error:  # noqa: BLE001 - the next measurement may succeed
            traceback.print_exc()
            results.store(part.point, key, {"error": f"{type(error).__name__}: {error}"})
            whole = False
    return whole


def run_tests(device: str, results: Results, *, seconds: float) -> None:
    """Runs the tests marked `cuda` that have not passed yet on this card."""
    known = results.find(TESTS, "cuda")
    if known is not None and known["status"] in ALL_PASSED:
        return
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "tests/cuda", "--durations=10"]
    passed = results.folder / f"passed-{re.sub('[^A-Za-z0-9]+', '-', results.card)}.txt"
    environment = {
        **os.environ,
        "SAGITTAL_TEST_DEVICE": device.partition(":")[0],
        "SAGITTAL_TEST_PASSED": str(passed),
    }
    log = results.folder / "tests.txt"
    with log.open("w") as file:
        status = _run(command, seconds, file, environment=environment)
    summary = re.findall(
        r"^(?:\d+ (?:passed|failed|skipped|error).*|FAILED .*|ERROR .*)$", log.read_text(), re.MULTILINE
    )
    count = len(passed.read_text().splitlines()) if passed.exists() else 0
    results.store(TESTS, "cuda", {"status": status, "passed": count, "summary": summary[-40:]})


def _run(command: Sequence[str], seconds: float, output: object, *, environment: dict[str, str] | None = None) -> int:
    """Runs a program for at most a time; returns its status, 124 if it was stopped."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return int(process.wait(max(1.0, seconds)))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # ends what it started
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOPPING)
        return 124
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # whatever is left of it
        process.wait()


def run_all(options: argparse.Namespace) -> None:
    """Runs the tests, and each part in a process, until the time is over."""
    until = time.time() + options.seconds - STOPPING
    results = Results(options.out, card_name(torch.device(options.device)), until)
    results.store("card", "machine", machine(options.device))
    if not options.no_tests:
        run_tests(options.device, results, seconds=min(TEST_SECONDS, until - time.time()))
    for part in PARTS:
        if (left := until - time.time()) <= 0:
            break
        allowed = left if options.device == "cpu" else min(left, part.seconds)
        command = [sys.executable, __file__, "--out", str(options.out), "--device", options.device, "--part", part.name]
        command += ["--until", str(time.time() + allowed)] + (["--small"] if options.small else [])
        with (options.out / f"{part.name}.txt").open("a") as log:
            print(f"{part.name}: status {_run(command, min(left, allowed + STOPPING), log)}", flush=True)


def machine(device: str) -> Value:
    """Returns what results depend on besides the card."""
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": sys.version.split()[0]}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return {**versions, "device": device, "commit": commit.strip(), "processors": os.cpu_count()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; a second run continues there")
    parser.add_argument("--device", default="cuda", help="device; cpu tries everything out that needs no card")
    parser.add_argument("--seconds", type=float, default=420.0, help="time of the whole run")
    parser.add_argument("--small", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--no-tests", action="store_true", help="measures only")
    parser.add_argument("--part", choices=[part.name for part in PARTS], help="runs one part in this process")
    parser.add_argument("--until", type=float, default=float("inf"), help="end of that part, in seconds of the epoch")
    options = parser.parse_args(arguments)
    options.out = options.out.absolute()
    if options.part is None:
        run_all(options)
        return
    device = torch.device(options.device)
    bench = Bench(device, SMALL if options.small else Sizes(), options.out / "batch-sizes")
    results = Results(options.out, card_name(device), options.until)
    part = next(part for part in PARTS if part.name == options.part)
    sys.exit(0 if run_part(part, bench, results) else 1)


if __name__ == "__main__":
    main()

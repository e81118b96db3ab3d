"""Cost of an idle worker to Redis: processor time, and growth of the append-only file.

`python benchmarks/idle.py [--workers 16] [--seconds 30] [--beside CHECKOUT] [--write docs/performance.md]`: real
workers without jobs, many in one process, at a Valkey with an append-only file. They announce a model that is ready,
but load none. The cost of the server without workers is subtracted. With `--beside`, those of another checkout are
measured in turn.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import redis
import torch
from prometheus_client import CollectorRegistry
from reports import table, write_section

from sagittal.process.embedded import EmbeddedValkey
from sagittal.queue.leases import RedisWorkerQueue
from sagittal.queue.scripts import root_key
from sagittal.queue.settings import QueueSettings
from sagittal.registry.redis import RedisWorkerRegistry
from sagittal.v1 import model_pb2
from sagittal.worker.concepts.store import ConceptSettings, connect_concept_store
from sagittal.worker.hosting.reconciler import Reconciler
from sagittal.worker.metrics import WorkerMetrics
from sagittal.worker.outcomes import OutcomeReports
from sagittal.worker.process import Worker
from sagittal.worker.settings import WorkerSettings

#: Longest wait for the workers, in seconds; and the pause before a measurement, in which they settle.
PATIENCE, SETTLE = 300.0, 5.0

MODEL = ("small", "1")


class Ready(Reconciler):
    """The models of a worker that has one, which is ready."""

    def offered(self) -> Sequence[tuple[str, str]]:
        """Returns the models whose jobs may be leased."""
        return [MODEL]

    def announce(self, *, ttl: float | None) -> None:
        """Announces the model."""
        state = model_pb2.WorkerModel(worker="idle", state=model_pb2.MODEL_STATE_READY, device="cuda:0")
        self._registry.announce([(*MODEL, state)], ttl=ttl)


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a server, per second."""

    milliseconds: float
    """Processor time."""
    bytes: float
    """Growth of the append-only file."""


def serve(url: str, count: int) -> None:
    """Runs idle workers until the standard input ends; prints a line when all of them are ready."""
    torch.set_num_threads(1)
    with ExitStack() as stack:
        for number in range(count):
            _start(QueueSettings(url=url), f"idle-{number}", stack)
        _wait_for_announcements(url, count)
        print("ready", flush=True)
        sys.stdin.read()


def _wait_for_announcements(url: str, count: int) -> None:
    until = time.monotonic() + PATIENCE
    with redis.Redis.from_url(url) as client:
        while client.zcard(f"{root_key(QueueSettings())}workers") < count:
            if time.monotonic() > until:
                raise SystemExit(f"not all workers were ready within {PATIENCE:g} s")
            time.sleep(0.1)


def _start(settings: QueueSettings, name: str, stack: ExitStack) -> None:
    metrics = WorkerMetrics.create(CollectorRegistry())
    queue, announced = RedisWorkerQueue(settings, worker=name), RedisWorkerRegistry(settings)
    stack.callback(queue.close)
    stack.callback(announced.close)
    worker = Worker(
        WorkerSettings(worker_name=name, batch_size=1, drain=0.0, queue=settings),
        queue,
        Ready(None, announced, metrics, worker=name, device=torch.device("cpu")),
        metrics,
        concepts=connect_concept_store(ConceptSettings(), settings),
        outcomes=OutcomeReports(announced, metrics, name),
    )
    thread = threading.Thread(target=worker.run)
    thread.start()
    stack.callback(thread.join)
    stack.callback(worker.drain)


def processor_seconds(pid: int) -> float:
    """Returns the processor time of all threads of a process, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def watch(server: EmbeddedValkey, seconds: float) -> Cost:
    """Returns the cost of a server over some time."""
    with redis.Redis.from_url(server.url) as client:

        def sample() -> tuple[float, int]:
            return processor_seconds(server.pid), int(client.info("persistence")["aof_current_size"])

        time.sleep(SETTLE)
        spent, size = sample()
        began = time.monotonic()
        time.sleep(seconds)
        spent_after, size_after = sample()
        passed = time.monotonic() - began
    return Cost((spent_after - spent) * 1e3 / passed, (size_after - size) / passed)


def measure(checkout: Path | None, workers: int, seconds: float) -> Cost:
    """Returns what one idle worker costs."""
    with tempfile.TemporaryDirectory(prefix="idle-") as directory, EmbeddedValkey(directory, persist=True) as server:
        alone = watch(server, seconds)
        command = [sys.executable, __file__, "--serve", server.url, "--workers", str(workers)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment(checkout)
        ) as process:
            try:
                assert process.stdout is not None
                if process.stdout.readline().strip() != "ready":
                    raise SystemExit("the workers did not start")
                beside = watch(server, seconds)
            finally:
                process.communicate()
    return Cost((beside.milliseconds - alone.milliseconds) / workers, (beside.bytes - alone.bytes) / workers)


def _environment(checkout: Path | None) -> Mapping[str, str]:
    """Returns the environment of workers of a checkout; None for this one."""
    paths = [str(Path(__file__).resolve().parent)]
    if checkout is not None:
        paths = [str(checkout / part) for part in ("protos", "service", "workers", "clients")] + paths
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "SAGITTAL_LOG_LEVEL": "error"}


def report(costs: Mapping[str, Cost], workers: int, seconds: float) -> str:
    """Returns the section of the document."""
    rows = [
        [name, f"{cost.milliseconds:.3f}", f"{cost.milliseconds / 10:.4f} %", f"{max(cost.bytes, 0.0):,.0f}"]
        for name, cost in costs.items()
    ]
    header = [
        "workers",
        "Redis's processor per worker, ms/s (goal: 0.05)",
        "share of a core",
        "append-only file, bytes/s",
    ]
    return f"""## An idle worker

Written by `make bench-idle`. {workers} workers with a ready model and no jobs, at one Valkey with an append-only file,
for {seconds:g} s; the server without workers is subtracted. The sweeps of the elected worker are included. Load of the
machine meanwhile, from other programs: {os.getloadavg()[0]:.0f} on {len(os.sched_getaffinity(0))} processors.

{table(header, rows)}"""


def main() -> None:
    """Measures this checkout, and another one in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--beside", type=Path, help="another checkout, whose workers are measured too")
    parser.add_argument("--write", type=Path, help="document whose section is written")
    parser.add_argument("--serve", help="what this program does for itself: runs workers at this URL")
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.workers)
        return
    sides = {"this version": None} | ({"the checkout beside it": given.beside} if given.beside else {})
    costs = {name: measure(checkout, given.workers, given.seconds) for name, checkout in sides.items()}
    text = report(costs, given.workers, given.seconds)
    print(text)
    if given.write:
        write_section(given.write, "idle", text)


if __name__ == "__main__":
    main()

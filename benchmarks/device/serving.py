"""Point 4: explanations through the service over the same by the library, and the busy share by two counters."""

import asyncio
import statistics
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator

from prometheus_client.parser import text_string_to_metric_families
from service_load import picture
from service_stack import free_port, running_stack
from subject import MODELS

from device.bench import Bench, run_together
from device.explanations import tasks_of
from device.results import Results, Value
from sagittal.client import IGOSPlusPlus, Metrics
from sagittal.client.aio import AsyncClient

POINT = "service"

MODEL = "efficientnet-lite0"

SAMPLES_APART = 0.2
"""Time between two readings of the card's counter, in seconds."""

Work = tuple[str, float, Callable[[], Value]]


def measurements(bench: Bench, _results: Results) -> Iterator[Work]:
    """Yields the one measurement: both sides in turn, in one installation."""
    seconds = 2 * bench.sizes.service_seconds + 60
    yield f"igos++ over {bench.sizes.jobs} streams", seconds, lambda: _measure(bench)


def _measure(bench: Bench) -> Value:
    loaded = bench.loaded()
    port, batch_size = free_port(), loaded.found.batch_size
    environment = {
        "SAGITTAL_MODELS_FILE": str(MODELS),
        "SAGITTAL_DEVICE": str(bench.device),
        "SAGITTAL_BATCH_SIZE": str(batch_size),
        "SAGITTAL_MAX_JOBS": str(bench.sizes.jobs),
        "SAGITTAL_METRICS_PORT": "0",
    }
    # The service has its metrics elsewhere; those of the worker are what is measured.
    worker = ["-c", _WORKER.format(port=port)]
    with running_stack(worker, model=MODEL, environment=environment) as stack:
        _load(stack.address, bench, min(2.0, bench.sizes.service_seconds), first_seed=10**9)
        before, started = busy_seconds(port), time.perf_counter()
        with CardCounter(bench) as counter:
            jobs, evaluations = _load(stack.address, bench, bench.sizes.service_seconds, first_seed=0)
        seconds = time.perf_counter() - started
        busy = (busy_seconds(port) - before) / seconds
    tasks, _ = tasks_of(bench, loaded, "igos++", bench.sizes.jobs, seed=5000)
    of_library = run_together(loaded.engine(), tasks, bench.settle)
    by_library = sum(task.usage.evaluations for task in tasks) / of_library
    by_service = evaluations / seconds
    return {
        "streams": bench.sizes.jobs,
        "service_explanations_per_second": jobs / seconds,
        "service_evaluations_per_second": by_service,
        "library_evaluations_per_second": by_library,
        "service_over_library": by_library / by_service,
        "busy_share_exported": busy,
        "busy_share_of_card": counter.share,
    }


_WORKER = """
import os
os.environ["SAGITTAL_METRICS_PORT"] = "{port}"
from sagittal.worker.start import main
main()
"""


def _load(address: str, bench: Bench, seconds: float, *, first_seed: int) -> tuple[int, int]:
    """Explains over all streams for a time; returns the number of completed explanations, and evaluations."""
    image, seeds, evaluations = picture(), iter(range(first_seed, first_seed + 10**9)), []
    until = time.monotonic() + seconds

    async def ask_on(client: AsyncClient) -> None:
        while time.monotonic() < until:
            found = await client.explain(
                image,
                model=MODEL,
                method=IGOSPlusPlus(),
                metrics=Metrics(curves=False),
                seed=next(seeds),
                cache="bypass",
                max_evaluations=bench.sizes.evaluations,
            )
            evaluations.append(found.evaluations)

    async def everyone() -> None:
        async with AsyncClient(address) as client:
            await asyncio.gather(*(ask_on(client) for _ in range(bench.sizes.jobs)))

    asyncio.run(everyone())
    return len(evaluations), sum(evaluations)


def busy_seconds(port: int) -> float:
    """Returns the exported time for which the device was busy, in seconds."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = (sample for family in families for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name == "sagittal_device_busy_seconds_total")


class CardCounter:
    """Reads the card's own counter of its use, through nvidia-smi, while a block runs."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._stop = threading.Event()
        self._samples: list[float] = []
        self._thread = threading.Thread(target=self._read_on)

    @property
    def share(self) -> float | None:
        """Mean of the samples, from 0 to 1; None on a CPU."""
        return statistics.mean(self._samples) / 100 if self._samples else None

    def __enter__(self) -> "CardCounter":
        if self._bench.on_card:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._bench.on_card:
            self._thread.join()

    def _read_on(self) -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not self._stop.wait(SAMPLES_APART):
            told = subprocess.run(query, check=True, capture_output=True, text=True).stdout
            self._samples.append(float(told.splitlines()[self._bench.device.index or 0]))

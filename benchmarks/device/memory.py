"""Point 5: memory by batch, image and jobs, and the batch size of the load beside the best by hand."""

import gc
from collections.abc import Callable, Iterator

import torch

from device.bench import Bench, run_together
from device.explanations import tasks_of
from device.results import Results, Value
from device.throughput import pass_seconds
from sagittal.engine import Task
from sagittal.engine.requests import Evaluate, Subject
from sagittal.engine.scoring import TOP, Mode
from sagittal.models.measuring import batch_sizes

POINT = "memory and batch size"

Work = tuple[str, float, Callable[[], Value]]


def measurements(bench: Bench, _results: Results) -> Iterator[Work]:
    """Yields the key, the expected seconds and the work of each measurement."""
    yield "batch size", 40.0, lambda: _batch_size(bench)
    for size in bench.sizes.memory_batches:
        yield f"batch of {size}", 15.0, lambda size=size: _of_batch(bench, size)
    for side in bench.sizes.sides:
        yield f"image of {side} pixels", 15.0, lambda side=side: _of_side(bench, side)
    for jobs in bench.sizes.memory_jobs:
        yield f"{jobs} jobs", 20.0, lambda jobs=jobs: _of_jobs(bench, jobs)


def _batch_size(bench: Bench) -> Value:
    """Compares the size found at load with every size, measured longer."""
    loaded = bench.loaded()
    evaluator, rates = loaded.evaluator, {}
    sizes = batch_sizes(bench.device) if bench.on_card else bench.sizes.memory_batches
    evaluator.buckets = tuple(sorted({*sizes, loaded.found.batch_size}))
    shape = torch.Size((3, 224, 224))
    for size in evaluator.buckets:
        seconds = 0.0
        try:
            for gradient in (False, True):
                slot = evaluator.slot(size, shape, Mode(gradient=gradient, reduced=evaluator.autocast is not None))
                slot.inputs.normal_()
                slot.targets.fill_(TOP)
                seconds += pass_seconds(bench, slot, bench.sizes.seconds)
        except torch.cuda.OutOfMemoryError:
            break
        rates[size] = size / seconds
    best = max(rates, key=lambda size: rates[size])
    chosen = loaded.found.batch_size
    return {"chosen": chosen, "best": best, "chosen_over_best": rates[chosen] / rates[best], "rates": rates}


def _of_batch(bench: Bench, size: int) -> Value:
    before = _start(bench)
    loaded = bench.loaded(batch_size=size)
    _run(bench, loaded, [_job(224, size, loaded.device)])
    return {**_peak(bench, before), "reported_bytes": loaded.memory_bytes + loaded.activation_bytes}


def _of_side(bench: Bench, side: int) -> Value:
    before = _start(bench)
    loaded = bench.loaded(batch_size=min(bench.sizes.memory_batches))
    _run(bench, loaded, [_job(side, loaded.found.batch_size, loaded.device)])
    return _peak(bench, before)


def _of_jobs(bench: Bench, jobs: int) -> Value:
    before = _start(bench)
    loaded = bench.loaded(batch_size=max(bench.sizes.memory_batches))
    tasks, _ = tasks_of(bench, loaded, "igos++", jobs)
    _run(bench, loaded, tasks)
    return _peak(bench, before)


def _job(side: int, rows: int, device: torch.device) -> Task:
    def steps():
        image = torch.randn(3, side, side).to(device)
        yield Evaluate(subject=Subject(image, -image, 0), masks=torch.rand(rows, 28, 28), gradient=True)

    return Task(steps=steps())


def _run(bench: Bench, loaded, tasks) -> None:
    run_together(loaded.engine(), tasks, bench.settle)


def _start(bench: Bench) -> int:
    """Returns the memory in use before a measurement, in bytes."""
    if not bench.on_card:
        return 0
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(bench.device)
    return torch.cuda.memory_allocated(bench.device)


def _peak(bench: Bench, before: int) -> Value:
    """Returns the peak of allocated memory and what the process holds; a CPU's allocator reports neither."""
    if not bench.on_card:
        return {"allocated_bytes": None, "reserved_bytes": None}
    allocated = torch.cuda.max_memory_allocated(bench.device) - before
    return {"allocated_bytes": allocated, "reserved_bytes": torch.cuda.max_memory_reserved(bench.device)}

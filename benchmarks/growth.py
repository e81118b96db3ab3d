"""Time and memory at growing sizes: each point in a separate process, because the peak of a process never falls."""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from bare import clock_of
from subject import MODELS

from sagittal.core.models import read_entries
from sagittal.engine import Budget, Task
from sagittal.engine.cpu.memory import keep_freed_memory
from sagittal.engine.requests import Evaluate, Subject
from sagittal.explain import EXPLAINERS, Metrics, Question, explanation_steps
from sagittal.models.loaded import LoadedModel
from sagittal.models.loading import load
from sagittal.models.preprocessing import black

ROWS = 16
"""Evaluations of a job: one batch, so that memory shows what waits beside it."""

SEARCHED = 150
"""Evaluations of a search for sufficient sets."""

#: What grows, and its sizes.
AXES: Mapping[str, Sequence[int]] = {
    "jobs": (1, 4, 16, 64),
    "image": (224, 384, 512),
    "mask": (7, 28, 112, 224),
    "grid": (7, 10, 14),
}

NAMES: Mapping[str, str] = {
    "jobs": "jobs at once",
    "image": "side of the image, pixels",
    "mask": "side of the mask, cells",
    "grid": "side of the grid of patches (MSE search)",
}


def measure() -> Iterator[dict[str, Any]]:
    """Yields every point: axis, size, milliseconds per evaluation, and peak memory in MiB."""
    for axis, sizes in AXES.items():
        for size in sizes:
            command = [sys.executable, __file__, axis, str(size)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            yield {"axis": axis, "size": size, **json.loads(done.stdout.splitlines()[-1])}


def plot(points: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws time and memory over each axis."""
    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415 - after the choice of the backend

    figure, plots = pyplot.subplots(2, len(AXES), figsize=(12, 5), sharey="row", layout="constrained")
    for column, axis in enumerate(AXES):
        line = [point for point in points if point["axis"] == axis]
        for row, (key, label) in enumerate((("milliseconds", "ms per evaluation"), ("mebibytes", "peak memory, MiB"))):
            plots[row][column].plot([point["size"] for point in line], [point[key] for point in line], marker="o")
            if column == 0:
                plots[row][column].set_ylabel(label)
        plots[1][column].set_xlabel(NAMES[axis])
    for row in plots:
        # After all plots: a row shares its scale, which would otherwise be that of the first plot.
        row[0].set_ylim(bottom=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def point(axis: str, size: int) -> Mapping[str, float]:
    """Measures one point."""
    torch.set_num_threads(1)
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load(read_entries(MODELS)[0], device, batch_size=ROWS)
    clock = clock_of(device)
    _run(loaded, _tasks(loaded, "jobs", 1))  # warms up
    tasks = _tasks(loaded, axis, size)
    started = clock()
    _run(loaded, tasks)
    seconds = clock() - started
    return {
        "milliseconds": seconds * 1e3 / sum(task.usage.evaluations for task in tasks),
        "mebibytes": _peak_mebibytes(device),
    }


def _tasks(loaded: LoadedModel, axis: str, size: int) -> Sequence[Task]:
    if axis == "grid":
        image = torch.randn(3, 224, 224, generator=torch.Generator().manual_seed(0)).to(loaded.device)
        question = Question(image=image, black=black(loaded.entry.preprocessing), seed=0)
        search = EXPLAINERS["minimal-sufficient-explanations"].explainer(grid=size)
        return [Task(steps=explanation_steps(question, search, Metrics()), budget=Budget(evaluations=SEARCHED))]
    jobs, side, cells = (size if axis == name else usual for name, usual in (("jobs", 1), ("image", 224), ("mask", 28)))
    return [Task(steps=_steps(loaded.device, side, cells)) for _ in range(jobs)]


def _steps(device: torch.device, side: int, cells: int) -> Iterator[Any]:
    image = torch.randn(3, side, side).to(device)
    yield Evaluate(subject=Subject(image, -image, 0), masks=torch.rand(ROWS, cells, cells), gradient=True)


def _run(loaded: LoadedModel, tasks: Sequence[Task]) -> None:
    engine = loaded.engine()
    for task in tasks:
        engine.submit(task)
    while not all(task.ended for task in tasks):
        engine.step()


def _peak_mebibytes(device: torch.device) -> float:
    """Returns the peak memory so far: of the device, or of the process if the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("axis", choices=list(AXES))
    parser.add_argument("size", type=int)
    options = parser.parse_args()
    print(json.dumps(point(options.axis, options.size)))

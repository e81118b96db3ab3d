"""The subject of the benchmarks: EfficientNet-Lite0 and images, through the library and the engine."""

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import reports
import torch
from PIL import Image
from torch import Tensor

from sagittal.core.models import read_entries
from sagittal.engine import Budget, Task
from sagittal.engine.cpu.memory import keep_freed_memory
from sagittal.explain import Blur, Explainer, Metrics, Question, explanation_steps
from sagittal.explain.events import Curve, CurveKind, SaliencyMask
from sagittal.models.loaded import LoadedModel
from sagittal.models.loading import load
from sagittal.models.preprocessing import black, to_input

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "examples" / "images"
MODELS = ROOT / "clients" / "sagittal" / "cli" / "models.toml"

IMAGES_VARIABLE = "SAGITTAL_BENCHMARK_IMAGES"
"""Environment variable with a directory of images and a `labels.json`; by default the shipped images are used."""

table = reports.table


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image as the model's input."""

    name: str
    image: Tensor


@dataclass(slots=True, eq=False)
class Outcome:
    """One explanation, measured."""

    insertion: float
    deletion: float
    evaluations: int
    """Of the search alone, without metrics and the prediction."""
    gradient_evaluations: int
    metric_evaluations: int
    seconds: float
    processor_seconds: float
    saliency: Tensor | None
    events: list[Any] = field(default_factory=list)


def load_model() -> LoadedModel:
    """Returns EfficientNet-Lite0 as the demo serves it, in a process that is set up as a worker's."""
    keep_freed_memory()
    return load(read_entries(MODELS)[0], torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def pictures(loaded: LoadedModel, names: Sequence[str] = ()) -> Iterator[Picture]:
    """Yields the images of the benchmark directory if there is one, otherwise the shipped ones."""
    directory = os.environ.get(IMAGES_VARIABLE)
    if directory and not names:
        entries = json.loads((Path(directory) / "labels.json").read_text())
        listed = [Path(directory) / entry["file"] for entry in entries]
    else:
        listed = [path for path in sorted(SHIPPED.iterdir()) if path.suffix in (".png", ".jpg")]
    for path in listed:
        if not names or path.stem in names:
            pixels = np.asarray(Image.open(path).convert("RGB"))
            yield Picture(path.stem, to_input(pixels, loaded.entry.preprocessing).to(loaded.device))


def run(loaded: LoadedModel, picture: Picture, explainer: Explainer, *, seed: int = 0, **options: Any) -> Outcome:
    """Explains an image's top class and measures the explanation; `options` are `budget`, `metrics` and `baseline`."""
    baseline = options.get("baseline", Blur())
    question = Question(image=picture.image, baseline=baseline, black=black(loaded.entry.preprocessing), seed=seed)
    events: list[Any] = []
    ends: list[BaseException | None] = []
    task = Task(
        steps=explanation_steps(question, explainer, options.get("metrics", Metrics())),
        on_event=events.append,
        on_end=ends.append,
        budget=options.get("budget", Budget()),
    )
    started, used = time.monotonic(), time.process_time()
    loaded.engine().run(task)
    seconds, used = time.monotonic() - started, time.process_time() - used
    if ends[0] is not None:
        raise ends[0]
    areas = {event.kind: event.auc for event in events if isinstance(event, Curve) and event.mask_index == 0}
    final = next((event.saliency for event in events if isinstance(event, SaliencyMask) and event.final), None)
    return Outcome(
        insertion=areas.get(CurveKind.INSERTION, float("nan")),
        deletion=areas.get(CurveKind.DELETION, float("nan")),
        evaluations=task.usage.evaluations - task.usage.metric_evaluations,
        gradient_evaluations=task.usage.gradient_evaluations,
        metric_evaluations=task.usage.metric_evaluations,
        seconds=seconds,
        processor_seconds=used,
        saliency=final,
        events=events,
    )


def machine() -> str:
    """Returns a description of the machine."""
    threads = torch.get_num_threads()
    counted = f"{threads} thread{'s' if threads > 1 else ''}"
    return f"{platform.machine()}, {counted}, Python {platform.python_version()}, torch {torch.__version__}"


def arguments(description: str) -> argparse.Namespace:
    """Parses `--write FILE`, the destination of the report; by default standard output."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--write", type=Path, help="file to write the report to")
    return parser.parse_args()


def report(text: str, options: argparse.Namespace, section: str = "") -> None:
    """Writes a report to its destination: the whole file, or its section of that name."""
    print(text)
    if options.write and section:
        reports.write_section(options.write, section, text)
    elif options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(text)

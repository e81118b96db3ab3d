"""Models, images and sizes of the measurements on a card; the sizes are small on a CPU."""

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from quality.subjects import BESIDE
from subject import MODELS, SHIPPED
from torch import Tensor, nn

from sagittal.core.models import DeviceWishes, ModelEntry, read_entries
from sagittal.engine import Engine, Task
from sagittal.models.loaded import LoadedModel
from sagittal.models.loading import load
from sagittal.models.preprocessing import to_input
from sagittal.models.sources import EVERYTHING, load_source

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "EfficientNet-Lite0": {"kind": "efficientnet-lite", "variant": 0},
    "resnet50": {"kind": "torchvision", "model": "resnet50"},
    "vit_b_16": {"kind": "torchvision", "model": "vit_b_16"},
}
"""Models whose bare throughput is measured, as sources."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured."""

    batches: Sequence[int] = (64, 256)
    """Batch sizes of the bare model, of which the fastest counts."""
    batch_size: int = 0
    """Batch size of loaded models; 0 measures the best."""
    side: int = 224
    jobs: int = 32
    """Explanations that run together."""
    images: int = 40
    """Images on which precision is compared."""
    evaluations: int | None = None
    """Budget of each explanation; None for that of the method."""
    seconds: float = 0.5
    """Time of each measurement of throughput."""
    service_seconds: float = 20.0
    sides: Sequence[int] = (224, 384, 512)
    memory_batches: Sequence[int] = (16, 64, 256)
    memory_jobs: Sequence[int] = (1, 8, 32)
    architectures: Sequence[str] = tuple(ARCHITECTURES)
    compile_backend: str = "inductor"


SMALL = Sizes(
    batches=(2,),
    batch_size=4,
    side=64,
    jobs=2,
    images=2,
    evaluations=40,
    seconds=0.01,
    service_seconds=2.0,
    sides=(64, 96),
    memory_batches=(2, 4),
    memory_jobs=(1, 2),
    architectures=("EfficientNet-Lite0",),
    compile_backend="eager",
)
"""Sizes for a CPU, with which every measurement runs through in a minute or two."""


@dataclass(frozen=True, slots=True)
class Bench:
    """A device and the sizes."""

    device: torch.device
    sizes: Sizes
    cache: Path | None = None
    """Directory that keeps the batch sizes that loads found, so that only the first load measures them."""

    @property
    def on_card(self) -> bool:
        """Whether the device is a card."""
        return self.device.type == "cuda"

    def module(self, name: str) -> nn.Module:
        """Returns an architecture on the device, with trained weights only for EfficientNet-Lite0."""
        return load_source(ARCHITECTURES[name]).module.eval().requires_grad_(False).to(self.device)

    def loaded(self, *, full_precision: bool = False, batch_size: int = 0) -> LoadedModel:
        """Returns EfficientNet-Lite0 as a worker loads it."""
        entry, access = self.entry(full_precision=full_precision), EVERYTHING.model_copy(update={"cache": self.cache})
        return load(entry, self.device, batch_size=batch_size or self.sizes.batch_size, access=access)

    def entry(self, *, full_precision: bool = False) -> ModelEntry:
        """Returns the registration of EfficientNet-Lite0."""
        entry: ModelEntry = read_entries(MODELS)[0]
        return entry.model_copy(update={"device": DeviceWishes(full_precision=full_precision)})

    def settle(self) -> None:
        """Waits for the device."""
        if self.on_card:
            torch.cuda.synchronize(self.device)


def card_name(device: torch.device) -> str:
    """Returns the name of a card with its driver, or that of the processor's architecture."""
    if device.type != "cuda":
        return f"no card ({device.type})"
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, check=True, capture_output=True, text=True).stdout
        return told.splitlines()[device.index or 0].strip()
    except (OSError, subprocess.CalledProcessError):
        return torch.cuda.get_device_name(device)


def images(loaded: LoadedModel, count: int) -> list[Tensor]:
    """Returns images as the model's input, on the host: those beside the checkout, then crops of the shipped ones."""
    paths = sorted(BESIDE.glob("*.JPEG")) if BESIDE.is_dir() else []
    shipped = sorted(path for path in SHIPPED.iterdir() if path.suffix in (".png", ".jpg"))
    found = [_pixels(path) for path in (*paths[:count], *shipped)[:count]]
    generator = np.random.default_rng(0)
    while len(found) < count:
        found.append(_crop(found[len(found) % len(shipped)], generator))
    return [to_input(pixels, loaded.entry.preprocessing) for pixels in found]


def _pixels(path: Any) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def _crop(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Returns a random half of an image."""
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    top, left = generator.integers(0, height), generator.integers(0, width)
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])


def run_together(engine: Engine, tasks: Sequence[Task], settle: Callable[[], None]) -> float:
    """Runs tasks together to their ends; returns the time in seconds. Raises the first error of a task."""
    errors: list[BaseException] = []
    for task in tasks:
        task.on_end = lambda error: errors.append(error) if error is not None else None
    settle()
    started = time.perf_counter()
    for task in tasks:
        engine.submit(task)
    while not all(task.ended for task in tasks):
        engine.step()
    settle()
    seconds = time.perf_counter() - started
    if errors:
        raise errors[0]
    return seconds

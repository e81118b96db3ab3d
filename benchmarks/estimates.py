"""How well costs are estimated before they arise.

`python benchmarks/estimates.py [--images 100] [--write docs/performance.md]`: a batch of a few images teaches the
service what RISE costs; then 100 images are estimated, and explained.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
from reports import table, write_section
from service_stack import running_stack
from subject import MODELS, SHIPPED

from sagittal.client import RISE, BatchItem, Client, Estimate, Metrics

MODEL = "efficientnet-lite0"

#: Images from which the cost is learned, and masks of each explanation.
LEARNED, MASKS = 24, 8

#: Seconds after which the service has read new costs.
REFRESHED = 6.0

#: Largest relative error.
MOST_ERROR = 0.3


def images(number: int, seed: int) -> Iterator[BatchItem]:
    """Yields random crops of the shipped images."""
    files = sorted(path for path in SHIPPED.iterdir() if path.suffix in (".png", ".jpg"))
    random = np.random.default_rng(seed)
    for each in range(number):
        picture = PIL.Image.open(files[each % len(files)]).convert("RGB")
        left, top = (int(random.integers(0, side // 8 + 1)) for side in picture.size)
        crop = picture.crop((left, top, left + picture.width * 3 // 4, top + picture.height * 3 // 4))
        yield BatchItem(key=str(each), image=crop.resize((224, 224)))


def run(client: Client, name: str, number: int, seed: int) -> tuple[int, float]:
    """Explains images as a batch; returns the evaluations and the seconds."""
    client.batches.create(name, model=MODEL, method=method(), metrics=Metrics(curves=False))
    began = time.monotonic()
    results = list(client.batches.run(name, images(number, seed)))
    took = time.monotonic() - began
    assert [each.state for each in results] == ["completed"] * number
    return client.batches.get(name).spent.evaluations, took


def method() -> RISE:
    """Returns the method whose cost is estimated."""
    return RISE(masks=MASKS)


def report(estimate: Estimate, spent: int, took: float, number: int, load: float) -> tuple[str, bool]:
    """Returns what was measured, and whether the errors are small enough."""
    wall, ended = estimate.wall_seconds or 0.0, os.getloadavg()[0]
    errors = {
        "model evaluations": (f"{estimate.evaluations:,}", f"{spent:,}", estimate.evaluations / spent - 1),
        "time of the worker": (f"{estimate.worker_seconds:.1f} s", f"{took:.1f} s", estimate.worker_seconds / took - 1),
        "time until the end": (f"{wall:.1f} s", f"{took:.1f} s", wall / took - 1),
    }
    lines = [
        (name, before, after, f"{error:+.0%}", "yes" if abs(error) <= MOST_ERROR else "**no**")
        for name, (before, after, error) in errors.items()
    ]
    text = (
        "### Estimates\n\n"
        f"Written by `make bench-bulk`. A batch of {LEARNED} images teaches the service what RISE with {MASKS} masks\n"
        f"costs on EfficientNet-Lite0 on one worker with one thread. Then {number} other images are\n"
        f"estimated, and explained as a batch. The load was {load:.1f} at the start and {ended:.1f} at the\n"
        "end; times change with it.\n\n"
        + table(("", "estimated", "measured", "error", f"within {MOST_ERROR:.0%}"), lines)
    )
    return text, all(abs(error) <= MOST_ERROR for *_, error in errors.values())


def main() -> int:
    """Measures, prints, and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    environment = {"SAGITTAL_MODELS_FILE": str(MODELS), "SAGITTAL_THREADS": "1", "SAGITTAL_BATCH_SIZE": "16"}
    load = os.getloadavg()[0]
    worker = ["-m", "sagittal.worker.main"]
    with running_stack(worker, model=MODEL, environment=environment) as stack, Client(stack.address) as client:
        run(client, "learned", LEARNED, seed=0)
        time.sleep(REFRESHED)
        estimate = client.estimate(images=given.images, model=MODEL, method=method(), metrics=Metrics(curves=False))
        spent, took = run(client, "estimated", given.images, seed=1)
    text, reached = report(estimate, spent, took, given.images, load)
    print(text)
    if given.write:
        write_section(given.write, "estimates", text)
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())

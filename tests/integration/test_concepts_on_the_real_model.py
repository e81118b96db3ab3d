"""Five x-features are faithful to a class score of the real model, on images that were held out of the fit."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sagittal.core.models import read_entries
from sagittal.engine import Task
from sagittal.engine.requests import Subject
from sagittal.explain.concepts import FitSettings, GivenImages
from sagittal.explain.concepts.features import Extracted, NoCache, extract
from sagittal.explain.concepts.quality import measure
from sagittal.explain.concepts.training import Examples, Fit, settle
from sagittal.models.loaded import LoadedModel
from sagittal.models.loading import load
from sagittal.models.preprocessing import to_input

ROOT = Path(__file__).resolve().parents[2]

IMAGES = os.environ.get("SAGITTAL_BENCHMARK_IMAGES", "")
"""Directory of pictures; without one the shipped ones serve, cut into pieces."""

PIECES = 10
"""Pieces of each shipped picture."""

CAT = 285

SETTINGS = FitSettings(concepts=5, epochs=40)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    torch.set_num_threads(1)
    return load(
        read_entries(ROOT / "clients" / "sagittal" / "cli" / "models.toml")[0], torch.device("cpu"), batch_size=8
    )


@pytest.fixture(scope="module")
def images(loaded: LoadedModel) -> Tensor:
    """All pictures as the model takes them."""
    paths = [
        path
        for path in sorted(Path(IMAGES or ROOT / "examples" / "images").iterdir())
        if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    ]
    whole = [to_input(np.asarray(Image.open(path).convert("RGB")), loaded.entry.preprocessing) for path in paths]
    return torch.stack(whole if IMAGES else [piece for one in whole for piece in pieces(one)])


def pieces(image: Tensor) -> list[Tensor]:
    """Returns squares of half the side and more that lie all over an image, enlarged to its size."""
    size = image.shape[-1]
    found = []
    for number in range(PIECES):
        side = size // 2 + number * size // (4 * PIECES)
        left, top = (number % 4) * (size - side) // 3, (number // 4) * (size - side) // 2
        piece = image[None, :, top : top + side, left : left + side]
        found.append(F.interpolate(piece, size=(size, size), mode="bilinear", antialias=True)[0])
    return found


def test_a_class_score_is_predicted_by_five_x_features(loaded: LoadedModel, images: Tensor):
    views, layer, subject = 16 if IMAGES else 3, "_dropout", Subject(images[0], images[0], None)
    results: list[Extracted] = []
    ends: list[BaseException | None] = []

    def steps():
        source = GivenImages(images)
        read = extract(source, layer, views=views, seed=0, rows=8, cache=NoCache(), subject=subject, until=1.0)
        results.append((yield from read))

    loaded.engine().run(Task(steps=steps(), on_end=ends.append))
    assert ends == [None]
    seen = Examples(results[0].features, results[0].outputs[..., [CAT]])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held_out, fitted = order[: len(images) // 5], order[len(images) // 5 :]
    fit = Fit(Examples(*(each[fitted].flatten(0, 1) for each in (seen.features, seen.outputs))), SETTINGS, 0, {})
    fit.run(1e9)
    settle(fit.srae, seen.features[fitted].flatten(0, 1))
    apart = Examples(seen.features[held_out, 0], seen.outputs[held_out, 0])
    assert measure(fit.srae, apart).faithfulness_correlation >= 0.95

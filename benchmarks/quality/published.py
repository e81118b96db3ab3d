"""The measure of the published code for a heatmap, for comparison with the figures that it prints.

It differs from ours in three ways: cells of equal saliency are in the order of the sort, not averaged over all orders,
which matters for masks that are mostly ones; the area is a sum of the scores after each step; the blur is always the
first. The line search depends on its noise, so that the figures of the reimplementation are those of several seeds.

It is not known how the images of the published figures were resized to 224 pixels. Resampling alone changes the
figures, so that the reimplementation is also run on images with other resampling.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from quality.heatmap import CELLS
from reference.descent import ReferenceDescent, Spared
from subject import SHIPPED, Picture, run
from torch import Tensor

from sagittal.core.models import Preprocessing
from sagittal.engine.evaluator import PROBABILITIES
from sagittal.engine.masking import compose, gaussian_blur, upsample
from sagittal.engine.requests import Upsampling
from sagittal.explain import Metrics
from sagittal.models.loading import LoadedModel
from sagittal.models.preprocessing import normalised, to_input

KNOWN = {
    ("igos", "chelsea"): (0.602, 0.302, 2205),
    ("igos", "coffee"): (0.621, 0.059, 2445),
    ("igos++", "chelsea"): (0.487, 0.321, 9000),
    ("igos++", "coffee"): (0.630, 0.058, 8100),
}
"""Insertion, deletion and evaluations of one run of the published code with its line search, by method and image, on
the same model and by the same metric: blurred baseline 51/50, order of 28x28 cells, 50 steps."""

SEEDS = tuple(range(5))

SIGMA = 50.0
"""Of the blur, in pixels."""

STEPS = 50
"""At least so many steps make a curve."""

BATCH = 16


def _bicubic(picture: Image.Image, preprocessing: Preprocessing) -> Tensor:
    return to_input(np.asarray(picture), preprocessing.model_copy(update={"interpolation": "bicubic"}))


def _without_antialiasing(picture: Image.Image, preprocessing: Preprocessing) -> Tensor:
    values = torch.from_numpy(np.array(picture)).permute(2, 0, 1).to(torch.float32)
    size = (preprocessing.input_size, preprocessing.input_size)
    return normalised(F.interpolate(values.unsqueeze(0), size=size, mode="bilinear")[0] / 255, preprocessing)


RESAMPLINGS: Mapping[str, Callable[[Image.Image, Preprocessing], Tensor]] = {
    "bicubic": _bicubic,
    "without antialiasing": _without_antialiasing,
}
"""Resampling of an image to the model's input size, other than a worker's."""


def resampled(loaded: LoadedModel, name: str, how: str) -> Picture:
    """Returns a shipped image with other resampling."""
    with Image.open(SHIPPED / f"{name}.png") as picture:
        return Picture(name, RESAMPLINGS[how](picture.convert("RGB"), loaded.entry.preprocessing).to(loaded.device))


def measured(
    loaded: LoadedModel, picture: Picture, method: str, seed: int, saliency: Tensor | None = None
) -> Mapping[str, Any]:
    """Returns insertion, deletion and evaluations of the reimplementation by the published measure.

    Args:
        loaded: The model.
        picture: The explained image.
        method: `igos` or `igos++`.
        seed: Seed of the noise.
        saliency: Result of the reimplementation with that seed, if it is known; otherwise it is computed.
    """
    evaluations = 0
    if saliency is None:
        spared = Spared()
        explainer = ReferenceDescent(form=method, spared=spared)
        found = run(loaded, picture, explainer, seed=seed, metrics=Metrics(curves=False))
        assert found.saliency is not None
        saliency, evaluations = found.saliency, found.evaluations + spared.evaluations
    insertion, deletion = areas(loaded, picture, saliency)
    return {"insertion": insertion, "deletion": deletion, "evaluations": evaluations}


def areas(loaded: LoadedModel, picture: Picture, saliency: Tensor) -> tuple[float, float]:
    """Returns the areas under both curves of a heatmap (28, 28), summed as in the published code."""
    cells = saliency.numel()
    step = max(1, cells // STEPS)
    order = (1 - saliency).flatten().argsort()
    kept = torch.ones(-(-cells // step), cells)
    for row, mask in enumerate(kept):
        mask[order[: (row + 1) * step]] = 0
    masks = upsample(
        kept.view(-1, CELLS, CELLS), (picture.image.shape[-2], picture.image.shape[-1]), Upsampling.ALIGNED
    )
    blurred = gaussian_blur(picture.image, SIGMA)
    inserted = _scores(loaded, picture, [compose(blurred, picture.image, mask) for mask in masks.split(BATCH)])
    deleted = _scores(loaded, picture, [compose(picture.image, blurred, mask) for mask in masks.split(BATCH)])
    # The last step is shorter than the others, and its score is taken as one.
    last = cells - (len(kept) - 1) * step
    return tuple((float(scores[:-1].sum()) * step + last) / cells for scores in (inserted, deleted))  # type: ignore[return-value]


@torch.inference_mode()
def _scores(loaded: LoadedModel, picture: Picture, batches: list[Tensor]) -> Tensor:
    """Returns the scores of the top class on the unmasked image."""
    said = PROBABILITIES[loaded.evaluator.output]
    target = int(loaded.evaluator.module(picture.image.unsqueeze(0)).argmax())
    return torch.cat([said(loaded.evaluator.module(batch))[:, target] for batch in batches]).cpu()

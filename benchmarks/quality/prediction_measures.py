"""Occlusions that no method scored, their scores, and what explanations predict for them."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality import cache
from skimage.segmentation import felzenszwalb
from subject import Picture, run
from torch import Tensor

from sagittal.engine.requests import Upsampling
from sagittal.explain import (
    RISE,
    Black,
    Blur,
    Explainer,
    GradCAM,
    IGOSPlusPlus,
    Metrics,
    OcclusionSurrogate,
    OrderedRegionSearch,
    Problem,
    StructuredAttentionGraph,
)
from sagittal.explain.events import ClassScore, GraphNode, RegionScores, SaliencyMask, SufficientSet, Surrogate
from sagittal.explain.measures.predictability import read
from sagittal.explain.occlusions import CELLS, KEPT, occlusions
from sagittal.explain.steps import Steps
from sagittal.models.loaded import LoadedModel

METHODS: Mapping[str, Explainer] = {
    "occlusion surrogate": OcclusionSurrogate(),
    "attention graph": StructuredAttentionGraph(occlusions=100),
    "Grad-CAM": GradCAM(),
    "iGOS++": IGOSPlusPlus(),
    "RISE, 1,000 masks": RISE(masks=1000),
    "ordered region search": OrderedRegionSearch(),
}

KINDS = ("rectangles", "patches", "blobs", "objects")
EACH = 50
"""Occlusions of each kind."""

BASELINES = {"blur": Blur(), "black": Black()}

MODULES = (
    "quality.prediction_measures",
    "sagittal.explain.surrogate",
    "sagittal.explain.occlusions",
    "sagittal.explain.attribution.occlusion_surrogate",
    "sagittal.imaging.surrogates",
)


def unseen_occlusions(picture: Picture) -> Tensor:
    """Returns masks (EACH * kinds, CELLS, CELLS), the kinds in turn; the objects are segments that no method uses."""
    generator = torch.Generator().manual_seed(10_000)
    drawn = iter(occlusions(generator, 3 * EACH))
    pixels = picture.image.cpu().permute(1, 2, 0).double().numpy()
    segments = felzenszwalb((pixels - pixels.min()) / np.ptp(pixels), scale=200, sigma=0.8, min_size=300)
    step = segments.shape[0] // CELLS
    partition = torch.from_numpy(np.unique(segments[step // 2 :: step, step // 2 :: step], return_inverse=True)[1])
    objects = (_objects(partition.view(CELLS, CELLS), generator) for _ in range(EACH))
    return torch.stack([mask for each in objects for mask in (*itertools.islice(drawn, 3), each)])


def _objects(partition: Tensor, generator: torch.Generator) -> Tensor:
    """Returns a mask that shows segments in random order until a random share of the image is shown."""
    sizes = torch.bincount(partition.flatten()) / partition.numel()
    order = torch.randperm(len(sizes), generator=generator)
    low, high = KEPT
    wanted = low + (high - low) * float(torch.rand((), generator=generator))
    shown = torch.zeros(len(sizes))
    shown[order[: max(1, int((sizes[order].cumsum(0) <= wanted).sum()))]] = 1.0
    return shown[partition]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores(Explainer):
    """Scores masks."""

    masks: Tensor

    def explain(self, problem: Problem) -> Steps[None]:
        """Yields the scores of the masks."""
        scores = yield from problem.evaluate(self.masks, upsampling=Upsampling.BOX, exact=True)
        full = ClassScore(problem.target, problem.unmasked_score)
        yield RegionScores(full=full, scores=tuple(scores.target.tolist()), top=())


def scored(loaded: LoadedModel, picture: Picture) -> dict[str, Any]:
    """Returns the scores of an image's occlusions on every baseline, as shares of the unmasked score."""
    explainer = Scores(masks=unseen_occlusions(picture))
    found = {}
    for name, baseline in BASELINES.items():
        events = run(loaded, picture, explainer, baseline=baseline, metrics=Metrics(curves=False)).events
        scores = next(each for each in events if isinstance(each, RegionScores))
        found[name] = np.array(scores.scores) / scores.full.score
    return found


def predicted(loaded: LoadedModel, picture: Picture, explainer: Explainer) -> dict[str, Any]:
    """Explains an image, and returns what each part of the explanation predicts for the occlusions."""
    found = run(loaded, picture, explainer, metrics=Metrics(curves=False))
    masks = unseen_occlusions(picture)
    numbers: dict[str, Any] = {"evaluations": found.evaluations, "area": masks.mean((1, 2)).numpy()}
    for kind in (Surrogate, SaliencyMask, SufficientSet, GraphNode):
        parts = [each for each in found.events if isinstance(each, kind) and getattr(each, "final", True)]
        if parts:
            numbers[kind.__name__] = read(parts, masks)
    return numbers


def place(name: str, digest: str) -> Path:
    """Returns the folder of a method's records, or of the scores."""
    settings = {"method": repr(METHODS.get(name)), "model": digest}
    own = (type(METHODS[name]).__module__,) if name in METHODS else ()
    return cache.folder("predictions-" + name.replace(" ", "-").replace(",", ""), settings, MODULES + own)

"""The measures that no search maximised: other baselines, a shifted grid, and predictability."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from quality import cache, heatmap
from reference.region_search import GreedyRegions
from subject import Outcome, Picture, run
from torch import Tensor

from sagittal.explain import (
    Black,
    EvaluateMask,
    Explainer,
    GradCAM,
    IGOSPlusPlus,
    MeanColour,
    Metrics,
    OrderedRegionSearch,
    Problem,
)
from sagittal.explain.events import CurveKind, Measurement
from sagittal.explain.measures.curves import curve, insertion_masks
from sagittal.explain.steps import Steps
from sagittal.models.loaded import LoadedModel

OURS, DEFAULT, GREEDY = "ordered region search", "iGOS++", "greedy region search"

METHODS: Mapping[str, Explainer] = {
    OURS: OrderedRegionSearch(),
    DEFAULT: IGOSPlusPlus(),
    "Grad-CAM": GradCAM(),
    GREEDY: GreedyRegions(),
    "greedy region search, windows of 8": GreedyRegions(window=8),
}

SEEDED = (OURS, DEFAULT)
"""Methods that depend on the seed, measured with another one, too."""

COSTLY = tuple(name for name in METHODS if name.startswith(GREEDY))
"""Methods measured on few images."""

OCCLUSIONS = 200
"""Occlusions of predictability."""

SHIFTED_STEP = 5
"""Cells in each step of the curves on the shifted grid."""

MODULES = (
    "quality.unseen_measures",
    "reference.region_search",
    *(f"sagittal.explain.masks.{name}" for name in ("region_search", "igos", "optimisation", "descent")),
    "sagittal.explain.superpixels",
    "sagittal.explain.measures.predictability",
)

MEASURES: Mapping[str, str] = {
    "blur": "blurred baseline, 28x28 (what the searches maximise)",
    "black": "black baseline, 28x28",
    "mean": "mean colour, 28x28",
    "shifted": "blurred baseline, shifted grid of 14x14",
}


class ShiftedCurves(EvaluateMask):
    """Curves of a heatmap of 28x28 cells on a grid of twice the cells' size that is shifted by half of its cell."""

    hides: ClassVar[bool] = True

    def explain(self, problem: Problem) -> Steps[None]:
        """Yields both curves."""
        assert self.heatmap is not None
        padded = F.pad(self.heatmap[None, None], (1, 1, 1, 1), mode="replicate")
        coarse = F.avg_pool2d(padded, 2)[0, 0]
        inserted, fractions = insertion_masks(coarse, SHIFTED_STEP)
        fine = inserted.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, 1:-1, 1:-1]
        scores = yield from problem.evaluate(torch.cat([fine, 1 - fine]), exact=True, metric=True)
        for kind, part in zip((CurveKind.INSERTION, CurveKind.DELETION), scores.target.chunk(2), strict=True):
            yield curve(kind, fractions, part.tolist(), problem.unmasked_score)


def measured(loaded: LoadedModel, picture: Picture, explainer: Explainer, seed: int) -> dict[str, Any]:
    """Explains an image, and measures its heatmap in every way."""
    found = run(loaded, picture, explainer, seed=seed, metrics=Metrics(curves=False))
    assert found.saliency is not None
    saliency = heatmap.at_cells(found.saliency.cpu())
    ways: Mapping[str, Callable[[], Outcome]] = {
        "blur": partial(run, loaded, picture, EvaluateMask(heatmap=saliency)),
        "black": partial(run, loaded, picture, EvaluateMask(heatmap=saliency), baseline=Black()),
        "mean": partial(run, loaded, picture, EvaluateMask(heatmap=saliency), baseline=MeanColour()),
        "shifted": partial(run, loaded, picture, ShiftedCurves(heatmap=saliency), metrics=Metrics(curves=False)),
    }
    outcomes = {name: measure() for name, measure in ways.items()}
    areas = {f"{name}_insertion": each.insertion for name, each in outcomes.items()}
    areas |= {f"{name}_deletion": each.deletion for name, each in outcomes.items()}
    figures = _predictability(loaded, picture, saliency)
    return {**areas, **figures, "evaluations": found.evaluations, "saliency": saliency.numpy()}


def _predictability(loaded: LoadedModel, picture: Picture, saliency: Tensor) -> dict[str, float]:
    metrics = Metrics(curves=False, predictability=OCCLUSIONS)
    events = run(loaded, picture, EvaluateMask(heatmap=saliency), metrics=metrics).events
    figures = {each.name: float(each.value) for each in events if isinstance(each, Measurement)}
    wanted = ("predictability_auroc", "predictability_balanced_accuracy")
    return {name: figures.get(name, math.nan) for name in wanted}


def place(name: str, seed: int, digest: str) -> Path:
    """Returns the folder of a method's records."""
    settings = {"method": repr(METHODS[name]), "seed": seed, "model": digest}
    return cache.folder("unseen-" + name.replace(" ", "-").replace(",", ""), settings, MODULES)

"""Heatmaps, all measured equally: insertion and deletion at 28x28 cells, evaluations and seconds of the search."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from quality import cache
from reference.descent import ReferenceDescent, Spared
from subject import Picture, run
from torch import Tensor

from sagittal.engine.masking import upsample
from sagittal.explain import EXPLAINERS, IGOS, EvaluateMask, Explainer, IGOSPlusPlus, Metrics
from sagittal.models.loaded import LoadedModel

CELLS = 28
"""Side of the measured heatmaps, in cells: no method benefits from the size of its cells."""

FINE = "igos++-224"

METHODS = (
    "igos++",
    "igos+",
    "igos",
    "meaningful-perturbation",
    "rise",
    "grad-cam",
    "integrated-gradients",
    "excitation-bp",
    "occlusion",
)
"""Methods with their defaults."""

SCHEDULES: Mapping[int, Mapping[str, int]] = {
    48: {"iterations": 12, "points": 2, "levels": 0},
    96: {"iterations": 24, "points": 2, "levels": 0},
    174: {"iterations": 13, "points": 1, "levels": 4},
    240: {"iterations": 24, "points": 1, "levels": 4},
    440: {"iterations": 43, "points": 1, "levels": 6},
    648: {"iterations": 92, "points": 1, "levels": 4},
    1008: {"iterations": 152, "points": 1, "levels": 4},
}
"""Settings of iGOS++ for a number of evaluations: iterations times (two terms times points, and level sets). If there
are level sets, 96 more for the choice among its masks and their scales."""

DEFAULT = 440
"""Evaluations of the default: its point of the curve is measured with the methods."""

SHORT = 174
"""Evaluations that are at most 1/50 of those of the authors' protocol."""

_DESCENT = tuple(
    f"sagittal.explain.masks.{module}" for module in ("optimisation", "descent", "level_sets", "regularisers", "igos")
)


def explainers() -> Mapping[str, Explainer]:
    """Returns the measured methods, by name."""
    curve = {f"igos++-{count}": IGOSPlusPlus(**settings) for count, settings in SCHEDULES.items() if count != DEFAULT}
    return {
        **{name: EXPLAINERS[name].explainer() for name in METHODS},
        "igos++-reference": ReferenceDescent(form="igos++"),
        "igos-reference": ReferenceDescent(form="igos"),
        FINE: IGOSPlusPlus(mask_size=224),
        **curve,
    }


def place(name: str, explainer: Explainer, digest: str) -> Path:
    """Returns the folder of a method's records."""
    settings = {
        "explainer": type(explainer).__name__,
        "parameters": {field.name: getattr(explainer, field.name) for field in dataclasses.fields(explainer)},
        "model": digest,
        "seed": 0,
    }
    if isinstance(explainer, ReferenceDescent):
        modules: tuple[str, ...] = ("reference.descent",)
    elif isinstance(explainer, IGOS | IGOSPlusPlus) or name in ("igos+", "meaningful-perturbation"):
        modules = _DESCENT
    else:
        modules = (type(explainer).__module__,)
    return cache.folder(name, settings, modules)


def measured(loaded: LoadedModel, picture: Picture, explainer: Explainer) -> dict[str, Any]:
    """Explains and measures; seconds are those of one processor core, independent of other load."""
    spared = Spared()
    if isinstance(explainer, ReferenceDescent):
        explainer = dataclasses.replace(explainer, spared=spared)
    started = time.process_time()
    found = run(loaded, picture, explainer, metrics=Metrics(curves=False))
    seconds = time.process_time() - started
    assert found.saliency is not None
    saliency = found.saliency.cpu()
    scored = run(loaded, picture, EvaluateMask(heatmap=at_cells(saliency)))
    own = scored if saliency.shape[-1] <= CELLS else run(loaded, picture, EvaluateMask(heatmap=saliency))
    return {
        "saliency": saliency.numpy(),
        "insertion": scored.insertion,
        "deletion": scored.deletion,
        "own_insertion": own.insertion,
        "own_deletion": own.deletion,
        "evaluations": found.evaluations + spared.evaluations,
        "spared": spared.evaluations,
        "seconds": seconds,
        "variation": variation(saliency),
    }


def at_cells(saliency: Tensor) -> Tensor:
    """Returns a heatmap at the common size: finer ones are averaged over cells, coarser ones upsampled."""
    if saliency.shape[-1] > CELLS:
        return F.interpolate(saliency[None, None], size=(CELLS, CELLS), mode="area")[0, 0]
    return upsample(saliency.unsqueeze(0), (CELLS, CELLS))[0, 0]


def variation(saliency: Tensor) -> float:
    """Returns the total variation of a mask in pixels: mean absolute difference of neighbours at 224x224."""
    pixels = upsample(saliency.unsqueeze(0), (224, 224))[0, 0]
    return float((pixels[1:] - pixels[:-1]).abs().mean() + (pixels[:, 1:] - pixels[:, :-1]).abs().mean())

"""Minimal sufficient explanations: our search, the reference implementation, and the order of patches by a heatmap."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from quality import cache
from reference.descent import Spared
from reference.search import ReferenceSearch
from subject import Picture
from torch import Tensor

from sagittal.engine import Task
from sagittal.engine.requests import Upsampling
from sagittal.explain import Black, MinimalSufficientExplanations, Question, explanation_steps
from sagittal.explain.events import RegionScores, SufficientSet
from sagittal.explain.sets.regions import ask_regions
from sagittal.explain.sets.sufficient_sets import PatchSearch
from sagittal.explain.steps import Steps
from sagittal.imaging.patch_sets import bits_of, diverse_family
from sagittal.models.loaded import LoadedModel
from sagittal.models.preprocessing import black

GRID = 7
AREA = 0.2
"""Share of the image within which the paper searches a sufficient set."""

SEARCHES: Mapping[str, PatchSearch] = {
    "mse": MinimalSufficientExplanations(patch_shape="tent"),
    "mse-reference": ReferenceSearch(patch_shape="tent"),
    "mse-overlap-2": MinimalSufficientExplanations(patch_shape="tent", max_overlap=2),
}

_MODULES = (
    *(f"sagittal.explain.sets.{name}" for name in ("sufficient_sets", "search", "certificates", "scoring", "patches")),
    "sagittal.imaging.patch_sets",
)


def place(name: str, digest: str) -> Path:
    """Returns the folder of a search's records."""
    search = SEARCHES[name]
    reference = isinstance(search, ReferenceSearch)
    modules = ("reference.search",) if reference else _MODULES
    settings = {"overlap": search.max_overlap, "shape": search.patch_shape, "baseline": "black", "model": digest}
    return cache.folder(name, settings, modules)


def searched(loaded: LoadedModel, picture: Picture, name: str) -> dict[str, Any]:
    """Searches; every evaluation counts, including those of certificates and of repeated sets."""
    question = Question(image=picture.image, baseline=Black(), black=black(loaded.entry.preprocessing))
    started = time.process_time()
    spared = Spared()
    search = SEARCHES[name]
    if isinstance(search, ReferenceSearch):
        search = dataclasses.replace(search, spared=spared)
    events, evaluations = _run(loaded, explanation_steps(question, search))
    seconds = time.process_time() - started
    sets = {event.patches: event for event in events if isinstance(event, SufficientSet)}.values()
    return {
        "sizes": np.array([len(each.patches) for each in sets], np.int64),
        "levels": np.array([each.certificate.level.value for each in sets], np.str_),
        "bits": np.array([str(bits_of(each.patches)) for each in sets], np.str_),
        "scores": np.array([each.score for each in sets]),
        "diverse": np.array([each.diverse for each in sets], np.bool_),
        "evaluations": evaluations + spared.evaluations,
        "spared": spared.evaluations,
        "seconds": seconds,
    }


def prefix(loaded: LoadedModel, picture: Picture, saliency: Tensor, share: float = 0.9) -> dict[str, Any]:
    """Returns the size of the smallest sufficient prefix of the patches in a heatmap's order."""
    coarse = F.interpolate(saliency[None, None].float(), size=(GRID, GRID), mode="area")
    order = coarse.flatten().argsort(descending=True).tolist()
    question = Question(image=picture.image, baseline=Black(), black=black(loaded.entry.preprocessing))
    sets = [order[:count] for count in range(1, GRID**2 + 1)]
    events, _ = _run(loaded, ask_regions(question, GRID, sets, upsampling=Upsampling.ALIGNED))
    scores = next(event for event in events if isinstance(event, RegionScores))
    enough = [count for count, score in enumerate(scores.scores, 1) if score >= share * scores.full.score]
    return {"size": min(enough, default=GRID**2)}


def family(record: Mapping[str, Any], allowed: int) -> int:
    """Returns the size of the largest family of the sets found that share at most `allowed` patches."""
    scores = {int(bits): float(score) for bits, score in zip(record["bits"], record["scores"], strict=True)}
    return len(diverse_family(scores, allowed))


def _run(loaded: LoadedModel, steps: Steps) -> tuple[Sequence[Any], int]:
    events: list[Any] = []
    ends: list[BaseException | None] = []
    task = Task(steps=steps, on_event=events.append, on_end=ends.append)
    loaded.engine().run(task)
    if ends[0] is not None:
        raise ends[0]
    return events, task.usage.evaluations

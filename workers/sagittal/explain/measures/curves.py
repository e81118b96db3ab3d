"""Insertion and deletion curves of a heatmap (Petsiuk et al., BMVC 2018).

The most salient cells come first. A cell that ties with others is inserted by the share of all orders of the tied cells
in which it would be inserted. This is the mean over the tied orders, and exact for a model that is linear in the mask.
An arbitrary order would favour heatmaps whose ties happen to be sorted well.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from sagittal.engine.masking import upsample
from sagittal.engine.requests import OutOfBudget
from sagittal.explain.backgrounds import RobustnessTest
from sagittal.explain.events import Curve, CurveKind, Measurement, Progress, Truncated, Warning
from sagittal.explain.problem import Problem
from sagittal.explain.steps import Steps

LEAST_GAP = 0.1
"""Difference of insertion and deletion, as a share of the unmasked score, below which a heatmap is warned of.

The value is a choice, not calibrated: random heatmaps have a difference of zero on average, but single ones exceed it.
"""


class CurveProtocol(Enum):
    """Resolution at which cells are ordered."""

    MASK = "mask"
    """Cells of the mask in about `steps` steps, upsampled bilinearly (the I-GOS papers)."""
    PIXEL = "pixel"
    """Pixels of the upsampled mask, one image row of pixels a step (RISE)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Measurements of each final mask and of each sufficient set."""

    curves: bool = True
    protocol: CurveProtocol = CurveProtocol.MASK
    steps: int = 50
    """Number of steps of a curve at mask resolution."""
    boxes: Sequence[tuple[int, int, int, int]] = ()
    """Boxes of the object for the pointing game: left, top, right, bottom in pixels."""
    predictability: int = 0
    """Number of random occlusions that the explanation must predict (see `predictability`); 0 measures nothing."""
    stability: int = 0
    """Number of further runs of the method with other seeds (see `stability`), at most 15; 0 for none."""
    robustness: RobustnessTest | None = None
    """Test of each sufficient set's certificate on altered images; None for none."""


def measure(problem: Problem, saliency: Tensor, metrics: Metrics, index: int = 0) -> Steps[None]:
    """Yields the insertion curve, then the deletion curve, of a saliency (h, w); none if a deadline passes first."""
    cells, step = _cells(problem, saliency, metrics)
    inserted, fractions = insertion_masks(cells, step)
    masks = torch.cat([inserted, 1 - inserted])
    yield Progress(1.0, phase="curves")
    try:
        scores = yield from problem.evaluate(masks, exact=True, metric=True)
    except OutOfBudget as spent:
        yield Truncated(spent.limit)
        return
    areas: dict[CurveKind, float] = {}
    for kind, part in zip((CurveKind.INSERTION, CurveKind.DELETION), scores.target.chunk(2), strict=True):
        found = curve(kind, fractions, part.tolist(), problem.unmasked_score, index)
        yield found
        areas[kind] = found.auc
        if index == 0:
            yield Measurement(kind.value, found.auc)
    yield from _warnings(areas[CurveKind.INSERTION], areas[CurveKind.DELETION], problem.unmasked_score)


def _warnings(insertion: float, deletion: float, unmasked_score: float) -> Steps[None]:
    """Warns of a heatmap with almost equal areas, as random orders of the cells have on average."""
    if insertion - deletion < LEAST_GAP * unmasked_score:
        below = insertion < deletion
        gap = "" if below else f" by less than {LEAST_GAP:.0%} of the unmasked score"
        yield Warning(
            "CURVES_HARDLY_PART",
            f"Insertion ({insertion:.3f}) {'is below' if below else 'exceeds'} deletion ({deletion:.3f}){gap}. For a "
            "random order of the cells the difference is zero on average: this order may be no better. Do not rely on "
            "it alone; try another method, or ask for sufficient sets.",
        )


def curve_evaluations(metrics: Metrics, size: int) -> int:
    """Returns about how many evaluations it takes to measure a mask, for an image of `size` pixels a side."""
    steps = size if metrics.protocol is CurveProtocol.PIXEL else metrics.steps
    return 2 * (steps + 1) if metrics.curves else 0


def _cells(problem: Problem, saliency: Tensor, metrics: Metrics) -> tuple[Tensor, int]:
    """Returns the saliency at the protocol's resolution, and the number of cells per step."""
    if metrics.protocol is CurveProtocol.PIXEL:
        return upsample(saliency.unsqueeze(0), problem.size)[0, 0], problem.size[1]
    return saliency, max(1, saliency.numel() // metrics.steps)


def insertion_masks(saliency: Tensor, step: int) -> tuple[Tensor, tuple[float, ...]]:
    """Returns masks (k, h, w) that keep growing shares of the most salient cells, from 0 to 1, and the shares."""
    cells = saliency.numel()
    counts = torch.tensor([*range(0, cells, step), cells], dtype=torch.float32, device=saliency.device)
    first, size = _tied_ranks(saliency.flatten())
    masks = ((counts.unsqueeze(1) - first) / size).clamp_(0, 1)
    return masks.view(-1, *saliency.shape), tuple((counts / cells).tolist())


def _tied_ranks(saliency: Tensor) -> tuple[Tensor, Tensor]:
    """Returns, for each cell, the number of cells before its group of equal cells, and the size of that group."""
    _, group, sizes = torch.unique(-saliency, return_inverse=True, return_counts=True)
    first = sizes.cumsum(0) - sizes
    return first[group].to(torch.float32), sizes[group].to(torch.float32)


def curve(
    kind: CurveKind, fractions: Sequence[float], scores: Sequence[float], unmasked_score: float, index: int = 0
) -> Curve:
    """Returns the curve with its area by the trapezoid rule, raw and relative to the unmasked score."""
    auc = area(fractions, scores)
    return Curve(kind, tuple(fractions), tuple(scores), auc, auc / max(unmasked_score, 1e-12), index)


def area(fractions: Sequence[float], scores: Sequence[float]) -> float:
    """Returns the area under a curve by the trapezoid rule."""
    points = list(zip(fractions, scores, strict=True))
    return sum((right[0] - left[0]) * (right[1] + left[1]) / 2 for left, right in itertools.pairwise(points))


TOLERANCE = 15
"""Distance in pixels by which the peak may miss the box."""


def pointing_game(saliency: Tensor, size: tuple[int, int], boxes: Sequence[tuple[int, int, int, int]]) -> bool:
    """Returns whether the peak lies in a box (left, top, right, bottom; pixels), within the tolerance.

    It measures where a heatmap points, not whether the model relies on that part: an edge detector wins it without any
    causal link.
    """
    heatmap = upsample(saliency.unsqueeze(0), size)[0, 0]
    row, column = divmod(int(heatmap.argmax()), size[1])
    return any(
        left - TOLERANCE <= column < right + TOLERANCE and top - TOLERANCE <= row < bottom + TOLERANCE
        for left, top, right, bottom in boxes
    )

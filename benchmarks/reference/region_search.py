"""Greedy region searches, as published, without a prior: the peers of the ordered region search.

Chen et al.: Less is More: Fewer Interpretable Region via Submodular Subset Selection (ICLR 2024) add greedily the
region with the largest marginal gain. Here the gain is that of the inserted score minus the deleted score, without the
other terms of their function. `window` is the idea of PhaseWin: at the start of a phase all regions are scored; within
a phase only the most promising ones are scored again, until the best gain falls clearly.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sagittal.explain import Explainer, Problem, parameter
from sagittal.explain.events import SaliencyMask
from sagittal.explain.steps import Steps
from sagittal.explain.superpixels import superpixels

FALL = 0.5
"""Share of the gain at the start of a phase below which the next phase starts."""


class Regions:
    """A partition of the cells of a mask."""

    def __init__(self, labels: Tensor) -> None:
        """Takes the region of each cell, int64 of shape (size, size)."""
        self.labels = labels
        self.count = int(labels.max()) + 1
        self._areas = torch.bincount(labels.flatten(), minlength=self.count) / labels.numel()

    def masks(self, shown: Tensor) -> Tensor:
        """Returns masks (n, size, size) for the share (n, regions) by which each region is shown."""
        return shown[:, self.labels]

    def spread(self, order: Tensor) -> Tensor:
        """Returns the share of the image that comes after each cell's region in an order, of shape (size, size)."""
        areas = self._areas[order]
        after = torch.empty_like(areas)
        after[order] = 1 - areas.cumsum(0) + areas / 2
        return after[self.labels]


@dataclass(frozen=True, slots=True, kw_only=True)
class GreedyRegions(Explainer):
    """The order in which the best region is added at every step."""

    regions: int = parameter(64, "Number of superpixels aimed at", minimum=4, maximum=196)
    mask_size: int = parameter(28, "Side of the square mask in cells", minimum=7, maximum=224)
    window: int = parameter(0, "Regions scored in a step within a phase; 0 scores all in every step", minimum=0)

    def explain(self, problem: Problem) -> Steps[None]:
        """Yields the final heatmap: the share of the image that comes after each region."""
        regions = Regions(superpixels(problem.image, self.regions, self.mask_size))
        shown, left, order = torch.zeros(regions.count), set(range(regions.count)), []
        gap = problem.baseline_score - problem.unmasked_score
        gains: dict[int, float] = {}
        first = 0.0
        while left:
            fresh = not self.window or not gains or max(gains[each] for each in left) < FALL * first
            listed = sorted(left, key=lambda each: -gains.get(each, 0.0))
            chosen = listed if fresh else listed[: self.window]
            gaps = yield from _gaps(problem, regions, shown, chosen)
            gains |= {each: found - gap for each, found in zip(chosen, gaps, strict=True)}
            best = max(chosen, key=gains.__getitem__)
            if fresh:
                first = gains[best]
            gap += gains[best]
            shown[best] = 1.0
            left.discard(best)
            order.append(best)
        yield SaliencyMask(regions.spread(torch.tensor(order)))


def _gaps(problem: Problem, regions: Regions, shown: Tensor, chosen: list[int]) -> Steps[list[float]]:
    """Returns the inserted score minus the deleted score, with each of the chosen regions added."""
    rows = shown.repeat(len(chosen), 1)
    rows[range(len(chosen)), chosen] = 1.0
    masks = regions.masks(rows)
    scores = yield from problem.evaluate(torch.cat([masks, 1 - masks]))
    inserted, deleted = scores.target.cpu().chunk(2)
    return (inserted - deleted).tolist()

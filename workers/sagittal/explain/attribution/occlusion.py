"""Occlusion: the fall of the score when a window is hidden (Zeiler and Fergus, ECCV 2014).

The saliency of a cell is the mean fall over the windows that cover it, as a share of the unmasked score; it is 0 if
hiding the cell changes nothing or raises the score. The windows are exact rectangles filled from the baseline. They are
visited in random order, so that a truncated search has sampled the whole image.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sagittal.engine.requests import OutOfBudget, Upsampling
from sagittal.explain.events import Progress, SaliencyMask, Truncated
from sagittal.explain.explainer import Explainer
from sagittal.explain.parameters import InvalidParameter, check, parameter
from sagittal.explain.problem import Problem
from sagittal.explain.steps import Steps

BATCH = 64
"""Windows per request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Occlusion(Explainer):
    """The fall of the score when a window is hidden, for every position of the window on a grid."""

    summary: ClassVar[str] = "The fall of the score when a window is hidden, for every position of the window"

    window: int = parameter(3, "Side of the hidden square window in cells of the grid", minimum=1, maximum=32)
    grid: int = parameter(14, "Side of the square grid that the window moves on, in cells", minimum=2, maximum=64)

    def __post_init__(self) -> None:
        """Checks the parameters, alone and against each other."""
        check(self)
        if self.window > self.grid:
            raise InvalidParameter("window", f"is {self.window}; give at most grid, which is {self.grid}")

    def explain(self, problem: Problem) -> Steps[None]:
        """Yields intermediate heatmaps, then the final one, all of shape (grid, grid)."""
        hidden = windows(self.grid, self.window, problem.image.device)
        hidden = hidden[torch.randperm(len(hidden), generator=problem.generator("windows"))]
        falls, visits = problem.full(self.grid, 0.0), problem.full(self.grid, 0.0)
        done = 0
        try:
            while done < len(hidden):
                batch = hidden[done : done + BATCH]
                scores = yield from problem.evaluate(1 - batch, upsampling=Upsampling.BOX)
                fall = (problem.unmasked_score - scores.target).to(batch)
                falls += (fall.view(-1, 1, 1) * batch).sum(0)
                visits += batch.sum(0)
                done += len(batch)
                yield Progress(done / len(hidden), phase="occlude")
                yield SaliencyMask(_saliency(falls, visits, problem.unmasked_score), final=False)
        except OutOfBudget as spent:
            yield Truncated(spent.limit)
        yield SaliencyMask(_saliency(falls, visits, problem.unmasked_score))


def windows(grid: int, window: int, device: torch.device) -> Tensor:
    """Returns every position of the window in the grid: 1 inside it, shape ((grid - window + 1)^2, grid, grid)."""
    places = grid - window + 1
    starts, cells = torch.arange(places, device=device).unsqueeze(1), torch.arange(grid, device=device)
    covers = ((cells >= starts) & (cells < starts + window)).to(torch.float32)
    return (covers[:, None, :, None] * covers[None, :, None, :]).reshape(-1, grid, grid)


def _saliency(falls: Tensor, visits: Tensor, unmasked_score: float) -> Tensor:
    return (falls / visits.clamp(min=1) / max(unmasked_score, 1e-12)).clamp(0, 1)

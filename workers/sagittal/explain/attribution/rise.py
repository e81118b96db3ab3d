"""RISE: random masks weighted by their scores (Petsiuk, Das, Saenko: RISE, BMVC 2018).

Masks are random grids of cells, each kept with probability p, upsampled bilinearly and shifted by a random part of a
cell. The paper's heatmap is the mean score of the masks that keep a pixel, `S(x) = sum f(M) M(x) / (N p)`.

Differences from the paper:
- Scores are centred on their mean before they are weighted. The heatmap is then the covariance of score and position:
  the effect of keeping a position. Its expectation equals the paper's up to scale and offset, so that the order of
  pixels is the same. But a position without effect is 0, and the noise of how often a pixel was kept is removed.
- The heatmap is not stretched to its extremes. Its peak is the share of the unmasked score that all positions
  contribute together, to first order: the effect of each cell of the grid, `cov / (p (1 - p) f(I))`, minus `NOISE`
  standard errors, summed over positive effects. The heatmap of a model that ignores positions is empty; a heatmap
  within chance is faint but keeps its order. Negative effects are cut to 0.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sagittal.engine.masking import stretched_units
from sagittal.engine.requests import OutOfBudget
from sagittal.explain.attribution.layers import heatmap
from sagittal.explain.events import Progress, SaliencyMask, Truncated
from sagittal.explain.explainer import Explainer
from sagittal.explain.parameters import parameter
from sagittal.explain.problem import Problem
from sagittal.explain.steps import Steps

BATCH = 128
"""Masks per request."""

NOISE = 2.0
"""Standard errors that an effect must exceed to count towards the peak."""

FAINT = 0.01
"""Peak of a heatmap without such effects."""

PARTIALS = 16
"""Maximum number of intermediate heatmaps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RISE(Explainer):
    """The mean effect of keeping each position on the score, over random masks."""

    summary: ClassVar[str] = "Random masks weighted by their scores; requires only scores of the model"

    masks: int = parameter(2000, "Number of random masks", minimum=1, maximum=100_000)
    grid: int = parameter(7, "Side of the coarse random grid in cells", minimum=2, maximum=64)
    probability: float = parameter(
        0.5,
        "Probability that a cell of the grid is kept",
        minimum=0,
        maximum=1,
        exclusive_minimum=True,
        exclusive_maximum=True,
    )
    mask_size: int = parameter(28, "Side of the square heatmap in cells", minimum=7, maximum=224)

    def explain(self, problem: Problem) -> Steps[None]:
        """Yields intermediate heatmaps and the final one, of shape (mask_size, mask_size)."""
        sums = _Sums(self.mask_size, problem.image.device)
        generator, shown, batch = problem.generator("masks"), 0, BATCH
        while sums.count < self.masks:
            batch = min(batch, self.masks - sums.count)
            masks = random_masks(batch, self.grid, self.probability, problem.size, generator, problem.image.device)
            try:
                scores = yield from problem.evaluate(masks)
            except OutOfBudget as spent:
                if spent.limit == "evaluations" and batch > 1:
                    batch //= 2  # the rest of the budget may suffice for fewer
                    continue
                yield Truncated(spent.limit)
                break
            sums.add(scores.target, masks)
            yield Progress(sums.count / self.masks, phase="sample")
            if sums.count * PARTIALS >= (shown + 1) * self.masks:
                shown = sums.count * PARTIALS // self.masks
                yield SaliencyMask(self._saliency(sums, problem), final=False)
        yield SaliencyMask(self._saliency(sums, problem))

    def _saliency(self, sums: "_Sums", problem: Problem) -> Tensor:
        covariance, error = sums.covariance()
        certain, seen = self._share(covariance - NOISE * error, problem), self._share(covariance, problem)
        return heatmap(covariance.to(torch.float32), max(certain, min(FAINT, seen)))

    def _share(self, covariance: Tensor, problem: Problem) -> float:
        """Returns the sum of the positive effects of all grid cells as a share of the unmasked score."""
        effect = float(covariance.clamp(min=0).mean()) / (self.probability * (1 - self.probability))
        return self.grid**2 * effect / max(problem.unmasked_score, 1e-12)


class _Sums:
    """Sums that yield the covariance of scores and masks, in double precision."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.count = 0
        self._size = size
        self._scores = self._score_squares = torch.zeros((), dtype=torch.float64, device=device)
        self._masks = self._mask_squares = self._products = self._scores.expand(size, size)

    def add(self, scores: Tensor, masks: Tensor) -> None:
        """Adds scores (n,) of masks (n, height, width)."""
        cells = F.adaptive_avg_pool2d(masks.unsqueeze(1), self._size)[:, 0].to(torch.float64)
        scores = scores.to(cells)
        self.count += len(scores)
        self._scores = self._scores + scores.sum()
        self._score_squares = self._score_squares + (scores**2).sum()
        self._masks = self._masks + cells.sum(0)
        self._mask_squares = self._mask_squares + (cells**2).sum(0)
        self._products = self._products + torch.einsum("n,nhw->hw", scores, cells)

    def covariance(self) -> tuple[Tensor, Tensor]:
        """Returns the covariance of score and mask and its standard error, of shape (size, size); 0 without masks."""
        count = max(1, self.count)
        score, mask = self._scores / count, self._masks / count
        score_variance = (self._score_squares / count - score**2).clamp(min=0)
        mask_variance = (self._mask_squares / count - mask**2).clamp(min=0)
        return self._products / count - score * mask, (score_variance * mask_variance / count).sqrt()


def random_masks(
    count: int,
    grid: int,
    probability: float,
    size: tuple[int, int],
    generator: torch.Generator,
    device: torch.device | None = None,
) -> Tensor:
    """Returns masks of shape (count, height, width): random grids, upsampled and randomly shifted."""
    kept = (torch.rand(count, 1, grid + 1, grid + 1, generator=generator) < probability)[:, 0].to(device, torch.float32)
    lengths = [math.ceil(side / grid) for side in size]
    shifts = [torch.randint(length, (count, 1), generator=generator).to(device) for length in lengths]
    rows, columns = (
        _shifted(shift, grid + 1, length, side) for shift, length, side in zip(shifts, lengths, size, strict=True)
    )
    return (rows @ kept @ columns.mT).clamp_(0, 1)


def _shifted(shifts: Tensor, cells: int, length: int, side: int) -> Tensor:
    """Returns the contribution of each cell of a line to each pixel of its windows, of shape (shifts, side, cells).

    Upsampling is linear along each axis. Two small products per mask replace upsampling whole grids and cropping them.
    """
    line = stretched_units(cells, cells * length, shifts.device)
    return line[shifts + torch.arange(side, device=shifts.device)]

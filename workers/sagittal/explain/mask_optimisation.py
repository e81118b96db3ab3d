"""Mask optimisation by integrated gradients: what I-GOS, iGOS+ and iGOS++ have in common.

Qi, Khorram, Li: Visualizing Deep Networks by Optimizing with Integrated Gradients (AAAI 2020); Khorram, Lawson, Li:
iGOS++ (CHIL 2021). The masks minimise the score when the salient part is deleted, maximise it when only that part is
inserted, and stay small and smooth. The descent direction is an integrated gradient, the mean gradient over a path from
the baseline (or the image) to the masked image, which sees past local optima.

Where we differ from the papers, and why:
- The points of a path are drawn at random, one from each of `points` equal strata, anew in every iteration: 4 points do
  then what 15 to 20 fixed ones do.
- All terms are evaluated in one batch, and steps are Adam's, decaying to zero: they need neither a line search (which
  made up three quarters of the authors' evaluations) nor a step size that fits the scale of one model's gradients.
- The masks start half-way between image and baseline, where gradients of both ends are alive, and the result is the mean
  of the last iterations, which cancels the noise of single ones.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sagittal.explain import regularisers
from sagittal.explain.explainer import Explainer, Needs
from sagittal.explain.parameters import parameter
from sagittal.explain.problem import Problem
from sagittal.explain.seam import OutOfBudget, Progress, SaliencyMask, Scores, Steps, Truncated, gradient_of

_BETA1, _BETA2 = 0.9, 0.99
_EPSILON = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """Masks whose scores make the objective: deletions are to score low, insertions high."""

    deletions: Tensor
    """Shape (d, size, size); evaluated from the baseline (u = 0) to the mask (u = 1)."""
    insertions: Tensor
    """Shape (i, size, size); evaluated from the image (u = 0) to the complement of the mask (u = 1)."""
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskOptimisation(Explainer):
    """A mask found by descent on an objective of deletion and insertion scores."""

    needs: ClassVar[Needs] = Needs.GRADIENTS
    variables: ClassVar[int] = 1
    """Masks that are optimised together."""

    mask_size: int = parameter(28, "Side of the square mask in cells", minimum=7, maximum=224)
    iterations: int = parameter(25, "Steps of the optimiser", minimum=1, maximum=1000)
    points: int = parameter(4, "Points of the integrated gradient for each term and step", minimum=1, maximum=100)
    l1_weight: float = parameter(1.0, "Weight of the masked area (L1)", minimum=0)
    tv_weight: float = parameter(5.0, "Weight of the total variation of the mask", minimum=0)
    noise: float = parameter(0.2, "Standard deviation of the noise on the normalised input", minimum=0, maximum=10)
    step_size: float = parameter(
        0.1, "Size of the first step, in units of the mask", minimum=0, maximum=1, exclusive_minimum=True
    )

    @abstractmethod
    def terms(self, masks: Tensor) -> Terms:
        """Returns the terms of the objective for masks of shape (variables, size, size)."""

    @abstractmethod
    def kept(self, masks: Tensor) -> Tensor:
        """Returns the one mask (size, size) that the variables stand for."""

    def path(self, terms: int, generator: torch.Generator) -> Tensor:
        """Returns the points of each term's path at which gradients are taken: (terms, points, 1, 1), in (0, 1]."""
        return stratified(terms, self.points, generator)

    def regulariser(self, mask: Tensor, problem: Problem) -> Tensor:
        """Returns the penalty of the kept mask: its area and its roughness."""
        batch = mask.unsqueeze(0)
        return self.l1_weight * regularisers.area(batch)[0] + self.tv_weight * regularisers.total_variation(batch)[0]

    def explain(self, problem: Problem) -> Steps:
        """Yields progress, forming masks and the final mask."""
        descent = Descent(problem.full(self.mask_size, 0.5).repeat(self.variables, 1, 1), self)
        kept = self.kept(descent.masks)
        try:
            for step in range(self.iterations):
                objective = yield from self._descend(problem, descent, step)
                kept = self.kept(descent.average)
                yield Progress((step + 1) / self.iterations, objective)
                yield SaliencyMask(1 - kept, final=False)
        except OutOfBudget as spent:
            yield Truncated(spent.limit)
        yield SaliencyMask(1 - kept)

    def _descend(self, problem: Problem, descent: "Descent", step: int) -> Steps:
        """Takes one step; returns the objective before it."""
        masks = descent.masks.clone().requires_grad_()
        with torch.enable_grad():
            terms = self.terms(masks)
            penalty = self.regulariser(self.kept(masks), problem)
        deleted, inserted = len(terms.deletions), len(terms.insertions)
        u = self.path(deleted + inserted, problem.generator("path", step)).to(masks.device)
        keep = torch.cat([u[:deleted] * terms.deletions.unsqueeze(1), 1 - u[deleted:] * terms.insertions.unsqueeze(1)])
        scores: Scores = yield problem.evaluate(
            keep.detach().flatten(0, 1), gradient=True, noise=self.noise, noise_seed=problem.noise_seed(step)
        )
        gradient = gradient_of(scores).view_as(keep)
        # d score / d term is u * d score / d keep for deletions; for insertions, scored with a minus sign on the
        # complement, the two signs cancel and it is the same.
        along = (u * gradient).mean(1)
        with torch.enable_grad():
            surrogate = terms.weight * (along * torch.cat([terms.deletions, terms.insertions])).sum() + penalty
        descent.step(torch.autograd.grad(surrogate, masks)[0], step)
        means = scores.target.view(keep.shape[:2]).mean(1)
        return float(terms.weight * (means[:deleted].sum() - means[deleted:].sum()) + penalty.detach())


def stratified(terms: int, points: int, generator: torch.Generator) -> Tensor:
    """Returns random points in (0, 1] of shape (terms, points, 1, 1), one in each of `points` equal strata."""
    offsets = torch.arange(points, dtype=torch.float32) + torch.rand(terms, points, generator=generator)
    return (offsets / points).view(terms, points, 1, 1)


class Descent:
    """Adam on masks in [0, 1], with steps that decay to zero and a mean of the later iterations."""

    def __init__(self, masks: Tensor, settings: MaskOptimisation) -> None:
        """Starts at masks of shape (variables, size, size)."""
        self.masks = masks
        self._mean = torch.zeros_like(masks)
        self._square = torch.zeros_like(masks)
        self._sum = torch.zeros_like(masks)
        self._summed = 0
        self._settings = settings

    @property
    def average(self) -> Tensor:
        """The mean of the masks over the second half of the iterations; the last masks before that."""
        return self._sum / self._summed if self._summed else self.masks

    def step(self, gradient: Tensor, step: int) -> None:
        """Moves the masks against the gradient."""
        total = self._settings.iterations
        self._mean = _BETA1 * self._mean + (1 - _BETA1) * gradient
        self._square = _BETA2 * self._square + (1 - _BETA2) * gradient**2
        mean = self._mean / (1 - _BETA1 ** (step + 1))
        root = (self._square / (1 - _BETA2 ** (step + 1))).sqrt()
        size = self._settings.step_size * (1 - step / total)
        self.masks = (self.masks - size * mean / (root + _EPSILON)).clamp(0, 1)
        if step >= total // 2:
            self._sum = self._sum + self.masks
            self._summed += 1

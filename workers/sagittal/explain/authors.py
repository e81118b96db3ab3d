"""The authors' published code, as it runs: their defaults, their line search, and what it gets wrong. For comparison.

What differs from the papers and is kept here on purpose: 20 iterations of 15 points (their command line swaps the two);
base and trial of the line search see different noise; a step that failed to decrease is applied all the same; the
bilateral total variation averages channels before squaring in one direction and after it in the other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sagittal.explain.masking import upsample
from sagittal.explain.problem import Problem
from sagittal.explain.regularisers import BTV_SIGMA
from sagittal.explain.seam import Progress, Scores, Steps, Upsampling, gradient_of

ITERATIONS, POINTS = 20, 15
L1, TV = 1.0, 20.0
FIRST_STEP, DECAY, SHORTEST_STEP = 1000.0, 0.2, 1e-5
ARMIJO = 1e-4


@dataclass(frozen=True, slots=True)
class Form:
    """Which of the three objectives it is."""

    variables: int
    inserts: bool
    bilateral: bool


AUTHORS: Mapping[str, Form] = {
    "IGOS": Form(variables=1, inserts=False, bilateral=False),
    "IGOSPlus": Form(variables=1, inserts=True, bilateral=True),
    "IGOSPlusPlus": Form(variables=2, inserts=True, bilateral=True),
}
"""Forms by the name of the explainer."""


class Settings(Protocol):
    """What the authors' protocol takes from the caller."""

    @property
    def mask_size(self) -> int:
        """Side of the mask."""
        ...

    @property
    def noise(self) -> float:
        """Standard deviation of the noise."""
        ...


def authors_masks(problem: Problem, settings: Settings, form: Form) -> Steps:
    """Yields requests and progress; returns the kept mask (size, size)."""
    descent = _Descent(problem, settings.noise, form)
    masks = problem.full(settings.mask_size, 1.0).repeat(form.variables, 1, 1)
    for iteration in range(ITERATIONS):
        masks, objective = yield from descent.step(masks)
        yield Progress((iteration + 1) / ITERATIONS, objective)
    return masks.prod(0)


class _Descent:
    """Gradient descent with backtracking on one problem."""

    def __init__(self, problem: Problem, noise: float, form: Form) -> None:
        self._problem, self._noise, self._form = problem, noise, form
        self._u = (torch.arange(1, POINTS + 1, device=problem.image.device) / POINTS).view(-1, 1, 1)
        self._asked = 0

    def step(self, masks: Tensor) -> Steps:
        """Returns the new masks and the objective before."""
        _, gradient = yield from self._data(masks, gradient=True)
        leaf = masks.clone().requires_grad_()
        with torch.enable_grad():
            penalty = self._penalty(leaf)
        gradient = gradient + torch.autograd.grad(penalty, leaf)[0]
        base = yield from self._value(masks)
        square, length = float((gradient**2).sum()), FIRST_STEP
        while True:
            moved = (masks - length * gradient).clamp(0, 1)
            value = yield from self._value(moved)
            if value <= base - ARMIJO * length * square:
                break
            length *= DECAY
            if length < SHORTEST_STEP:
                moved = (masks - length * gradient).clamp(0, 1)
                break
        return moved, base

    def _value(self, masks: Tensor) -> Steps:
        value, _ = yield from self._data(masks, gradient=False)
        return value + float(self._penalty(masks))

    def _data(self, masks: Tensor, *, gradient: bool) -> Steps:
        """Returns the data terms and, where asked for, their gradient by the masks."""
        if not self._form.inserts:
            score, slope = yield from self._term(masks[0], inserts=False, gradient=gradient)
            return score, slope.unsqueeze(0)
        kept = masks.prod(0)
        deleted, by_deleted = yield from self._term(kept, inserts=False, gradient=gradient)
        inserted, by_inserted = yield from self._term(kept, inserts=True, gradient=gradient)
        if self._form.variables == 1:
            return deleted - inserted, (by_deleted + by_inserted).unsqueeze(0)
        alone_deleted, by_first = yield from self._term(masks[0], inserts=False, gradient=gradient)
        alone_inserted, by_second = yield from self._term(masks[1], inserts=True, gradient=gradient)
        both = by_deleted + by_inserted
        slopes = torch.stack([both * masks[1] + by_first, both * masks[0] + by_second]) / 2
        return (deleted - inserted + alone_deleted - alone_inserted) / 2, slopes

    def _term(self, mask: Tensor, *, inserts: bool, gradient: bool) -> Steps:
        """Returns the mean score along the path, and the derivative of its part of the objective by the mask."""
        keep = 1 - self._u * mask if inserts else self._u * mask
        self._asked += 1
        scores: Scores = yield self._problem.evaluate(
            keep,
            gradient=gradient,
            noise=self._noise,
            noise_seed=self._problem.noise_seed("authors", self._asked),
            upsampling=Upsampling.ALIGNED,
        )
        slope = (gradient_of(scores) * self._u).mean(0) if gradient else torch.zeros_like(mask)
        return float(scores.target.mean()), slope

    def _penalty(self, masks: Tensor) -> Tensor:
        kept = masks.prod(0)
        area = L1 * (1 - kept).abs().mean()
        if not self._form.bilateral:
            return area + TV * _variation(kept)
        pixels = upsample(kept.unsqueeze(0), self._problem.size, Upsampling.ALIGNED)[0, 0]
        return area + TV / 2 * (_variation(kept) + _bilateral(pixels, self._problem.image))


def _variation(mask: Tensor) -> Tensor:
    return ((mask[1:] - mask[:-1]) ** 2).mean() + ((mask[:, 1:] - mask[:, :-1]) ** 2).mean()


def _bilateral(mask: Tensor, image: Tensor) -> Tensor:
    """Bilateral total variation as published: channels averaged before squaring down, after squaring across."""
    down = torch.exp(-((image[:, 1:] - image[:, :-1]).mean(0) ** 2) / BTV_SIGMA)
    across = torch.exp(-((image[:, :, 1:] - image[:, :, :-1]) ** 2).mean(0) / BTV_SIGMA)
    return (down * (mask[1:] - mask[:-1]) ** 2).mean() + (across * (mask[:, 1:] - mask[:, :-1]) ** 2).mean()

"""The reference implementation of I-GOS, iGOS+ and iGOS++, reimplemented: defaults, line search and faults.

Intentional differences from the papers: 20 iterations of 15 points (their command line swaps the two); base and trial
of the line search have different noise and weigh the data terms in full, the gradient by half; a step that failed to
decrease is applied nevertheless; the bilateral total variation averages channels before squaring in one direction, and
weights in the other; masks are upsampled before they are multiplied.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sagittal.engine.masking import upsample
from sagittal.engine.requests import Upsampling, gradient_of
from sagittal.explain import Explainer, Needs, parameter
from sagittal.explain.events import Progress, SaliencyMask
from sagittal.explain.problem import BTV_SIGMA, Problem
from sagittal.explain.steps import Steps

ITERATIONS, POINTS = 20, 15
L1, TV = 1.0, 20.0
FIRST_STEP, DECAY, SHORTEST_STEP = 1000.0, 0.2, 1e-5
ARMIJO = 1e-4


@dataclass(frozen=True, slots=True)
class Form:
    """The objective: one of three."""

    variables: int
    inserts: bool
    bilateral: bool

    @property
    def weight(self) -> float:
        """Weight of each data term in the gradient."""
        return 1 / self.variables


FORMS: Mapping[str, Form] = {
    "igos": Form(variables=1, inserts=False, bilateral=False),
    "igos+": Form(variables=1, inserts=True, bilateral=True),
    "igos++": Form(variables=2, inserts=True, bilateral=True),
}
"""Forms by the name of the method."""


@dataclass(slots=True)
class Spared:
    """Evaluations that cannot change the line search's decision; the published code makes them nevertheless."""

    evaluations: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceDescent(Explainer):
    """The mask that the reference implementation of a method finds."""

    needs: ClassVar[Needs] = Needs.GRADIENTS

    form: str = parameter("igos++", "Whose objective", choices=tuple(FORMS))
    mask_size: int = parameter(28, "Side of the square mask in cells", minimum=7, maximum=224)
    noise: float = parameter(0.2, "Standard deviation of the noise on the normalised input", minimum=0, maximum=10)
    spared: Spared | None = None
    """If given, a trial ends as soon as its failure is certain, and the evaluations that this saves are counted here.
    The masks are the same in both cases."""

    def explain(self, problem: Problem) -> Steps[None]:
        """Yields progress and the final mask."""
        form = FORMS[self.form]
        descent = _Descent(problem, self.noise, form, self.spared)
        masks = problem.full(self.mask_size, 1.0).repeat(form.variables, 1, 1)
        for iteration in range(ITERATIONS):
            masks, objective = yield from descent.step(masks)
            yield Progress((iteration + 1) / ITERATIONS, objective)
        yield SaliencyMask(1 - masks.prod(0))


class _Descent:
    """Gradient descent with backtracking on one problem."""

    def __init__(self, problem: Problem, noise: float, form: Form, spared: Spared | None) -> None:
        self._problem, self._noise, self._form, self._spared = problem, noise, form, spared
        self._u = (torch.arange(1, POINTS + 1, device=problem.image.device) / POINTS).view(-1, 1, 1)
        self._asked = 0

    def step(self, masks: Tensor) -> Steps[tuple[Tensor, float]]:
        """Returns the new masks and the objective before."""
        gradient = yield from self._gradient(masks)
        base = yield from self._value(masks, math.inf)
        square, length = float((gradient**2).sum()), FIRST_STEP
        while True:
            moved = (masks - length * gradient).clamp(0, 1)
            wanted = base - ARMIJO * length * square
            value = yield from self._value(moved, wanted)
            if value <= wanted or length < SHORTEST_STEP:
                return moved, base
            length *= DECAY

    def _value(self, masks: Tensor, wanted: float) -> Steps[float]:
        """Returns the line search's objective; if evaluations are spared, a bound above `wanted` once one is known.

        The data terms are not weighted here as they are in the gradient.
        """
        terms = self._terms(self._pixels(masks))
        value = float(self._penalty(masks))
        for place, (mask, inserts) in enumerate(terms):
            # Scores are probabilities: the best remaining value is 1 for each insertion and 0 for each deletion.
            least = value - sum(late for _, late in terms[place:])
            if self._spared is not None and least > wanted:
                self._asked += len(terms) - place
                self._spared.evaluations += (len(terms) - place) * POINTS
                return least
            score, _ = yield from self._term(mask, inserts=inserts, gradient=False)
            value += -score if inserts else score
        return value

    def _gradient(self, masks: Tensor) -> Steps[Tensor]:
        """Returns the integrated gradient of the data terms and that of the regulariser, by the masks."""
        leaf = masks.clone().requires_grad_()
        with torch.enable_grad():
            terms = self._terms(self._pixels(leaf))
            surrogate = self._penalty(leaf)
        for mask, inserts in terms:
            _, slope = yield from self._term(mask.detach(), inserts=inserts, gradient=True)
            with torch.enable_grad():
                surrogate = surrogate + self._form.weight * (slope * mask).sum()
        return torch.autograd.grad(surrogate, leaf)[0]

    def _pixels(self, masks: Tensor) -> Tensor:
        return upsample(masks, self._problem.size, Upsampling.ALIGNED)[:, 0]

    def _terms(self, pixels: Tensor) -> list[tuple[Tensor, bool]]:
        """Returns the mask of each data term, at the image's size, and whether it inserts."""
        kept = pixels.prod(0)
        alone = [(pixels[0], False), (pixels[1], True)] if self._form.variables == 2 else []
        return [(kept, False), *([(kept, True)] if self._form.inserts else []), *alone]

    def _term(self, mask: Tensor, *, inserts: bool, gradient: bool) -> Steps[tuple[float, Tensor]]:
        """Returns the mean score along the path, and the derivative of its part of the objective by the mask."""
        keep = 1 - self._u * mask if inserts else self._u * mask
        self._asked += 1
        scores = yield from self._problem.evaluate(
            keep,
            gradient=gradient,
            noise=self._noise,
            noise_seed=self._problem.noise_seed("reference", self._asked),
        )
        slope = (gradient_of(scores) * self._u).mean(0) if gradient else torch.zeros_like(mask)
        return float(scores.target.mean()), slope

    def _penalty(self, masks: Tensor) -> Tensor:
        kept = masks.prod(0)
        area = L1 * (1 - kept).abs().mean()
        if not self._form.bilateral:
            return area + TV * variation(kept)
        pixels = self._pixels(kept.unsqueeze(0))[0]
        return area + TV / 2 * (variation(kept) + _bilateral(pixels, self._problem.image))


def variation(mask: Tensor) -> Tensor:
    """Returns the total variation of a mask (h, w) as published: a mean over each direction."""
    return ((mask[1:] - mask[:-1]) ** 2).mean() + ((mask[:, 1:] - mask[:, :-1]) ** 2).mean()


def _bilateral(mask: Tensor, image: Tensor) -> Tensor:
    """Bilateral total variation as published: differences averaged over channels down, weights averaged across."""
    down = torch.exp(-((image[:, 1:] - image[:, :-1]).mean(0) ** 2) / BTV_SIGMA)
    across = torch.exp(-((image[:, :, 1:] - image[:, :, :-1]) ** 2) / BTV_SIGMA).mean(0)
    return (down * (mask[1:] - mask[:-1]) ** 2).mean() + (across * (mask[:, 1:] - mask[:, :-1]) ** 2).mean()

"""Mask optimisation by integrated gradients: the common part of I-GOS, iGOS+ and iGOS++.

Qi, Khorram, Li: Visualizing Deep Networks by Optimizing with Integrated Gradients (AAAI 2020); Khorram, Lawson, Li:
iGOS++ (CHIL 2021). The masks minimise the score if the salient part is deleted, maximise it if only that part is
inserted, and stay small and smooth. The descent direction is an integrated gradient, the mean gradient over a path from
the baseline (or the image) to the masked image, which is not trapped in local optima as easily as the plain gradient.

Differences from the papers (`Additions` names each; `protocol="published"` turns them off):
- The points of a path are random, one in each of `points` equal strata, and redrawn in every iteration. Over the
  iterations, 4 such points achieve the effect of 15 to 20 fixed ones.
- All terms of a step are evaluated in one batch. Steps are Adam's and decay to zero. They require no line search (three
  quarters of the evaluations of the reference implementation), and no step size fitted to one model's gradients.
- iGOS++ alternates between the terms of the product and those of each mask alone: more steps achieve more than more
  terms.
- `levels` terms add the order of cells that the curves measure (see `level_sets`).
- The regulariser is relative to the unmasked score, which bounds the data terms. In the papers' objective the
  regulariser outweighs them if the class has little confidence, and the mask vanishes.
- A descent ends when its mask has converged.
- A mask finer than 28 cells takes its first steps at 28, because the gradients of single small cells are too weak to
  find a part. All its level sets are inserted: their sharp edges would delete a class without covering it.
- Steps are slightly smoothed. The result is the mean of the last iterations, at the scale with the best curves (see
  `level_sets`). Without `levels` its scale is unchanged.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sagittal.engine.masking import enlarged
from sagittal.engine.requests import OutOfBudget, gradient_of
from sagittal.explain.events import Checkpoint, Progress, SaliencyMask, Truncated
from sagittal.explain.explainer import Explainer, Needs
from sagittal.explain.masks import regularisers
from sagittal.explain.masks.descent import AVERAGED, COARSE, OPTIMISERS, Average, Optimiser, stratified
from sagittal.explain.masks.level_sets import chosen_scale, level_gradient, level_sets
from sagittal.explain.parameters import parameter
from sagittal.explain.problem import Problem, State, prefixed, within
from sagittal.explain.steps import Steps

LEVEL_WEIGHT = 3.0
"""Mean size of the level terms' gradient, relative to that of the other terms."""

FINE_SHARE = 0.4
"""Share of the steps, the last ones, that a mask finer than `COARSE` takes at its own size."""

LOWERED, LOWERED_GRID = 0.3, 4
"""Value of one cell of a coarse grid in the start of a further mask, and the grid's side: it converges elsewhere."""


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """Masks whose scores form the objective: deletion scores should be low, insertion scores high."""

    deletions: Tensor
    """Shape (d, size, size); evaluated from the baseline (u = 0) to the mask (u = 1)."""
    insertions: Tensor
    """Shape (i, size, size); evaluated from the image (u = 0) to the complement of the mask (u = 1)."""
    weight: float = 1.0
    """Weight of each term in the objective."""


class _Descent:
    """The state of a descent: its masks, their average, and the optimiser, all of one size at a time."""

    def __init__(
        self, masks: Tensor, optimiser: Callable[[State], Optimiser], state: State, averaged: float = AVERAGED
    ) -> None:
        """Starts with the first masks, or resumes from the state of another descent."""
        self._make, self._averaged = optimiser, averaged
        self.step = int(state.get("step", 0))
        self.masks = state.get("masks", masks)
        self.average = Average(self.masks, within(state, "average"), share=averaged)
        self.optimiser = optimiser(within(state, "optimiser"))

    def enlarge(self, size: int) -> None:
        """Continues with masks of another size, without the history of earlier steps."""
        if self.masks.shape[-1] != size:
            self.masks = enlarged(self.average.masks, size)
            self.average, self.optimiser = Average(self.masks, share=self._averaged), self._make({})

    def move(self, masks: Tensor, share: float) -> None:
        """Sets the masks after a step; `share` is the completed share of the steps."""
        self.masks = masks
        self.average.add(masks, share)
        self.step += 1

    def checkpoint(self, done: Sequence[Tensor]) -> Checkpoint:
        """Returns everything that later steps depend on: random choices follow from the seed and the step."""
        state = {"step": torch.tensor(self.step), "masks": self.masks}
        state |= prefixed("average", self.average.state) | prefixed("optimiser", self.optimiser.state)
        return Checkpoint(prefixed(f"start-{len(done)}", state) | ({"done": torch.stack([*done])} if done else {}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Additions:
    """Our additions to the published methods, apart from numbers. Each can be turned off."""

    relative: bool = True
    """The regulariser is multiplied by the unmasked score."""
    any_size: bool = True
    """The total variation is multiplied by the number of cells, so that its weight is independent of the mask size."""
    random_path: bool = True
    """Points of a path are random, one in each stratum; otherwise they are 1/K, 2/K ... 1."""
    alternating: bool = True
    """The parts of the objective alternate; otherwise each step uses their mean."""
    half_way: bool = True
    """Masks start at the explainer's `start`; otherwise at 1, which hides nothing."""
    averaged: bool = True
    """The result is the mean of the last steps; otherwise it is the last mask."""
    best_scale: bool = True
    """The result is smoothed to the scale with the best curves, if there are level sets."""
    coarse_first: bool = True
    """Masks finer than `COARSE` take their first steps at that size."""


PUBLISHED = Additions(
    relative=False,
    any_size=False,
    random_path=False,
    alternating=False,
    half_way=False,
    averaged=False,
    best_scale=False,
    coarse_first=False,
)
"""The methods as published."""

PROTOCOLS = ("sagittal", "published")


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskOptimisation(Explainer):
    """A mask found by descent on an objective of deletion and insertion scores."""

    needs: ClassVar[Needs] = Needs.GRADIENTS
    variables: ClassVar[int] = 1
    """Number of masks that are optimised together."""
    start: ClassVar[float] = 1.0
    """Initial value of all masks; 1 hides nothing."""
    published_settings: ClassVar[Mapping[str, Any]] = {}
    """Parameters as published."""
    inserted_levels: ClassVar[float] = 0.75
    """Share of the level terms that insert; the others delete. For masks finer than `COARSE`, all insert."""

    mask_size: int = parameter(28, "Side of the square mask in cells", minimum=7, maximum=224)
    iterations: int = parameter(20, "Steps of the optimiser", minimum=1, maximum=1000)
    points: int = parameter(4, "Points of the integrated gradient for each term and step", minimum=1, maximum=100)
    levels: int = parameter(4, "Level sets of the saliency evaluated in each step", minimum=0, maximum=100)
    l1_weight: float = parameter(1.0, "Weight of the masked area (L1), relative to the unmasked score", minimum=0)
    tv_weight: float = parameter(
        20.0, "Weight of the total variation of the mask, relative to the unmasked score", minimum=0
    )
    btv_weight: float = parameter(20.0, "Weight of the bilateral total variation, at image size", minimum=0)
    noise: float = parameter(0.2, "Standard deviation of the noise on the normalised input", minimum=0, maximum=10)
    step_size: float = parameter(
        0.1, "Size of the first step, in units of the mask", minimum=0, maximum=1, exclusive_minimum=True
    )
    optimizer: str = parameter("adam", "Optimiser of the objective", choices=tuple(OPTIMISERS))
    protocol: str = parameter(
        "sagittal",
        "Source of the settings; `published` uses those of the paper except for mask size, noise and starts",
        choices=PROTOCOLS,
    )
    starts: int = parameter(1, "Number of diverse masks, each from another start", minimum=1, maximum=16)
    tolerance: float = parameter(
        1e-3, "Mean change per step below which the mask has converged; 0 runs all iterations", minimum=0, maximum=1
    )

    additions: Additions = Additions()

    def published(self) -> Self:
        """Returns the method of the paper, with the mask size, the noise and the starts of this one."""
        return replace(self, protocol="sagittal", additions=PUBLISHED, **self.published_settings)

    @abstractmethod
    def terms(self, masks: Tensor) -> Sequence[Terms]:
        """Returns the objective's terms for masks (variables, size, size), in parts that alternate between steps.

        The objective is the mean of the parts.
        """

    @abstractmethod
    def kept(self, masks: Tensor) -> Tensor:
        """Returns the final mask (size, size) for the optimised masks."""

    def candidates(self, masks: Tensor) -> Sequence[Tensor]:
        """Returns the masks (size, size) of which the best becomes the result, beginning with that of `kept`."""
        return [self.kept(masks)]

    def path(self, terms: int, generator: torch.Generator) -> Tensor:
        """Returns the points on the path of each term, of shape (terms, points), from 0 to 1."""
        if self.additions.random_path:
            return stratified(terms, self.points, generator)
        return (torch.arange(1, self.points + 1) / self.points).expand(terms, -1)

    def explain(self, problem: Problem) -> Steps[None]:
        """Yields progress, forming masks, the final mask of each start, and a checkpoint after each step."""
        if self.protocol == "published":
            yield from self.published().explain(problem)
            return
        done = [*problem.restored.get("done", ())]
        for index in range(self.starts):
            if index == len(done):
                kept = yield from self._optimise(problem, done)
                if kept is None:
                    return
                done.append(kept)
            yield SaliencyMask(1 - done[index], index=index)

    def _optimise(self, problem: Problem, done: Sequence[Tensor]) -> Steps[Tensor | None]:
        """Returns the final mask of the next start, or None if the budget ended first and another mask is finished."""
        index, state = len(done), within(problem.restored, f"start-{len(done)}")
        optimiser = partial(OPTIMISERS[self.optimizer], self.step_size)
        averaged = AVERAGED if self.additions.averaged else 0.0
        descent = _Descent(self._start(problem, index), optimiser, state, averaged)
        try:
            for size, end in self._stages():
                yield from self._stage(problem, descent, size, end, done)
            if self.levels and self.additions.best_scale:
                found = [1 - mask for mask in self.candidates(descent.average.masks)]
                return 1 - (yield from chosen_scale(problem, found))
        except OutOfBudget as spent:
            yield Truncated(spent.limit)
            if index and descent.average.untouched:
                return None
        return self._kept(descent)

    def _stages(self) -> Sequence[tuple[int, int]]:
        """Returns the successive sizes of the masks, and the last step of each; the last size has at least one step."""
        if self.mask_size <= COARSE or not self.additions.coarse_first:
            return [(self.mask_size, self.iterations)]
        return [(COARSE, int((1 - FINE_SHARE) * self.iterations)), (self.mask_size, self.iterations)]

    def _stage(self, problem: Problem, descent: _Descent, size: int, end: int, done: Sequence[Tensor]) -> Steps[None]:
        """Descends on masks of one size until its last step, or until they have converged."""
        if descent.step >= end:
            return
        index = len(done)
        descent.enlarge(size)
        while descent.step < end and not descent.average.settled(self.tolerance):
            place = (index, descent.step)
            masks, objective = yield from self._descend(problem, descent.masks, descent.optimiser, place)
            descent.move(masks, descent.step / self.iterations)
            yield Progress((index + descent.step / self.iterations) / self.starts, objective)
            yield SaliencyMask(1 - self._kept(descent), final=False, index=index)
            yield descent.checkpoint(done)
        descent.step = end

    def _kept(self, descent: _Descent) -> Tensor:
        """Returns the current mask at the requested size."""
        return enlarged(self.kept(descent.average.masks).unsqueeze(0), self.mask_size)[0]

    def _start(self, problem: Problem, index: int) -> Tensor:
        """Returns the initial masks: constant for the first start, with one lowered region for each further start."""
        size = self._stages()[0][0]
        masks = problem.full(size, self.start if self.additions.half_way else 1.0).repeat(self.variables, 1, 1)
        if index:
            order = torch.randperm(LOWERED_GRID**2, generator=problem.generator("starts"))
            row, column = divmod(int(order[index % LOWERED_GRID**2]), LOWERED_GRID)
            edges = torch.linspace(0, size, LOWERED_GRID + 1).round().int().tolist()
            masks[:, edges[row] : edges[row + 1], edges[column] : edges[column + 1]] = LOWERED
        return masks

    def regulariser(self, mask: Tensor, problem: Problem) -> Tensor:
        """Returns `f(I) * (L1 * |1 - M| + 1/2 (TV * tv(M) + BTV * btv(M upsampled)))`, f(I) the unmasked score."""
        batch = mask.unsqueeze(0)
        fineness = (mask.shape[-1] / COARSE) ** 2 if self.additions.any_size else 1.0
        roughness = self.tv_weight * fineness * regularisers.total_variation(batch)
        if self.btv_weight:
            large = problem.enlarged(batch)
            roughness = roughness + self.btv_weight * regularisers.bilateral_total_variation(large, problem.edges)
        penalty = self.l1_weight * regularisers.area(batch)[0] + roughness[0] / 2
        return problem.unmasked_score * penalty if self.additions.relative else penalty

    def _descend(
        self, problem: Problem, masks: Tensor, optimiser: Optimiser, place: tuple[int, int]
    ) -> Steps[tuple[Tensor, float]]:
        """Takes one step; returns the new masks and the objective before it."""
        masks = masks.clone().requires_grad_()
        with torch.enable_grad():
            kept = self.kept(masks)
            terms = self._part(masks, place[1])
            penalty = self.regulariser(kept, problem)
        u = self.path(len(terms.deletions) + len(terms.insertions), problem.generator("path", *place))
        paths = _Paths(terms, u)
        levels = _Levels(1 - kept.detach(), self, problem.generator("levels", *place))
        batch = torch.cat([paths.masks.flatten(0, 1), levels.masks])
        seed = problem.noise_seed(*place)
        scores = yield from problem.evaluate(batch, gradient=True, noise=self.noise, noise_seed=seed)
        data, level = torch.split(gradient_of(scores), [len(batch) - len(levels.masks), len(levels.masks)])
        with torch.enable_grad():
            surrogate = paths.surrogate(data)
        gradient = torch.autograd.grad(surrogate, masks, retain_graph=True)[0]
        if len(level):
            gradient = gradient + levels.gradient(level, kept, masks, gradient)
        gradient = gradient + torch.autograd.grad(penalty, masks)[0]
        objective = paths.objective(scores.target[: len(data)]) + float(penalty.detach())

        def trial(moved: Tensor) -> Steps[float]:
            return (yield from self._objective(problem, moved, u, seed, place[1]))

        share = place[1] / self.iterations
        moved = yield from optimiser.step(masks.detach(), gradient, objective, trial, share)
        return moved, objective

    def _objective(self, problem: Problem, masks: Tensor, u: Tensor, seed: int, step: int) -> Steps[float]:
        """Returns the objective at masks, with the part, points and noise of that step's gradient."""
        paths = _Paths(self._part(masks, step), u)
        scores = yield from problem.evaluate(paths.masks.flatten(0, 1), noise=self.noise, noise_seed=seed)
        return paths.objective(scores.target) + float(self.regulariser(self.kept(masks), problem))

    def _part(self, masks: Tensor, step: int) -> Terms:
        """Returns the part of the objective that a step descends on."""
        parts = self.terms(masks)
        if self.additions.alternating:
            return parts[step % len(parts)]
        deletions, insertions = [part.deletions for part in parts], [part.insertions for part in parts]
        return Terms(torch.cat(deletions), torch.cat(insertions), weight=1 / len(parts))


class _Paths:
    """Points on the paths of all terms."""

    def __init__(self, terms: Terms, u: Tensor) -> None:
        self._terms = terms
        self._deleted = len(terms.deletions)
        self._u = u.to(terms.deletions.device).unsqueeze(-1).unsqueeze(-1)
        deletions = self._u[: self._deleted] * terms.deletions.detach().unsqueeze(1)
        insertions = 1 - self._u[self._deleted :] * terms.insertions.detach().unsqueeze(1)
        self.masks = torch.cat([deletions, insertions])
        """Masks to evaluate, of shape (terms, points, size, size)."""

    def surrogate(self, gradient: Tensor) -> Tensor:
        """Returns a scalar whose gradient is the integrated gradient of the objective.

        The derivative of a score by its term is u times the derivative by the evaluated mask. Insertions count negative
        and are evaluated on the complement, so that the two signs cancel.
        """
        along = (self._u * gradient.view_as(self.masks)).mean(1)
        return self._terms.weight * (along * torch.cat([self._terms.deletions, self._terms.insertions])).sum()

    def objective(self, scores: Tensor) -> float:
        """Returns the objective without its regulariser: deletion scores minus insertion scores."""
        means = scores.view(self.masks.shape[:2]).mean(1)
        return self._terms.weight * float(means[: self._deleted].sum() - means[self._deleted :].sum())


class _Levels:
    """Level sets of the saliency, some inserted and some deleted."""

    def __init__(self, saliency: Tensor, settings: MaskOptimisation, generator: torch.Generator) -> None:
        u = stratified(1, settings.levels, generator)[0].to(saliency.device)
        # The edges of small cells are sharp, and delete by themselves.
        share = settings.inserted_levels if saliency.shape[-1] <= COARSE else 1.0
        inserted = torch.rand(settings.levels, 1, 1, generator=generator).to(u) < share
        keep, self._slope = level_sets(saliency, u) if settings.levels else (saliency[None][:0], saliency[None][:0])
        self.masks = torch.where(inserted, keep, 1 - keep)
        """Masks to evaluate, of shape (levels, size, size)."""

    def gradient(self, gradient: Tensor, kept: Tensor, masks: Tensor, data: Tensor) -> Tensor:
        """Returns the gradient of the level terms by the masks, in proportion to that of the other terms.

        A higher saliency raises the score of an inserted level and lowers the score of a deleted one. Both are desired,
        so that both are descended the same way. The kept mask is one minus the saliency.
        """
        by_kept = level_gradient(gradient, self._slope)
        along = torch.autograd.grad(kept, masks, by_kept, retain_graph=True)[0]
        return along * (LEVEL_WEIGHT * data.abs().mean() / (along.abs().mean() + 1e-12))

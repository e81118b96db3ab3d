"""Mask optimisation by integrated gradients: what I-GOS, iGOS+ and iGOS++ have in common.

Qi, Khorram, Li: Visualizing Deep Networks by Optimizing with Integrated Gradients (AAAI 2020); Khorram, Lawson, Li:
iGOS++ (CHIL 2021). The masks minimise the score when the salient part is deleted, maximise it when only that part is
inserted, and stay small and smooth. The descent direction is an integrated gradient, the mean gradient over a path from
the baseline (or the image) to the masked image, which sees past local optima.

Where our defaults differ from the papers, and why (`Additions` names each, and `protocol="published"` is without them):
- The points of a path are drawn at random, one from each of `points` equal strata, anew in every iteration: 4 points do
  then over the iterations what 15 to 20 fixed ones do.
- All terms of a step are evaluated in one batch, and steps are Adam's, decaying to zero: they need neither a line
  search (which made up three quarters of the authors' evaluations) nor a step size that fits one model's gradients.
- iGOS++ takes the terms of the product and those of each mask alone in turn: more steps do more than more terms do.
- `levels` terms ask for the order of cells that the curves measure (see `level_sets`).
- The regulariser is relative to the full score, as the data terms are bounded by it: in the papers' objective it
  outweighs them where the class is seen with little confidence, and the mask vanishes.
- A descent whose mask has settled ends.
- A mask finer than 28 cells takes its first steps at 28: cells that small say too little to find a part by themselves.
  Its level sets are then all inserted: their edges are so sharp that they delete a class without covering it.
- Steps are smoothed a little, and the result is the mean of the last iterations, at the scale that its curves are best
  at (see `scales`). Without `levels` it stays as it is.
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
"""Mean size of the level terms' gradient over that of the others'."""

FINE_SHARE = 0.4
"""Share of the steps, the last ones, that a mask finer than `COARSE` takes at its own size."""

LOWERED, LOWERED_GRID = 0.3, 4
"""What the start of a further mask is lowered to in one cell of a grid of this side, so that it ends elsewhere."""


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """Masks whose scores make the objective: deletions are to score low, insertions high."""

    deletions: Tensor
    """Shape (d, size, size); evaluated from the baseline (u = 0) to the mask (u = 1)."""
    insertions: Tensor
    """Shape (i, size, size); evaluated from the image (u = 0) to the complement of the mask (u = 1)."""
    weight: float = 1.0
    """Of each term in the objective."""


class _Descent:
    """Where a descent is: its masks, their average, and the optimiser, all of one size at a time."""

    def __init__(
        self, masks: Tensor, optimiser: Callable[[State], Optimiser], state: State, averaged: float = AVERAGED
    ) -> None:
        """Starts with the first masks, or where another descent with this state stopped."""
        self._make, self._averaged = optimiser, averaged
        self.step = int(state.get("step", 0))
        self.masks = state.get("masks", masks)
        self.average = Average(self.masks, within(state, "average"), share=averaged)
        self.optimiser = optimiser(within(state, "optimiser"))

    def enlarge(self, size: int) -> None:
        """Goes on with masks of another size, without memory of earlier steps."""
        if self.masks.shape[-1] != size:
            self.masks = enlarged(self.average.masks, size)
            self.average, self.optimiser = Average(self.masks, share=self._averaged), self._make({})

    def move(self, masks: Tensor, share: float) -> None:
        """Takes in the masks after a step, which was made when `share` of all were done."""
        self.masks = masks
        self.average.add(masks, share)
        self.step += 1

    def checkpoint(self, done: Sequence[Tensor]) -> Checkpoint:
        """Returns all that the steps to come depend on: what is random follows from the seed and the step."""
        state = {"step": torch.tensor(self.step), "masks": self.masks}
        state |= prefixed("average", self.average.state) | prefixed("optimiser", self.optimiser.state)
        return Checkpoint(prefixed(f"start-{len(done)}", state) | ({"done": torch.stack([*done])} if done else {}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Additions:
    """What we add to the published methods beside numbers: each by its name, and each of them can be left out."""

    relative: bool = True
    """The regulariser is multiplied by the unmasked score."""
    any_size: bool = True
    """The total variation is weighed by the number of cells, so that its weight means the same at every mask size."""
    random_path: bool = True
    """Points of a path are drawn at random, one in each stratum; they are 1/K, 2/K ... 1 else."""
    alternating: bool = True
    """The parts of the objective are taken in turn; each step takes the mean of all else."""
    half_way: bool = True
    """Masks start at the explainer's `start`; at 1 else, which hides nothing."""
    averaged: bool = True
    """The result is the mean of the last steps; it is the last mask else."""
    best_scale: bool = True
    """The result is smoothed to the scale at which its own curves are best, if there are level sets."""
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
    """Masks that are optimised together."""
    start: ClassVar[float] = 1.0
    """Value that all masks start with; 1 hides nothing."""
    published_settings: ClassVar[Mapping[str, Any]] = {}
    """Parameters as published."""
    inserted_levels: ClassVar[float] = 0.75
    """Share of the level terms that insert; the others delete. Of masks finer than `COARSE` all insert."""

    mask_size: int = parameter(28, "Side of the square mask in cells", minimum=7, maximum=224)
    iterations: int = parameter(20, "Steps of the optimiser", minimum=1, maximum=1000)
    points: int = parameter(4, "Points of the integrated gradient for each term and step", minimum=1, maximum=100)
    levels: int = parameter(4, "Level sets of the saliency evaluated in each step", minimum=0, maximum=100)
    l1_weight: float = parameter(1.0, "Weight of the masked area (L1), relative to the full score", minimum=0)
    tv_weight: float = parameter(
        20.0, "Weight of the total variation of the mask, relative to the full score", minimum=0
    )
    btv_weight: float = parameter(20.0, "Weight of the bilateral total variation, at image size", minimum=0)
    noise: float = parameter(0.2, "Standard deviation of the noise on the normalised input", minimum=0, maximum=10)
    step_size: float = parameter(
        0.1, "Size of the first step, in units of the mask", minimum=0, maximum=1, exclusive_minimum=True
    )
    optimizer: str = parameter("adam", "How the objective is minimised", choices=tuple(OPTIMISERS))
    protocol: str = parameter(
        "sagittal",
        "Whose settings to follow; `published` takes those of the paper but for size, noise and starts",
        choices=PROTOCOLS,
    )
    starts: int = parameter(1, "Diverse masks, each from another start", minimum=1, maximum=16)
    tolerance: float = parameter(
        1e-3, "Mean change of the mask in a step below which it has settled; 0 takes every step", minimum=0, maximum=1
    )

    additions: Additions = Additions()

    def published(self) -> Self:
        """Returns the method as the paper has it, with the mask size, the noise and the starts of this one."""
        return replace(self, protocol="sagittal", additions=PUBLISHED, **self.published_settings)

    @abstractmethod
    def terms(self, masks: Tensor) -> Sequence[Terms]:
        """Returns the objective's terms for masks (variables, size, size), in parts that the steps take in turn.

        The objective is the mean of the parts.
        """

    @abstractmethod
    def kept(self, masks: Tensor) -> Tensor:
        """Returns the one mask (size, size) that the variables stand for."""

    def candidates(self, masks: Tensor) -> Sequence[Tensor]:
        """Returns the masks (size, size) of which the best is kept in the end; the one that they stand for first."""
        return [self.kept(masks)]

    def path(self, terms: int, generator: torch.Generator) -> Tensor:
        """Returns where on the path of each term the gradient is taken: (terms, points), from 0 to 1."""
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
        """Returns the kept mask of the next start; None where a spent budget left it none and others are done."""
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
        """Returns the sizes that the masks have in turn, and the step that each ends at: the last has one at least."""
        if self.mask_size <= COARSE or not self.additions.coarse_first:
            return [(self.mask_size, self.iterations)]
        return [(COARSE, int((1 - FINE_SHARE) * self.iterations)), (self.mask_size, self.iterations)]

    def _stage(self, problem: Problem, descent: _Descent, size: int, end: int, done: Sequence[Tensor]) -> Steps[None]:
        """Descends on masks of one size to the step at which it ends, or until they have settled."""
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
        """Returns the kept mask as it is so far, at the size that was asked for."""
        return enlarged(self.kept(descent.average.masks).unsqueeze(0), self.mask_size)[0]

    def _start(self, problem: Problem, index: int) -> Tensor:
        """Returns the first masks: level for the first start, lowered in one cell of a coarse grid for each other."""
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
        return problem.full_score * penalty if self.additions.relative else penalty

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
        """Returns the objective at masks, with the same part, points and noise as the gradient of that step."""
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

        The derivative of a score by its term is u times the derivative by the evaluated mask; for insertions, which
        count negative and are evaluated on the complement, the two signs cancel.
        """
        along = (self._u * gradient.view_as(self.masks)).mean(1)
        return self._terms.weight * (along * torch.cat([self._terms.deletions, self._terms.insertions])).sum()

    def objective(self, scores: Tensor) -> float:
        """Returns the objective without its regulariser: deletion scores less insertion scores."""
        means = scores.view(self.masks.shape[:2]).mean(1)
        return self._terms.weight * float(means[: self._deleted].sum() - means[self._deleted :].sum())


class _Levels:
    """Level sets of the saliency, some inserted and some deleted."""

    def __init__(self, saliency: Tensor, settings: MaskOptimisation, generator: torch.Generator) -> None:
        u = stratified(1, settings.levels, generator)[0].to(saliency.device)
        # Where cells are small their edges are sharp, and delete by themselves.
        share = settings.inserted_levels if saliency.shape[-1] <= COARSE else 1.0
        inserted = torch.rand(settings.levels, 1, 1, generator=generator).to(u) < share
        keep, self._slope = level_sets(saliency, u) if settings.levels else (saliency[None][:0], saliency[None][:0])
        self.masks = torch.where(inserted, keep, 1 - keep)
        """Masks to evaluate, of shape (levels, size, size)."""

    def gradient(self, gradient: Tensor, kept: Tensor, masks: Tensor, data: Tensor) -> Tensor:
        """Returns the gradient of the level terms by the masks, in proportion to that of the other terms.

        A rising saliency raises an inserted level's score, which is wanted, and lowers a deleted one's, which is wanted
        too: both are descended the same way, and the kept mask is one less the saliency.
        """
        by_kept = level_gradient(gradient, self._slope)
        along = torch.autograd.grad(kept, masks, by_kept, retain_graph=True)[0]
        return along * (LEVEL_WEIGHT * data.abs().mean() / (along.abs().mean() + 1e-12))

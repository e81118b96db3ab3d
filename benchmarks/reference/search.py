"""The reference implementation of the beam search for sufficient sets, reimplemented with its faults.

Patches are ordered by two steps of a coarse I-GOS. A beam of states grows by the first successors of each in that
order. Of all successors, best first, each sufficient one is minimised greedily in row-major order, and the best of the
others are the next beam. As in the published code, an off-by-one keeps one state more than named, successors are not
de-duplicated, roots are counted only at the end of a level, and every score is evaluated again. Patches are tents.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from reference.descent import Spared, variation
from sagittal.engine.requests import OutOfBudget, Upsampling, gradient_of
from sagittal.explain.events import Progress, SufficientSet, Truncated
from sagittal.explain.problem import Problem
from sagittal.explain.sets.certificates import Claim, causal_triple
from sagittal.explain.sets.patches import masks_of, members
from sagittal.explain.sets.scoring import Memo
from sagittal.explain.sets.sufficient_sets import PatchSearch
from sagittal.explain.steps import Steps
from sagittal.imaging.patch_sets import diverse_family

BEAM = 4
"""States kept: 3 and one more."""

SUCCESSORS = 15
"""Successors of each state."""

ROOTS = 10
"""The search ends after the level that finds more roots than this."""

ORDER_STEPS, ORDER_POINTS, ORDER_NOISE = 2, 20, 0.2
"""Steps of the I-GOS that orders the patches, points of its integrated gradient, and its noise."""

FIRST_STEP, DECAY, SHORTEST_STEP, ARMIJO = 200.0, 0.2, 1e-5, 1e-4
"""Parameters of the line search of each of these steps, on the plain objective."""

L1, TV = 1.0, 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSearch(PatchSearch):
    """The sufficient sets that the reference implementation finds."""

    spared: Spared | None = None
    """If given, no set is evaluated twice, and the evaluations that this saves are counted here."""

    def explain(self, problem: Problem) -> Steps[None]:
        """Yields the roots, certified as sufficient only, when the search has ended."""
        yield from _roots(problem, self.memo(problem), self.max_overlap, self.spared)


def _roots(problem: Problem, memo: Memo, max_overlap: int, spared: Spared | None) -> Steps[None]:
    memo.upsampling = Upsampling.ALIGNED
    roots: list[int] = []
    try:
        order = yield from _order(problem, memo.grid)
        yield from _search(_Scorer(memo, spared), order, roots)
    except OutOfBudget as spent:
        yield Truncated(spent.limit)
    yield from _report(memo, roots, max_overlap)


def _order(problem: Problem, grid: int) -> Steps[list[int]]:
    """Returns the patches, most important first."""
    mask = problem.full(grid, 1.0)
    points = torch.arange(1, ORDER_POINTS + 1, device=mask.device).view(-1, 1, 1) / ORDER_POINTS
    for step in range(ORDER_STEPS):
        scores = yield from problem.evaluate(
            points * mask,
            gradient=True,
            noise=ORDER_NOISE,
            noise_seed=problem.noise_seed("order", step),
            upsampling=Upsampling.ALIGNED,
        )
        leaf = mask.clone().requires_grad_()
        with torch.enable_grad():
            penalty = torch.autograd.grad(_penalty(leaf), leaf)[0]
        mask = yield from _line_search(problem, mask, (points * gradient_of(scores)).mean(0) + penalty)
    return mask.flatten().argsort(stable=True).tolist()


def _line_search(problem: Problem, mask: Tensor, gradient: Tensor) -> Steps[Tensor]:
    """Returns the mask after a step; the shortest step is taken even if it does not descend."""
    base, length = (yield from _objective(problem, mask)), FIRST_STEP
    while True:
        moved = (mask - length * gradient).clamp(0, 1)
        value = yield from _objective(problem, moved)
        if value <= base - ARMIJO * length * float((gradient**2).sum()) or length < SHORTEST_STEP:
            return moved
        length *= DECAY


def _objective(problem: Problem, mask: Tensor) -> Steps[float]:
    scores = yield from problem.evaluate(mask.unsqueeze(0), upsampling=Upsampling.ALIGNED)
    return float(scores.target) + float(_penalty(mask))


def _penalty(mask: Tensor) -> Tensor:
    return L1 * (1 - mask).abs().mean() + TV * variation(mask)


@dataclass(frozen=True, slots=True)
class _Scorer:
    """Evaluates all sets, or skips known ones and counts them."""

    memo: Memo
    spared: Spared | None

    def score(self, sets: list[int]) -> Steps[None]:
        """Ensures that sets are scored."""
        wanted = sets
        if self.spared is not None:
            wanted = self.memo.unseen(sets)
            self.spared.evaluations += len(sets) - len(wanted)
        if wanted:
            memo = self.memo
            masks = masks_of(wanted, memo.grid, memo.problem.image.device)
            memo.store(wanted, (yield from memo.problem.evaluate(masks, upsampling=memo.upsampling)), exact=False)


def _search(scorer: _Scorer, order: list[int], roots: list[int]) -> Steps[None]:
    memo, beam = scorer.memo, [0]
    for level in range(len(order)):
        yield Progress(level / len(order), phase="grow")
        successors: list[int] = []
        for state in beam:
            successors += [state | 1 << patch for patch in order if not state >> patch & 1][:SUCCESSORS]
        yield from scorer.score(successors)
        ranked = sorted(successors, key=memo.merit, reverse=True)
        for successor in filter(memo.sufficient, ranked):
            root = yield from _minimise(scorer, successor)
            if root not in roots:
                roots.append(root)
        if len(roots) > ROOTS:
            return
        beam = [successor for successor in ranked if not memo.sufficient(successor)][:BEAM]


def _minimise(scorer: _Scorer, bits: int) -> Steps[int]:
    """Returns the rest when patches, in row-major order, are removed if the remaining set is sufficient."""
    while True:
        before = bits
        for patch in members(before):
            rest = bits & ~(1 << patch)
            yield from scorer.score([rest])
            if scorer.memo.sufficient(rest):
                bits = rest
        if bits == before:
            return bits


def _report(memo: Memo, roots: list[int], max_overlap: int) -> Steps[None]:
    family = diverse_family({bits: memo[bits].score for bits in roots}, max_overlap)
    for bits in roots:
        try:
            causal = yield from causal_triple(memo, bits)
        except OutOfBudget:
            return
        if memo.sufficient(bits):
            claim = Claim(bits, checked=1)
            scored, diverse = memo[bits], bits in family
            yield SufficientSet(
                memo.grid,
                members(bits),
                scored.score,
                claim.certificate(memo),
                causal,
                diverse,
                scored.top,
                memo.evaluations,
            )

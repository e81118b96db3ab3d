"""The authors' beam search as published, faults included: for comparison in benchmarks only.

Patches are ordered by two steps of a coarse I-GOS; a beam of states grows by the first successors in that order, and
each sufficient one is minimised greedily in row-major order. As in the published code, off-by-ones keep one state and
one root more than named, successors are never de-duplicated, and every score is evaluated anew. Patches are tents.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sagittal.explain.authors import Spared
from sagittal.explain.certificates import Claim, causal_triple
from sagittal.explain.diversity import diverse_family
from sagittal.explain.patches import masks_of, members
from sagittal.explain.problem import Problem
from sagittal.explain.scoring import Memo
from sagittal.explain.seam import OutOfBudget, Progress, Scores, Steps, SufficientSet, Truncated, Upsampling

BEAM = 4
"""States kept: 3 and one more."""

SUCCESSORS = 15
"""Successors of each state."""

ROOTS = 11
"""Roots after which the search ends: 10 and one more."""

ORDER_STEPS = 2
"""Steps of the I-GOS that orders the patches."""

ORDER_POINTS = 20
"""Points of its integrated gradient."""

STEP = 0.5
"""Its step, as a share of the largest gradient: here we differ, since the published step is tuned by a line search."""


def authors_search(problem: Problem, memo: Memo, max_overlap: int, spared: Spared | None = None) -> Steps:
    """Yields the roots, certified as sufficient and no more, when the search has ended.

    Where `spared` is given, no set is evaluated twice, and what was spared by that is counted there.
    """
    memo.upsampling = Upsampling.ALIGNED
    roots: list[int] = []
    try:
        order = yield from _order(problem, memo.grid)
        yield from _search(_Scorer(memo, spared), order, roots)
    except OutOfBudget as spent:
        yield Truncated(spent.limit)
    yield from _report(memo, roots, max_overlap)


def _order(problem: Problem, grid: int) -> Steps:
    """Returns the patches, most important first."""
    mask = problem.full(grid, 1.0)
    points = torch.arange(1, ORDER_POINTS + 1, device=mask.device).view(-1, 1, 1) / ORDER_POINTS
    for step in range(ORDER_STEPS):
        scores: Scores = yield problem.evaluate(
            points * mask,
            gradient=True,
            noise=0.2,
            noise_seed=problem.noise_seed("order", step),
            upsampling=Upsampling.ALIGNED,
        )
        gradient = (points * _gradient(scores)).mean(0)
        mask = (mask - STEP * gradient / gradient.abs().max().clamp(min=1e-12)).clamp(0, 1)
    return mask.flatten().argsort().tolist()


def _gradient(scores: Scores) -> Tensor:
    if scores.gradient is None:
        raise ValueError("the evaluator answered without the gradient that was asked for")
    return scores.gradient


@dataclass(frozen=True, slots=True)
class _Scorer:
    """Evaluates sets whether or not they are known, or leaves those that are and counts them."""

    memo: Memo
    spared: Spared | None

    def score(self, sets: list[int]) -> Steps:
        """Sees to it that sets are scored."""
        wanted = sets
        if self.spared is not None:
            wanted = self.memo.unseen(sets)
            self.spared.evaluations += len(sets) - len(wanted)
        if wanted:
            memo = self.memo
            masks = masks_of(wanted, memo.grid, memo.problem.image.device)
            memo.store(wanted, (yield memo.problem.evaluate(masks, upsampling=memo.upsampling)), exact=False)


def _search(scorer: _Scorer, order: list[int], roots: list[int]) -> Steps:
    memo, beam = scorer.memo, [0]
    for level in range(len(order)):
        yield Progress(level / len(order), phase="grow")
        grown: list[int] = []
        for state in beam:
            successors = [state | 1 << patch for patch in order if not state >> patch & 1][:SUCCESSORS]
            yield from scorer.score(successors)
            for successor in successors:
                if not memo.sufficient(successor):
                    grown.append(successor)
                    continue
                root = yield from _minimise(scorer, successor)
                if root not in roots:
                    roots.append(root)
                if len(roots) == ROOTS:
                    return
        beam = sorted(grown, key=memo.merit, reverse=True)[:BEAM]


def _minimise(scorer: _Scorer, bits: int) -> Steps:
    """Returns what is left when each patch, in row-major order, is dropped where the rest still suffices."""
    for patch in members(bits):
        rest = bits & ~(1 << patch)
        yield from scorer.score([rest])
        if scorer.memo.sufficient(rest):
            bits = rest
    return bits


def _report(memo: Memo, roots: list[int], max_overlap: int) -> Steps:
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

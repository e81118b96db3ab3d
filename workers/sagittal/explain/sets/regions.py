"""Scores of regions chosen by the caller, each shown alone or hidden."""

from collections.abc import Sequence
from dataclasses import dataclass

from sagittal.engine.requests import Upsampling
from sagittal.explain.events import ClassScore, RegionScores
from sagittal.explain.parameters import InvalidParameter
from sagittal.explain.problem import Problem, Question, prepare
from sagittal.explain.sets.patches import everything
from sagittal.explain.sets.scoring import Memo, Threshold
from sagittal.explain.steps import Steps
from sagittal.imaging.patch_sets import bits_of


@dataclass(frozen=True, slots=True)
class RegionScore:
    """Scores of an image with a region shown alone or hidden."""

    score: float
    """Probability of the target."""
    top: ClassScore


def score_regions(
    problem: Problem,
    grid: int,
    sets: Sequence[Sequence[int]],
    *,
    hide: bool = False,
    upsampling: Upsampling = Upsampling.BOX,
) -> Steps[list[RegionScore]]:
    """Returns a RegionScore for each set of patches (row * grid + column), in order, in full precision.

    Equal sets are evaluated once. Raises InvalidParameter for a patch outside the grid.
    """
    cells = everything(grid)
    shown = [_bits(patches, grid) ^ (cells if hide else 0) for patches in sets]
    memo = Memo(
        problem=problem, grid=grid, rule=Threshold(required_score=problem.unmasked_score), upsampling=upsampling
    )
    yield from memo.measure(shown)
    scored = [memo[bits] for bits in shown]
    return [RegionScore(each.score, each.top) for each in scored]


def ask_regions(
    question: Question,
    grid: int,
    sets: Sequence[Sequence[int]],
    *,
    hide: bool = False,
    upsampling: Upsampling = Upsampling.BOX,
) -> Steps[None]:
    """Yields the requests, Prediction and warnings of `prepare`, then the RegionScores of the sets in order."""
    problem: Problem = yield from prepare(question)
    scored: list[RegionScore] = yield from score_regions(problem, grid, sets, hide=hide, upsampling=upsampling)
    full = ClassScore(problem.target, problem.unmasked_score)
    yield RegionScores(full, tuple(each.score for each in scored), tuple(each.top for each in scored))


def _bits(patches: Sequence[int], grid: int) -> int:
    outside = [patch for patch in patches if not 0 <= patch < grid**2]
    if outside:
        raise InvalidParameter("sets", f"has patch {outside[0]}; a {grid} x {grid} grid has patches 0 to {grid**2 - 1}")
    return bits_of(patches)

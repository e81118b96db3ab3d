import pytest

from sagittal.explain.beam import eliminate, grow
from sagittal.explain.patches import everything, members
from sagittal.explain.scoring import Memo, Threshold
from sagittal.explain.surrogate import contributions


def found(steps, score, grid, search):
    """Returns what a search found, and the memo."""
    kept = {}

    def make(problem):
        memo = kept["memo"] = Memo(problem=problem, grid=grid, rule=Threshold(required_score=0.9 * problem.full_score))
        yield from memo.evaluate([0, memo.all])
        kept["bits"] = yield from search(memo)

    steps(score, grid, make)
    return kept["bits"], kept["memo"]


def test_elimination_ends_where_no_patch_can_go(steps, known):
    bits, _ = found(steps, known.any_of([0, 10, 20, 30]), 7, lambda memo: eliminate(memo, memo.all))
    assert members(bits) == (0, 10, 20, 30)


def test_growth_finds_the_smallest_set_of_an_additive_score(steps, known):
    weights = [0.001] * 49
    weights[4], weights[11], weights[40] = 0.5, 0.3, 0.1
    bits, _ = found(steps, known.additive(weights), 7, lambda memo: grow(memo, memo.all, width=2, below=9, bound=400))
    assert members(bits) == (4, 11, 40)


def test_growth_stays_in_its_region_and_below_its_size(steps, known):
    score = known.any_of([0, 1], [10, 11, 12])
    region = everything(7) & ~1
    bits, _ = found(steps, score, 7, lambda memo: grow(memo, region, width=4, below=4, bound=400))
    assert members(bits) == (10, 11, 12)
    bits, _ = found(steps, score, 7, lambda memo: grow(memo, region, width=4, below=3, bound=400))
    assert bits is None


@pytest.mark.parametrize("bound", [10, 49, 100])
def test_growth_keeps_its_bound(steps, known, bound):
    _, memo = found(
        steps, known.any_of(range(12)), 7, lambda memo: grow(memo, memo.all, width=8, below=12, bound=bound)
    )
    assert memo.evaluations <= bound + 2


def test_the_surrogate_ranks_patches_by_what_they_add(steps, known):
    weights = [0.01] * 9
    weights[2], weights[7] = 0.4, 0.2
    _, memo = found(steps, known.additive(weights, 0.1), 3, lambda memo: memo.evaluate(range(0, 512, 5)))
    ranked = contributions(memo.scores, 9)
    assert sorted(range(9), key=lambda patch: -ranked[patch])[:2] == [2, 7]

import pytest
import torch

from sagittal.explain.sets.patches import everything, members
from sagittal.explain.sets.scoring import Memo, Threshold
from sagittal.explain.sets.search import best_patches, eliminate, exchanged, guesses, refine
from sagittal.imaging.patch_sets import bits_of


def found(steps, score, grid, search):
    """Returns what a search found, and the memo."""
    kept = {}

    def make(problem):
        memo = kept["memo"] = Memo(
            problem=problem, grid=grid, rule=Threshold(required_score=0.9 * problem.unmasked_score)
        )
        yield from memo.evaluate([0, memo.all])
        kept["bits"] = yield from search(memo)

    steps(score, grid, make)
    return kept["bits"], kept["memo"]


def test_elimination_ends_where_no_patch_can_go(steps, known):
    bits, _ = found(steps, known.any_of([0, 10, 20, 30]), 7, lambda memo: eliminate(memo, memo.all))
    assert members(bits) == (0, 10, 20, 30)


def refined(region, bound=300):
    return lambda memo: refine_in(memo, region, bound)


def refine_in(memo, region, bound):
    yield from memo.evaluate([region])
    return (yield from refine(memo, region, width=16, bound=bound))


def test_refinement_finds_the_smallest_set_of_an_additive_score(steps, known):
    weights = [0.001] * 49
    weights[4], weights[11], weights[40] = 0.5, 0.3, 0.1
    bits, _ = found(steps, known.additive(weights), 7, refined(everything(7)))
    assert members(bits) == (4, 11, 40)


def test_refinement_stays_in_its_region(steps, known):
    bits, _ = found(steps, known.any_of([0, 1], [10, 11, 12]), 7, refined(everything(7) & ~1))
    assert members(bits) == (10, 11, 12)


def test_few_patches_are_combined_until_none_of_the_promising_sets_is_smaller(steps, known):
    bits, memo = found(steps, known.any_of([3, 30], [4, 31, 45]), 7, refined(bits_of([3, 4, 30, 31, 45])))
    assert members(bits) == (3, 30)
    assert all(1 << patch in memo for patch in (3, 30))


@pytest.mark.parametrize("bound", [1, 49, 100])
def test_refinement_proposes_nothing_beyond_its_bound(steps, known, bound):
    _, memo = found(steps, known.any_of(range(49)), 7, refined(everything(7), bound))
    elimination = 49 + 6
    assert memo.evaluations < 2 + bound + 16 + elimination


def test_what_patches_add_is_guessed_from_the_scores_known(steps, known):
    weights = [0.01] * 9
    weights[2], weights[7] = 0.4, 0.2
    _, memo = found(steps, known.additive(weights, 0.1), 3, lambda memo: memo.evaluate(range(0, 512, 5)))
    for guess in guesses(memo.scores, 3, 2, 3, 0.0, memo.problem.generator()):
        assert best_patches(guess, everything(3), 2) == bits_of([2, 7])
        assert members(best_patches(guess, 0b111111011, 1)) == (7,)


def test_an_exchange_gives_the_worst_patches_for_the_best_of_the_region():
    guess = torch.tensor([0.0, 3.0, 1.0, 2.0, 9.0])
    first = bits_of([0, 1, 2])
    assert members(exchanged(guess, 0b01111, first, out=1, into=1)) == (1, 2, 3)
    assert members(exchanged(guess, 0b11111, first, out=2, into=2)) == (1, 3, 4)
    assert members(exchanged(guess, 0b11111, first, out=2, into=0)) == (1,)
    assert members(exchanged(guess, 0b01111, first, out=1, into=2)) == (1, 2, 3)

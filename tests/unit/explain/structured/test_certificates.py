from sagittal.explain.events import CertificateLevel
from sagittal.explain.sets.certificates import Claim, causal_triple, certify
from sagittal.explain.sets.patches import members
from sagittal.explain.sets.scoring import Memo, Threshold
from sagittal.imaging.patch_sets import bits_of


def certified(steps, score, grid, patches):
    """Returns the claim for some patches, and the memo it was made from."""
    kept = {}

    def make(problem):
        memo = kept["memo"] = Memo(
            problem=problem, grid=grid, rule=Threshold(required_score=0.9 * problem.unmasked_score)
        )
        claim = kept["claim"] = Claim()
        kept["certified"] = yield from certify(memo, bits_of(patches), claim)

    kept["run"] = steps(score, grid, make)
    return kept


def test_a_set_without_which_nothing_suffices_is_of_minimum_size(steps, known):
    kept = certified(steps, known.any_of([0, 4]), 3, [0, 4])
    assert kept["claim"].level is CertificateLevel.MINIMUM_SIZE
    assert kept["claim"].checked == 1 + 1 + 9


def test_surplus_patches_are_dropped(steps, known):
    kept = certified(steps, known.any_of([0, 4]), 3, [0, 1, 2, 4, 8])
    assert members(kept["claim"].bits) == (0, 4)


def test_a_smaller_set_elsewhere_bars_the_claim_of_minimum_size_but_leaves_the_set(steps, known):
    kept = certified(steps, known.any_of([0, 4], [1, 2, 3]), 3, [1, 2, 3])
    assert members(kept["claim"].bits) == (1, 2, 3)
    assert kept["claim"].level is CertificateLevel.SUBSET_MINIMAL
    assert kept["claim"].checked == 8
    assert members(kept["claim"].beaten_by) == (0, 4)


def test_a_score_that_is_not_monotone_does_not_fool_the_certificate(steps):
    # {0, 1, 2} suffices and no set of two does, but patch 0 alone does: one-minimal, and not subset-minimal.
    def score(shown):
        return (shown[:, 0] == 1).float() * ((shown.sum(-1) != 2).float() * 0.8 + 0.1)

    kept = certified(steps, score, 3, [0, 1, 2])
    assert members(kept["claim"].bits) == (0,)
    assert kept["claim"].level is CertificateLevel.MINIMUM_SIZE


def test_more_than_eight_patches_are_one_minimal_and_no_more_is_claimed(steps, known):
    kept = certified(steps, known.any_of(range(9)), 7, range(9))
    assert kept["claim"].level is CertificateLevel.ONE_MINIMAL
    assert kept["claim"].checked == 10


def test_an_insufficient_set_gets_no_claim(steps, known):
    kept = certified(steps, known.any_of([0, 4]), 3, [0, 1])
    assert kept["certified"] is False
    assert kept["claim"].bits == 0


def test_all_that_a_claim_speaks_of_was_evaluated(steps, known):
    kept = certified(steps, known.any_of([0, 1, 2, 3, 4]), 7, [0, 1, 2, 3, 4])
    assert kept["claim"].level is CertificateLevel.SUBSET_MINIMAL
    assert set(range(32)) <= set(kept["run"].model.evaluated)


def test_the_causal_triple_is_measured(steps, known):
    kept = {}

    def make(problem):
        memo = Memo(problem=problem, grid=3, rule=Threshold(required_score=0.5))
        kept["causal"] = yield from causal_triple(memo, bits_of([0, 1]))

    steps(known.additive([0.3, 0.2, 0.25, 0, 0, 0, 0, 0, 0]), 3, make)
    causal = kept["causal"]
    assert abs(causal.sufficiency - 0.5) < 1e-6
    assert abs(causal.without - 0.25) < 1e-6
    assert causal.top_without.index == 1
    assert abs(causal.top_without.score - 0.75) < 1e-6

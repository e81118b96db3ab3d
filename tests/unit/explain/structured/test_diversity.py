from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from sagittal.explain.sets.sufficient_sets import compatible, open_regions
from sagittal.imaging.patch_sets import diverse_family, overlap

SETS = st.dictionaries(st.integers(1, 2**9 - 1), st.floats(0, 1), max_size=9)


def families(sets, allowed):
    for size in range(len(sets) + 1):
        for family in combinations(sets, size):
            if all(overlap(one, other) <= allowed for one, other in combinations(family, 2)):
                yield family


@given(SETS, st.integers(0, 3))
def test_the_family_is_the_largest_then_smallest_then_best_of_all(scores, allowed):
    def worth(family):
        return len(family), -sum(bits.bit_count() for bits in family), round(sum(scores[bits] for bits in family), 9)

    family = diverse_family(scores, allowed)
    assert all(overlap(one, other) <= allowed for one, other in combinations(family, 2))
    assert worth(family) == max(map(worth, families(scores, allowed)))


def test_a_family_of_many_sets_is_found_without_trying_all_of_them():
    three_of_four = (0b0111, 0b1011, 0b1101)
    scores = {bits << 4 * place: 0.5 for place in range(30) for bits in three_of_four}
    assert len(diverse_family(scores, allowed=1)) == 30  # of 3**30 equal families


@given(st.lists(st.integers(1, 2**9 - 1), max_size=3, unique=True), st.integers(0, 2), st.data())
def test_whatever_is_found_in_an_open_region_fits_with_the_family(family, allowed, data):
    orders = data.draw(st.lists(st.permutations(range(9)), max_size=3))
    for region in open_regions(2**9 - 1, family, allowed, orders):
        inside = data.draw(st.integers(0, 2**9 - 1)) & region
        assert compatible(inside, family, allowed)


def test_a_patch_that_all_sets_of_the_family_have_is_let_in_again_as_far_as_it_fits():
    free, shared = open_regions(0b11111, [0b00011, 0b00101], allowed=1, orders=[[0, 1, 2]])
    assert (free, shared) == (0b11000, 0b11001)


def test_no_open_region_holds_a_whole_set_of_the_family():
    regions = open_regions(0b1111, [0b0011, 0b0100], allowed=2, orders=[[0, 1, 2], [2, 1, 0]])
    assert regions == [0b1000, 0b1001, 0b1010]

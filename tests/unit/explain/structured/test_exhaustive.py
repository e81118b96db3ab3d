"""The comparison with all subsets finds the minimal sets and the largest disjoint family, as a slow search does."""

import itertools
import random

import numpy as np
import pytest
from exhaustive import largest_disjoint, minimal_sets


@pytest.mark.parametrize("seed", range(4))
def test_minimal_sets_and_disjoint_families_are_those_of_a_slow_search(seed):
    cells, draw = 6, random.Random(seed)
    sufficient = np.array([draw.random() < 0.15 for _ in range(1 << 9)])
    sufficient[0] = False
    sufficient[1 << cells :] = False
    every = [bits for bits in range(1 << cells) if sufficient[bits]]
    slow = [bits for bits in every if not any(other & bits == other != bits for other in every)]
    assert list(minimal_sets(sufficient)) == slow
    families = (family for size in range(len(slow) + 1) for family in itertools.combinations(slow, min(size, 4)))
    disjoint = (len(each) for each in families if all(not a & b for a, b in itertools.combinations(each, 2)))
    assert largest_disjoint(slow, 3) == max(disjoint)

import torch
from hypothesis import given
from hypothesis import strategies as st

from sagittal.explain.sets import patches
from sagittal.imaging.patch_sets import bits_of

GRIDS_AND_SETS = st.integers(1, 14).flatmap(
    lambda grid: st.tuples(st.just(grid), st.lists(st.integers(0, 2 ** (grid * grid) - 1), min_size=1, max_size=5))
)


@given(st.sets(st.integers(0, 195)))
def test_a_bit_set_and_its_members_are_one(members):
    assert patches.members(bits_of(members)) == tuple(sorted(members))


@given(GRIDS_AND_SETS)
def test_masks_keep_exactly_the_patches_of_their_sets(grid_and_sets):
    grid, sets = grid_and_sets
    masks = patches.masks_of(sets, grid, torch.device("cpu"))
    assert masks.shape == (len(sets), grid, grid)
    assert masks.dtype == torch.float32
    for bits, mask in zip(sets, masks, strict=True):
        assert tuple(mask.flatten().nonzero().flatten().tolist()) == patches.members(bits)


def test_removals_drop_one_patch_each():
    assert patches.removals(0b1011) == [0b1010, 0b1001, 0b0011]
    assert patches.removals(0) == []


def test_subsets_of_all_sizes_are_the_power_set():
    bits = 0b110101
    found = [each for size in range(5) for each in patches.subsets(bits, size)]
    assert len(found) == len(set(found)) == 16
    assert all(each & ~bits == 0 for each in found)

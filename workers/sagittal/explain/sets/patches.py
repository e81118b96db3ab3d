"""Sets of patches as bit sets: bit `row * grid + column` of an int stands for one patch of a square grid."""

from collections.abc import Iterator, Sequence
from itertools import combinations

import torch
from torch import Tensor

from sagittal.imaging.patch_sets import bits_of


def members(bits: int) -> tuple[int, ...]:
    """Returns the patches of a bit set, ascending."""
    return tuple(singles(bits))


def singles(bits: int) -> Iterator[int]:
    """Yields the patches of a bit set, ascending."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def everything(grid: int) -> int:
    """Returns the set of all patches."""
    return (1 << grid * grid) - 1


def removals(bits: int) -> list[int]:
    """Returns the sets with one patch less, in the order of the removed patch."""
    return [bits & ~(1 << patch) for patch in singles(bits)]


def subsets(bits: int, size: int) -> Iterator[int]:
    """Yields the subsets with `size` patches."""
    return map(bits_of, combinations(members(bits), size))


def packed(sets: Sequence[int], grid: int) -> Tensor:
    """Returns sets as uint8 of shape (n, bytes), with patch 0 in the lowest bit of the first byte."""
    width = (grid * grid + 7) // 8
    data = bytearray(b"".join(bits.to_bytes(width, "little") for bits in sets))
    return torch.frombuffer(data, dtype=torch.uint8).view(-1, width)


def masks_of(sets: Sequence[int], grid: int, device: torch.device) -> Tensor:
    """Returns float32 masks of shape (n, grid, grid), 1 for patches in the set, expanded on the device."""
    cells = grid * grid
    words = packed(sets, grid).unsqueeze(-1).to(device)
    places = torch.arange(8, dtype=torch.uint8, device=device)
    return ((words >> places) & 1).flatten(1)[:, :cells].reshape(-1, grid, grid).to(torch.float32)

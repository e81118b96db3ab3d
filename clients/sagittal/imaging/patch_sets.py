"""Sets of patches as bit sets, and families of diverse ones: what the search uses, and whoever counts its results.

Bit `row * grid + column` of an int stands for one patch of a square grid.
"""

from collections.abc import Iterable, Mapping


def bits_of(patches: Iterable[int]) -> int:
    """Returns the bit set of the given patches."""
    bits = 0
    for patch in patches:
        bits |= 1 << patch
    return bits


def overlap(one: int, other: int) -> int:
    """Returns the number of patches that two sets share."""
    return (one & other).bit_count()


def diverse_family(scores: Mapping[int, float], allowed: int) -> tuple[int, ...]:
    """Returns a largest family of sets of which no two share more than `allowed` patches.

    Among the largest families it has the fewest patches, and then the highest sum of scores. The result is exact, by
    branch and bound over the given sets.
    """
    ranked = sorted(scores, key=lambda bits: (bits.bit_count(), -scores[bits], bits))
    best: tuple[int, ...] = ()

    def worth(family: tuple[int, ...]) -> tuple[float, ...]:
        return len(family), -sum(map(int.bit_count, family)), sum(scores[bits] for bits in family)

    def extend(family: tuple[int, ...], rest: list[int]) -> None:
        nonlocal best
        if worth(family) > worth(best):
            best = family
        for place, bits in enumerate(rest):
            if len(family) + len(rest) - place < len(best):
                return
            extend((*family, bits), [other for other in rest[place + 1 :] if overlap(bits, other) <= allowed])

    extend((), ranked)
    return best

"""Diverse families: as many sets as possible of which no two share more patches than allowed, exactly.

Also the regions in which a further set of a family may be looked for.
"""

from collections.abc import Iterable, Mapping, Sequence

from sagittal.explain.patches import overlap


def compatible(bits: int, others: Sequence[int], allowed: int) -> bool:
    """Whether a set shares at most `allowed` patches with each of the others."""
    return all(overlap(bits, other) <= allowed for other in others)


def diverse_family(scores: Mapping[int, float], allowed: int) -> tuple[int, ...]:
    """Returns a largest family of sets that share pairwise at most `allowed` patches.

    Of the largest families it is one with the fewest patches, and of those one with the highest sum of scores. Exact,
    by branch and bound over the sets given.
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


def open_regions(everything: int, family: Sequence[int], allowed: int, orders: Iterable[Sequence[int]]) -> list[int]:
    """Returns regions whose subsets all fit with the family: first without its patches, then with some of them.

    Args:
        everything: All patches.
        family: Sets that a further one is to fit with.
        allowed: Most patches that two sets may share.
        orders: Patches of the family in the orders in which they are let in again, as far as they fit.
    """
    free = everything
    for bits in family:
        free &= ~bits
    return list(dict.fromkeys([free, *(_letting_in(free, family, allowed, order) for order in orders)]))


def _letting_in(region: int, family: Sequence[int], allowed: int, order: Sequence[int]) -> int:
    """Returns a region with all further patches that fit, taken in order; never all of a set, which is known."""
    for patch in order:
        wider = region | 1 << patch
        if all(overlap(wider, bits) <= min(allowed, bits.bit_count() - 1) for bits in family):
            region = wider
    return region

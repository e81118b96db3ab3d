"""Diverse families: as many sets as possible of which no two share more patches than allowed, exactly.

Also the regions in which a further set of a family may be looked for.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations, islice, product

from sagittal.explain.patches import bits_of, members, overlap

VARIANTS = 24
"""Most regions that are tried when patches of earlier sets are let in again."""


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


def open_regions(everything: int, family: Sequence[int], allowed: int) -> list[int]:
    """Returns regions whose subsets all fit with the family: first without its patches, then with some of them."""
    free = everything
    for bits in family:
        free &= ~bits
    # A patch that two sets share counts against both; only patches of one set are let in again.
    own = [members(bits & ~_shared(bits, family)) for bits in family]
    # Never all of a set: it would only be found again.
    letting_in = (min(allowed, len(patches), bits.bit_count() - 1) for bits, patches in zip(family, own, strict=True))
    choices = (combinations(patches, count) for patches, count in zip(own, letting_in, strict=True))
    variants = (free | bits_of(patch for chosen in choice for patch in chosen) for choice in product(*choices))
    return list(dict.fromkeys([free, *islice(variants, VARIANTS)]))


def _shared(bits: int, family: Sequence[int]) -> int:
    """Returns the patches of a set that another set of the family has too."""
    shared = 0
    for other in family:
        if other != bits:
            shared |= bits & other
    return shared

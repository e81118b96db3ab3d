"""Sets of patches as bit sets, and families of diverse ones: what the search uses, and whoever counts its results.

Bit `row * grid + column` of an int stands for one patch of a square grid.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence


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
    conflicts = [
        bits_of(place for place, other in enumerate(ranked) if overlap(bits, other) > allowed) for bits in ranked
    ]
    best: tuple[int, ...] = ()

    def worth(family: Sequence[int]) -> tuple[float, ...]:
        return len(family), -sum(map(int.bit_count, family)), sum(scores[bits] for bits in family)

    def bound(family: Sequence[int], rest: int) -> tuple[float, ...]:
        """Returns more than any family is worth that adds some of the rest, whose sets are given by their places."""
        left = [ranked[place] for place in _places(rest)]
        more = _cliques(conflicts, rest)
        size, patches, score = worth(family)
        best_scores = sorted((scores[bits] for bits in left), reverse=True)[:more]
        return size + more, patches - sum(map(int.bit_count, left[:more])), score + sum(best_scores)

    def extend(family: tuple[int, ...], rest: int) -> None:
        nonlocal best
        if worth(family) > worth(best):
            best = family
        while rest and bound(family, rest) > worth(best):
            place = (rest & -rest).bit_length() - 1
            rest ^= 1 << place
            extend((*family, ranked[place]), rest & ~conflicts[place])

    extend((), (1 << len(ranked)) - 1)
    return best


def _places(bits: int) -> Iterator[int]:
    while bits:
        yield (bits & -bits).bit_length() - 1
        bits &= bits - 1


def _cliques(conflicts: Sequence[int], rest: int) -> int:
    """Returns the number of cliques, found greedily, that cover the rest: a family has at most one set of each."""
    number = 0
    while rest:
        fitting, number = rest, number + 1
        while fitting:
            place = (fitting & -fitting).bit_length() - 1
            rest &= ~(1 << place)
            fitting &= conflicts[place] & rest
    return number

"""Certificates of minimality: a ladder of claims, each made only after everything that it says was scored.

- sufficient: the set suffices, scored alone and in full precision;
- 1-minimal: and no set with one patch less does;
- subset-minimal: and no proper subset does, the empty one included;
- minimum-size: and no smaller set of the whole grid does.

Scores are not monotone in the set, so nothing is inferred from supersets or subsets: whatever a claim speaks of was
scored. Where a subset turns out to suffice, it takes the place of the set that was to be certified. Where a smaller set
elsewhere does, the claim stays below minimum-size, and that set is another explanation.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import comb

from sagittal.explain.events import CausalTriple, Certificate, CertificateLevel
from sagittal.explain.sets.patches import removals, subsets
from sagittal.explain.sets.scoring import Memo
from sagittal.explain.sets.search import progress
from sagittal.explain.steps import Steps

SUBSETS_TO = 8
"""Sets of up to this many patches have all their subsets scored: at most 2^8 - 2."""

SMALLER_SETS_BOUND = 160
"""All smaller sets of the grid are scored where at most this many of them are not known yet."""


@dataclass(slots=True)
class Claim:
    """A sufficient set and what was proven of it so far; 0 before any set was confirmed."""

    bits: int = 0
    level: CertificateLevel = CertificateLevel.SUFFICIENT
    checked: int = 0
    beaten_by: int = 0
    """A smaller sufficient set found elsewhere; 0 where there is none."""

    def certificate(self, memo: Memo) -> Certificate:
        """Returns the claim as it is stated."""
        return Certificate(self.level, self.checked, memo.rule.required_score)


def certify(memo: Memo, bits: int, claim: Claim) -> Steps[bool]:
    """Climbs the ladder from a set, which smaller ones may replace; the claim says at any time what is proven.

    Returns whether there is a claim: full precision may not confirm the set.
    """
    candidate: int | None = bits
    while candidate is not None:
        yield from memo.confirm(candidate)
        if not memo.sufficient(candidate):
            break
        claim.bits, claim.level, claim.checked = candidate, CertificateLevel.SUFFICIENT, 1
        candidate = yield from _climb(memo, claim)
    return claim.bits != 0


def _climb(memo: Memo, claim: Claim) -> Steps[int | None]:
    """Proves what can be afforded of the claim; returns a smaller sufficient set where a check finds one."""
    for level, checked, batches in _rungs(memo, claim.bits):
        for batch in batches:
            smaller = yield from _sufficient_among(memo, batch)
            if smaller is not None and level is CertificateLevel.MINIMUM_SIZE:
                claim.beaten_by = smaller
                return None
            if smaller is not None:
                return smaller
        claim.level, claim.checked = level, checked
    return None


def _rungs(memo: Memo, bits: int) -> Iterator[tuple[CertificateLevel, int, Iterable[list[int]]]]:
    """Yields each affordable claim, the sets it rests on, and the batches to score for it, likeliest to fail first."""
    size, cells = bits.bit_count(), memo.grid**2
    yield CertificateLevel.ONE_MINIMAL, 1 + size, [removals(bits)]
    if size <= SUBSETS_TO:
        yield CertificateLevel.SUBSET_MINIMAL, 1 << size, _all_subsets(bits, size - 1)
    if _affordable(memo, size):
        checked = 1 + sum(comb(cells, smaller) for smaller in range(size))
        yield CertificateLevel.MINIMUM_SIZE, checked, _all_subsets(memo.all, size - 1)


def _all_subsets(bits: int, largest: int) -> Iterator[list[int]]:
    return (list(subsets(bits, size)) for size in range(largest, -1, -1))


def _affordable(memo: Memo, size: int) -> bool:
    """Whether few enough sets smaller than `size` are unknown; counted only where that can change the answer."""
    total = sum(comb(memo.grid**2, smaller) for smaller in range(size))
    if total - len(memo.scores) > SMALLER_SETS_BOUND:
        return False
    known = sum(bits.bit_count() < size for bits in memo.scores)
    return total - known <= SMALLER_SETS_BOUND


def _sufficient_among(memo: Memo, sets: list[int]) -> Steps[int | None]:
    """Returns the best of the sets that suffice, confirmed in full precision; None where none does."""
    yield from memo.evaluate(sets)
    yield progress(memo, "certify")
    for bits in sorted(sets, key=memo.merit, reverse=True):
        if not memo.sufficient(bits):
            continue
        yield from memo.confirm(bits)
        if memo.sufficient(bits):
            return bits
    return None


def causal_triple(memo: Memo, bits: int) -> Steps[CausalTriple]:
    """Returns what the model says when only the set is shown, and when only the set is hidden."""
    shown = yield from memo.confirm(bits)
    hidden = yield from memo.confirm(memo.all & ~bits)
    return CausalTriple(shown.score, hidden.score, hidden.top)

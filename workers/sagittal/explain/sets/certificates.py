"""Certificates of minimality: a ladder of claims. Each claim is made only after all its sets were scored.

- sufficient: the set is sufficient, scored alone and in full precision;
- one-minimal: no set with one patch less is sufficient;
- subset-minimal: no proper subset is sufficient, including the empty set;
- minimum-size: no smaller set of the whole grid is sufficient.

Scores are not monotone in the set. Nothing is therefore inferred from supersets or subsets: every set that a claim
covers was scored. If a subset is found to be sufficient, it replaces the set to be certified. If a smaller set
elsewhere is sufficient, the claim stays below minimum-size, and that set is another explanation.
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
"""All smaller sets of the grid are scored if at most this many of them have no score yet."""


@dataclass(slots=True)
class Claim:
    """A sufficient set and what was proven about it so far; 0 before any set was confirmed."""

    bits: int = 0
    level: CertificateLevel = CertificateLevel.SUFFICIENT
    checked: int = 0
    beaten_by: int = 0
    """A smaller sufficient set found elsewhere; 0 if there is none."""

    def certificate(self, memo: Memo) -> Certificate:
        """Returns the certificate of the claim."""
        return Certificate(self.level, self.checked, memo.rule.required_score)


def certify(memo: Memo, bits: int, claim: Claim) -> Steps[bool]:
    """Proves as much as it can about a set, or about a smaller sufficient set that replaces it.

    The claim always states what is proven. Returns whether there is a claim: the set may not be sufficient in full
    precision.
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
    """Proves the affordable claims; returns a smaller sufficient set if a check finds one."""
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
    """Yields each affordable claim, its number of sets, and the batches to score for it, likeliest to fail first."""
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
    """Returns whether few enough sets smaller than `size` have no score; counts only if that can change the answer."""
    total = sum(comb(memo.grid**2, smaller) for smaller in range(size))
    if total - len(memo.scores) > SMALLER_SETS_BOUND:
        return False
    known = sum(bits.bit_count() < size for bits in memo.scores)
    return total - known <= SMALLER_SETS_BOUND


def _sufficient_among(memo: Memo, sets: list[int]) -> Steps[int | None]:
    """Returns the best of the sufficient sets, confirmed in full precision; None if none is sufficient."""
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
    """Returns the scores if only the set is shown, and if only the set is hidden."""
    shown = yield from memo.confirm(bits)
    hidden = yield from memo.confirm(memo.all & ~bits)
    return CausalTriple(shown.score, hidden.score, hidden.top)

"""Minimal sufficient explanations: small sets of patches that alone keep the model's confidence (Shitole et al., 2021).

Shitole, Li, Kahng, Tadepalli, Fern: One Explanation Is Not Enough: Structured Attention Graphs for Image Classification
(NeurIPS 2021). Differences from the paper: no set is scored twice; proposals learnt from all known scores and
elimination replace growth from small sets (see `search`); results are certified; the overlap is bounded during the
search.

Each set is yielded when it is certified. `SufficientSet.diverse` then states whether it overlaps the earlier sets no
more than allowed. At the end of the search the largest family is computed exactly, and a set whose flag changes is
yielded again. Of two events with the same patches, the later one is valid.

What is added to the published method has a switch: with `certify_after="jpeg-95"`, a set is replaced by a set near it
whose certificate also holds after a JPEG file, if one is found (see `durability`).

A job on 7x7 takes about 800 evaluations, including certificates, and about 650 without this addition: see the bounds
below.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import count
from operator import or_

from sagittal.engine.alterations import Jpeg
from sagittal.engine.requests import OutOfBudget, Upsampling
from sagittal.explain.events import (
    CausalTriple,
    CertificateLevel,
    Progress,
    Robustness,
    SufficientSet,
    Truncated,
    Warning,
)
from sagittal.explain.explainer import Explainer
from sagittal.explain.parameters import InvalidParameter, parameter
from sagittal.explain.problem import TINY_SCORE, Problem
from sagittal.explain.sets.certificates import Claim, causal_triple, certify
from sagittal.explain.sets.durability import Durability, robustness_after
from sagittal.explain.sets.patches import members
from sagittal.explain.sets.scoring import Memo, Rule, Threshold, TopClass
from sagittal.explain.sets.search import FIRST_NOISE, guesses, refine
from sagittal.explain.steps import Steps
from sagittal.imaging.patch_sets import diverse_family, overlap


def compatible(bits: int, others: Sequence[int], allowed: int) -> bool:
    """Returns whether a set shares at most `allowed` patches with each of the others."""
    return all(overlap(bits, other) <= allowed for other in others)


def open_regions(everything: int, family: Sequence[int], allowed: int, orders: Iterable[Sequence[int]]) -> list[int]:
    """Returns regions whose subsets are all compatible with the family: without its patches, then with some of them.

    Args:
        everything: All patches.
        family: Sets with which a further set must be compatible.
        allowed: Maximum number of patches that two sets may share.
        orders: Orders in which the patches of the family are added again, as far as they are compatible.
    """
    free = everything
    for bits in family:
        free &= ~bits
    return list(dict.fromkeys([free, *(_letting_in(free, family, allowed, order) for order in orders)]))


def _letting_in(region: int, family: Sequence[int], allowed: int, order: Sequence[int]) -> int:
    """Returns a region with all further compatible patches, in order; never all patches of a known set."""
    for patch in order:
        wider = region | 1 << patch
        if all(overlap(wider, bits) <= min(allowed, bits.bit_count() - 1) for bits in family):
            region = wider
    return region


FIRST_BOUND = 12.0
"""Evaluations per patch of the grid after which no smaller first set is proposed: 588 on 7x7."""

FURTHER_BOUND = 3.0
"""The same for each later set: 147 on 7x7."""

SEARCH_BOUND = 12.5
"""The same for the whole search without certificates: 612 on 7x7. Further sets leave a rest, which is spent on finding
a smaller set than the smallest one."""

FILES_BOUND = 6.0
"""The same for each set that is to survive a file: 294 on 7x7, beside the bound of the whole search."""

REGIONS = 24
"""Number of regions tried when patches of the found sets are allowed again."""

SMALL_SHARE = 1.5
"""Maximum size of a known sufficient set that is used as the next one, relative to the smallest set found."""

UPSAMPLING = {"box": Upsampling.BOX, "tent": Upsampling.ALIGNED}


@dataclass(slots=True, kw_only=True)
class SetSearch:
    """A search for diverse minimal sufficient sets; the state of one job."""

    memo: Memo
    beam_width: int
    max_sets: int
    max_overlap: int
    altered: Memo | None = None
    """Scores after a file, if certificates shall hold after it."""
    found: dict[int, SufficientSet] = field(default_factory=dict)
    """Certified sets, as last yielded."""
    claims: list[Claim] = field(default_factory=list)
    """Claims started; the last one may be unfinished."""
    replaced: set[int] = field(default_factory=set)
    """Minimal sets in place of which a set that survives a file was reported."""
    files_evaluations: int = 0
    """Evaluations without alteration that the search for such sets took; the bound of the search excludes them."""
    truncated: bool = False
    """Whether a budget ended the search."""

    def run(self) -> Steps[None]:
        """Yields requests, and sets when they are found. A spent budget is reported after the results so far."""
        try:
            degenerate = yield from self._check_ends()
            if not degenerate:
                yield from self._search()
        except OutOfBudget as spent:
            self.truncated = True
            yield Truncated(spent.limit)
            yield from self._salvage()
        yield from self._settle()

    @property
    def family(self) -> tuple[int, ...]:
        """The largest diverse family of the sets found so far."""
        return diverse_family({bits: each.score for bits, each in self.found.items()}, self.max_overlap)

    def _check_ends(self) -> Steps[bool]:
        """Yields a warning if the empty set is sufficient or the whole image is not; returns whether it did."""
        yield from self.memo.evaluate([0, self.memo.all])
        if self.memo.sufficient(0):
            yield EMPTY_SET_SUFFICIENT
        elif not self.memo.sufficient(self.memo.all):
            yield IMAGE_NOT_SUFFICIENT
        return self.memo.sufficient(0) or not self.memo.sufficient(self.memo.all)

    def _search(self) -> Steps[None]:
        region: int | None = self.memo.all
        end = SEARCH_BOUND * self.memo.grid**2
        while region is not None and len(self.found) < self.max_sets and self.searched < end:
            bits = yield from self._small_set(region)
            before = len(self.found)
            yield from self._report(bits)
            region = (yield from self._next_region()) if len(self.found) > before else None
        if region is not None and len(self.found) < self.max_sets:
            yield _bound_reached(int(end))
        yield from self._smaller(int(end))

    @property
    def searched(self) -> int:
        """Evaluations that count towards the bound of the search."""
        return self.memo.evaluations - self.files_evaluations

    def _small_set(self, region: int) -> Steps[int]:
        """Returns a small sufficient set within a sufficient region."""
        bound = FURTHER_BOUND if self.found else FIRST_BOUND
        return (yield from refine(self.memo, region, width=2 * self.beam_width, bound=bound * self.memo.grid**2))

    def _smaller(self, end: int) -> Steps[None]:
        """Spends the evaluations up to a bound on attempts at a set smaller than the smallest one, if one can exist."""
        for attempt in count(1):
            smallest = min((*self.found, *self.replaced), key=int.bit_count, default=0)
            before = self.searched
            if before >= end or not smallest or self._is_minimum(smallest) or len(self.found) >= self.max_sets:
                return
            bits = yield from refine(
                self.memo,
                self.memo.all,
                width=2 * self.beam_width,
                bound=end - before,
                best=smallest,
                attempt=attempt,
            )
            if bits != smallest:
                yield from self._report(bits)
            if self.searched == before:
                return

    def _is_minimum(self, bits: int) -> bool:
        return bits in self.found and self.found[bits].certificate.level is CertificateLevel.MINIMUM_SIZE

    def _report(self, bits: int) -> Steps[None]:
        """Certifies a set, or the set that replaces it, and yields it."""
        if bits in self.replaced:
            return
        self.claims.append(Claim(bits, checked=1))  # reported if a budget ends the search among files
        bits = yield from self._surviving(bits)
        self.claims[-1] = claim = Claim()
        certified = yield from certify(self.memo, bits, claim)
        if certified and claim.bits not in self.found:
            causal = yield from causal_triple(self.memo, claim.bits)
            yield self._add(claim, causal, (yield from self._robustness(claim.bits)))
        if claim.beaten_by and claim.beaten_by not in self.found and len(self.found) < self.max_sets:
            yield from self._report(claim.beaten_by)

    def _surviving(self, bits: int) -> Steps[int]:
        """Returns a set near a minimal one whose certificate survives a file, if one is found; otherwise the set."""
        if self.altered is None or bits in self.found:
            return bits
        family, before = self.family, self.memo.evaluations
        others = family if compatible(bits, family, self.max_overlap) else ()

        def allowed(other: int) -> bool:
            return compatible(other, others, self.max_overlap) and not self._contains_found(other)

        near = Durability(plain=self.memo, altered=self.altered, allowed=allowed)
        chosen = yield from near.replace(bits, FILES_BOUND * self.memo.grid**2)
        self.files_evaluations += self.memo.evaluations - before
        if chosen != bits:
            self.replaced.add(bits)
        return chosen

    def _robustness(self, bits: int) -> Steps[Robustness | None]:
        """Returns whether a certificate holds after a file; None if that is not asked for."""
        return None if self.altered is None else (yield from robustness_after(self.memo, self.altered, bits))

    def _add(self, claim: Claim, causal: CausalTriple | None, robust: Robustness | None = None) -> SufficientSet:
        """Returns a certified set as an event, and stores it."""
        diverse = compatible(claim.bits, self.family, self.max_overlap)
        certificate = replace(claim.certificate(self.memo), robust=robust)
        scored = self.memo[claim.bits]
        found = SufficientSet(
            grid=self.memo.grid,
            patches=members(claim.bits),
            score=scored.score,
            certificate=certificate,
            causal=causal,
            diverse=diverse,
            top=scored.top,
            evaluations=self.memo.evaluations + (0 if self.altered is None else self.altered.evaluations),
        )
        self.found[claim.bits] = found
        return found

    def _next_region(self) -> Steps[int | None]:
        """Returns a sufficient region that can contain a further diverse set; None if none was found.

        A small compatible set that is known to be sufficient is such a region; otherwise it is the largest region.
        """
        family = self.family
        known = [bits for bits in self.memo.scores if compatible(bits, family, self.max_overlap)]
        free, *variants = open_regions(self.memo.all, family, self.max_overlap, self._orders(family))
        for regions in (known, [free], variants):
            yield from self.memo.evaluate(regions)
            usable = [
                bits for bits in regions if bits and self.memo.sufficient(bits) and not self._contains_found(bits)
            ]
            smallest = min(usable, key=self._by_size, default=0)
            if smallest and smallest.bit_count() <= SMALL_SHARE * min(map(int.bit_count, self.found)):
                return smallest
            if usable:
                return max(usable, key=lambda bits: (bits.bit_count(), self.memo.merit(bits)))
        return None

    def _by_size(self, bits: int) -> tuple[int, float]:
        return bits.bit_count(), -self.memo.merit(bits)

    def _orders(self, family: Sequence[int]) -> list[list[int]]:
        """Returns orders of the patches of a family, promising patches first."""
        taken = members(reduce(or_, family))
        size = min(map(int.bit_count, family))
        generator = self.memo.problem.generator("regions", len(self.found))
        advice = guesses(self.memo.scores, self.memo.grid, size, REGIONS, FIRST_NOISE, generator)
        return [sorted(taken, key=guess.__getitem__, reverse=True) for guess in advice.tolist()]

    def _contains_found(self, region: int) -> bool:
        """Returns whether a region contains a set that was found or replaced, which would be found again."""
        return any(bits & ~region == 0 for bits in (*self.found, *self.replaced))

    def _salvage(self) -> Steps[None]:
        """Yields the unfinished claim with what was proven, or else the smallest set known to be sufficient.

        The latter is yielded only if nothing was found: it is large, and no search has reduced it.
        """
        claim = self.claims[-1] if self.claims else Claim()
        if not claim.bits and not self.found:
            claim = self._smallest_known()
        if not claim.bits or claim.bits in self.found:
            return
        try:
            yield from self.memo.confirm(claim.bits)
            causal = yield from causal_triple(self.memo, claim.bits)
        except OutOfBudget:
            causal = None
        if self.memo[claim.bits].exact and self.memo.sufficient(claim.bits):
            yield self._add(claim, causal)

    def _smallest_known(self) -> Claim:
        """Returns the smallest sufficient set in the memo, as a claim of sufficiency."""
        sufficient = [bits for bits in self.memo.scores if bits and self.memo.sufficient(bits)]
        return Claim(min(sufficient, key=lambda bits: (bits.bit_count(), -self.memo.merit(bits)), default=0), checked=1)

    def _settle(self) -> Steps[None]:
        """Yields again each set whose membership in the largest family has changed."""
        family = self.family
        for bits, each in self.found.items():
            if each.diverse != (bits in family):
                self.found[bits] = replace(each, diverse=not each.diverse)
                yield self.found[bits]


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchSearch(Explainer):
    """Common part of explainers by patch sets: the grid, and the rule of sufficiency."""

    grid: int = parameter(7, "Side of the square grid of patches", minimum=3, maximum=14)
    sufficiency: str = parameter("threshold", "Rule of sufficiency of a set", choices=("threshold", "top-class"))
    threshold: float = parameter(
        0.9,
        "Share of the unmasked score that a sufficient set keeps",
        minimum=0,
        maximum=1,
        exclusive_minimum=True,
    )
    beam_width: int = parameter(8, "Breadth of the search: half the sets proposed per round", minimum=1, maximum=100)
    max_overlap: int = parameter(1, "Maximum number of patches that two diverse sets share", minimum=0, maximum=196)
    patch_shape: str = parameter("box", "Shape of a patch: exact rectangles or bilinear tents", choices=("box", "tent"))

    def memo(self, problem: Problem) -> Memo:
        """Returns an empty memo. Raises InvalidParameter for a grid finer than the image."""
        if self.grid > min(problem.size):
            raise InvalidParameter(
                "grid", f"is {self.grid}; give at most {min(problem.size)}, the image's side in pixels"
            )
        return Memo(problem=problem, grid=self.grid, rule=self.rule(problem), upsampling=UPSAMPLING[self.patch_shape])

    def rule(self, problem: Problem) -> Rule:
        """Returns the rule of sufficiency."""
        if self.sufficiency == "top-class":
            return TopClass(target=problem.target)
        return Threshold(required_score=self.threshold * problem.unmasked_score)

    def search(self, problem: Problem, max_sets: int) -> SetSearch:
        """Returns a new search for diverse sets."""
        return SetSearch(
            memo=self.memo(problem), beam_width=self.beam_width, max_sets=max_sets, max_overlap=self.max_overlap
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MinimalSufficientExplanations(PatchSearch):
    """Small sets of patches that alone keep the confidence, each with a certificate of minimality."""

    summary = "Minimal sufficient explanations: small sets of patches that alone keep the model's confidence"

    max_sets: int = parameter(10, "Maximum number of sets returned", minimum=1, maximum=100)
    certify_after: str = parameter(
        "jpeg-95",
        "What certificates should survive if the image has 8-bit pixels: rounding, or a JPEG file of quality 95 too",
        choices=("rounding", "jpeg-95"),
    )

    def explain(self, problem: Problem) -> Steps[None]:
        """Yields each set when it is certified."""
        yield from warn_of_tiny_score(problem)
        search = self.search(problem, self.max_sets)
        if self.certify_after == "jpeg-95" and problem.pixels is not None:
            search.altered = search.memo.altered(Jpeg(problem.pixels))
        yield from search.run()
        yield Progress(1.0, phase="certify")


def warn_of_tiny_score(problem: Problem) -> Steps[None]:
    """Yields a warning if the unmasked score is so small that sufficiency means little."""
    if problem.unmasked_score < TINY_SCORE:
        yield Warning(
            "SUFFICIENCY_UNRELIABLE",
            f"The target's score on the image is {problem.unmasked_score:.2g}: a share of it is reached by chance, "
            "so that the sets mean little. Choose a class that the model recognises in the image.",
        )


def _bound_reached(bound: int) -> Warning:
    """Returns the warning that further sets may exist."""
    return Warning(
        "SEARCH_BOUND_REACHED",
        f"The search stopped at its bound of {bound} evaluations before it had searched every sufficient part of the "
        "image: there may be further diverse sets, and smaller ones.",
    )


EMPTY_SET_SUFFICIENT = Warning(
    "EMPTY_SET_SUFFICIENT",
    "The baseline alone is sufficient: no part of the image is needed, so there is no set to report. The model may not "
    "use the image for this class, or the baseline may not hide the class; try another baseline.",
)

IMAGE_NOT_SUFFICIENT = Warning(
    "IMAGE_NOT_SUFFICIENT",
    "The target is not the model's top class on the whole image, so no set keeps it the top class. Choose the top "
    "class, or sufficiency by threshold.",
)

"""Sets whose certificates survive a JPEG file: a search among the sets near a minimal one.

A minimal set lies at the threshold by construction. A JPEG file moves its score, and the scores of the sets with one
patch less, by more than their distance from the threshold. A set is durable if it is sufficient before and after the
alteration, and no set with one patch less is sufficient before or after it. Its margin is the distance in log-odds of
the score that is closest to the wrong side of the threshold.

Near a known set log-odds are taken as additive: a patch of the set contributes the loss that its removal causes,
another patch what it added to known sets, or else what the regression of `search` estimates, and the alteration moves
all scores by its mean shift so far. The unknown sets with the largest margins under this model are scored first.
Nothing is inferred from the model: a set is durable only if all these sets were scored.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from itertools import chain, combinations, count
from statistics import fmean

from sagittal.explain.events import AlterationKind, AlterationTest, DrawsBound, Robustness
from sagittal.explain.sets.patches import members, removals
from sagittal.explain.sets.scoring import Memo
from sagittal.explain.sets.search import BOLDER, FIRST_NOISE, guesses, progress
from sagittal.explain.steps import Steps
from sagittal.imaging.patch_sets import bits_of

WIDTH = 8
"""Sets proposed in a round."""

EXAMINED = 3
"""Sets of a round whose removals are scored."""

CENTRES = 2
"""Known sets from which proposals are made: those with the largest margins."""

OUTSIDERS = 12
"""Most promising patches outside of a set that may enter it."""

EXCHANGED = 2
"""Maximum number of patches that leave a set, and that enter it."""


@dataclass(slots=True, kw_only=True, eq=False)
class Durability:
    """A search for a durable set near a minimal one."""

    plain: Memo
    altered: Memo
    """Scores of the same sets after the alteration."""
    allowed: Callable[[int], bool]
    """Returns whether a set may replace the minimal one."""
    margins: dict[int, float] = field(default_factory=dict)
    """Margins of the sets whose removals were scored; with a sufficient removal, an upper bound."""

    @property
    def evaluations(self) -> int:
        """Number of sets evaluated, with and without the alteration."""
        return self.plain.evaluations + self.altered.evaluations

    def replace(self, bits: int, bound: float) -> Steps[int]:
        """Returns a durable set near a minimal one, or else the minimal set itself.

        If no set is found that is durable, a set that is at least sufficient after the alteration is preferred.

        Args:
            bits: A minimal sufficient set.
            bound: Number of evaluations after which no round starts.
        """
        end = self.evaluations + bound
        largest = bits.bit_count() + 1
        yield progress(self.plain, "files")
        yield from self._examine(bits)
        if not self.durable(bits):
            yield from self._try([each for each in self._swaps(bits) if self.allowed(each)])
        for turn in count():
            if self.durable(bits) or self.evaluations >= end:
                break
            yield progress(self.plain, "files")
            proposals = self._proposals(turn, largest)
            if not proposals:
                break
            yield from self._try(proposals)
            bits = max((bits, *self._minimal()), key=self._worth)
        return bits

    def durable(self, bits: int) -> bool:
        """Returns whether an examined set is durable."""
        return self.margins[bits] > 0 and self._minimal_before(bits) and self._sufficient_after(bits)

    def _minimal(self) -> Iterator[int]:
        """Yields the examined sets that are minimal before the alteration."""
        return filter(self._minimal_before, self.margins)

    def _minimal_before(self, bits: int) -> bool:
        return self.plain.sufficient(bits) and not any(map(self.plain.sufficient, removals(bits)))

    def _sufficient_after(self, bits: int) -> bool:
        return self.altered.sufficient(bits)

    def _worth(self, bits: int) -> tuple[bool, bool, float]:
        return self.durable(bits), self._sufficient_after(bits), self.margins[bits]

    def _try(self, proposals: Sequence[int]) -> Steps[None]:
        """Scores proposals, and examines the most promising ones that are sufficient before and after."""
        for memo in (self.plain, self.altered):
            yield from memo.evaluate(proposals)
            proposals = [bits for bits in proposals if memo.sufficient(bits)]
        for bits in proposals[:EXAMINED]:
            yield from self._examine(bits)
            if self.durable(bits):
                return

    def _examine(self, bits: int) -> Steps[None]:
        """Scores a set and its removals; after the alteration only if no removal is sufficient before it."""
        yield from self.plain.evaluate([bits, *removals(bits)])
        below = [] if any(map(self.plain.sufficient, removals(bits))) else removals(bits)
        yield from self.altered.evaluate([bits, *below])
        known = [(memo, each) for memo in (self.plain, self.altered) for each in removals(bits) if each in memo]
        alone = min(memo.margin(bits) for memo in (self.plain, self.altered))
        self.margins[bits] = min(alone, -max(memo.margin(each) for memo, each in known))

    def _proposals(self, turn: int, largest: int) -> list[int]:
        """Returns the unknown sets near the best known ones that have the largest margins under the additive model."""
        predicted: dict[int, float] = {}
        for centre in nlargest(CENTRES, self.margins, key=self._worth):
            for bits, margin in self._neighbours(centre, turn):
                if bits.bit_count() <= largest and bits not in self.margins and self.allowed(bits):
                    predicted[bits] = max(margin, predicted.get(bits, margin))
        fresh = (bits for bits in predicted if bits not in self.altered and self._open(bits))
        return nlargest(WIDTH, fresh, key=predicted.__getitem__)

    def _open(self, bits: int) -> bool:
        """Returns whether a set may be sufficient: it was not scored, or it is."""
        return bits not in self.plain or self.plain.sufficient(bits)

    def _neighbours(self, centre: int, turn: int) -> Iterator[tuple[int, float]]:
        """Yields sets that differ from a set by few patches, with their predicted margins."""
        memo, shift = self.plain, self._shift()
        inside, level = members(centre), memo.margin(centre)
        cost = {patch: level - memo.margin(centre & ~(1 << patch)) for patch in inside}
        guess = self._guess(centre, turn)
        outside = nlargest(OUTSIDERS, members(memo.all & ~centre), key=guess.__getitem__)
        gain = {patch: self._gain(centre, patch, guess[patch]) for patch in outside}
        for out in _choices(inside):
            kept = [cost[patch] for patch in inside if patch not in out]
            for into in _choices(outside):
                entering = [gain[patch] for patch in into]
                if not kept and not entering:
                    continue
                changed = (centre | bits_of(into)) & ~bits_of(out)
                score = level - sum(cost[patch] for patch in out) + sum(entering)
                if changed in memo:
                    score = memo.margin(changed)
                removed = score - min(chain(kept, entering))
                yield changed, min(score + min(shift, 0), -removed - max(shift, 0))

    def _guess(self, centre: int, turn: int) -> list[float]:
        """Returns a draw of the effect of each patch."""
        memo, noise = self.plain, FIRST_NOISE * BOLDER**turn
        generator = memo.problem.generator("files", centre, turn)
        guess: list[float] = guesses(memo.scores, memo.grid, centre.bit_count(), 1, noise, generator)[0].tolist()
        return guess

    def _gain(self, centre: int, patch: int, guess: float) -> float:
        """Returns what a patch adds to a set: the mean over the known sets with and without it, or else the guess."""
        memo = self.plain
        pairs = ((below, below | 1 << patch) for below in (centre, *removals(centre)))
        known = [memo.margin(above) - memo.margin(below) for below, above in pairs if above in memo]
        return fmean(known) if known else guess

    def _swaps(self, centre: int) -> list[int]:
        """Returns the sets with the least important patch of a set exchanged, most promising first."""
        guess = self._guess(centre, 0)
        weakest = max(removals(centre), key=self.plain.margin)
        outside = nlargest(OUTSIDERS, members(self.plain.all & ~centre), key=guess.__getitem__)
        return [weakest | 1 << patch for patch in outside]

    def _shift(self) -> float:
        """Returns the mean change of the log-odds by the alteration."""
        return fmean(self.altered.margin(bits) - self.plain.margin(bits) for bits in self.altered.scores)


def _choices(patches: Sequence[int]) -> list[tuple[int, ...]]:
    return [each for size in range(EXCHANGED + 1) for each in combinations(patches, size)]


def robustness_after(plain: Memo, altered: Memo, bits: int) -> Steps[Robustness]:
    """Returns if a set is sufficient and minimal before and after the alteration, from scores in full precision."""
    for memo in (plain, altered):
        yield from memo.measure([bits, *removals(bits)])
    kinds = {AlterationKind.ROUNDING: plain, AlterationKind.JPEG: altered}
    tests = tuple(
        AlterationTest(
            alteration=kind,
            sufficient=memo.sufficient(bits),
            minimal=memo.sufficient(bits) and not any(map(memo.sufficient, removals(bits))),
            score=memo[bits].score,
            removal_score=max(memo[each].score for each in removals(bits)),
        )
        for kind, memo in kinds.items()
    )
    nothing = DrawsBound(0.0, 0, 0)
    return Robustness(tests, sufficient=nothing, minimal=nothing, confidence=1.0, backgrounds=())

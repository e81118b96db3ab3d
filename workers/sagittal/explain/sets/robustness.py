"""Robustness of certificates: a set on altered images, and on backgrounds that are drawn at random.

A certificate is a statement about composed images, which have 8-bit pixels. The set and the sets with one patch less
are scored again after each alteration: rounding once more, a JPEG file of quality 95, and a shift by one pixel in four
directions. Then backgrounds replace the baseline: independent draws of the distribution in `backgrounds`. A lower
confidence bound on the probability that the set is sufficient, and one on the probability that it is minimal too, is
valid whenever the draws end (see `bounds`): when both bounds reach 1 - delta, at the maximum number of draws, or at a
deadline.

Minimal means here that no set with one patch less is sufficient.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sagittal.engine.alterations import Alteration, Jpeg, PixelScale, Rounding, Shift
from sagittal.engine.requests import Evaluate, OutOfBudget, Subject, Upsampling
from sagittal.explain.backgrounds import RobustnessTest, draw_background
from sagittal.explain.events import (
    AlterationKind,
    AlterationTest,
    BackgroundTally,
    Checkpoint,
    DrawsBound,
    Progress,
    Robustness,
    SufficientSet,
    Truncated,
    Warning,
)
from sagittal.explain.problem import Problem, State, prefixed, within
from sagittal.explain.sets.bounds import lower_bound
from sagittal.explain.sets.patches import masks_of, removals
from sagittal.explain.sets.scoring import Rule, Scored
from sagittal.explain.steps import Steps, ask
from sagittal.imaging.patch_sets import bits_of

TYPICAL_SETS, TYPICAL_PATCHES = 3, 8
"""Number of sets of a typical job, and of patches of a set, for the time that measurements take."""

SHIFTS = (Shift(-1, 0), Shift(1, 0), Shift(0, -1), Shift(0, 1))


def alterations_of(scale: PixelScale) -> dict[AlterationKind, Sequence[Alteration]]:
    """Returns the tested alterations; of several of one kind, the worst counts."""
    return {
        AlterationKind.ROUNDING: (Rounding(scale),),
        AlterationKind.JPEG: (Jpeg(scale),),
        AlterationKind.SHIFT: SHIFTS,
    }


ALTERATIONS = 1 + 1 + len(SHIFTS)
"""Number of altered images of each composed image."""


def robustness_evaluations(test: RobustnessTest | None) -> int:
    """Returns about how many evaluations the test takes for a typical job."""
    return 0 if test is None else TYPICAL_SETS * (1 + TYPICAL_PATCHES) * (ALTERATIONS + test.max_draws)


def assess_robustness(
    problem: Problem,
    found: Sequence[SufficientSet],
    test: RobustnessTest,
    *,
    rule: Rule,
    upsampling: Upsampling,
    state: State,
) -> Steps[None]:
    """Yields each set again with the robustness of its certificate.

    A deadline ends the test: the set that is being tested keeps the draws so far.

    Args:
        problem: The problem in which the sets were found.
        found: The sets, as last yielded.
        test: Options.
        rule: The rule of sufficiency.
        upsampling: Shape of the patches.
        state: State of the search, which each checkpoint contains too.
    """
    if problem.pixels is None:
        yield PIXELS_UNKNOWN
        return
    scores = _Scores(problem, rule, upsampling, state, within(problem.restored, "robustness").get("scores"))
    for number, each in enumerate(found):
        yield Progress(number / len(found), phase="robustness")
        tested = _Tested(scores=scores, scale=problem.pixels, test=test, bits=bits_of(each.patches), grid=each.grid)
        spent = yield from tested.run()
        if tested.complete:
            yield replace(each, certificate=replace(each.certificate, robust=tested.robustness))
        if spent is not None:
            yield Truncated(spent.limit)
            return
    yield Progress(1.0, phase="robustness")


@dataclass(slots=True, eq=False)
class _Scores:
    """Scores of composed images in the order of their requests, so that an attempt that resumes repeats none."""

    problem: Problem
    rule: Rule
    upsampling: Upsampling
    search: State
    known: Tensor | None
    """Float64 of shape (n, 3): target's score, top class and top score."""
    asked: int = 0
    """Number of scores that were requested so far in this attempt."""

    def hold(
        self, grid: int, sets: Sequence[int], alterations: Sequence[Alteration], background: Tensor | None = None
    ) -> Steps[list[tuple[bool, float]]]:
        """Returns whether each set is sufficient, and its score; the baseline is the background by default."""
        known = 0 if self.known is None else len(self.known)
        if known < self.asked + len(sets):
            yield from self._request(grid, sets, alterations, background)
        rows = self.known[self.asked : self.asked + len(sets)].tolist()  # type: ignore[index]
        self.asked += len(sets)
        scored = (Scored(score, int(top), best, exact=True) for score, top, best in rows)
        return [(self.rule.holds(each), each.score) for each in scored]

    def _request(
        self, grid: int, sets: Sequence[int], alterations: Sequence[Alteration], background: Tensor | None
    ) -> Steps[None]:
        subject = self.problem.subject
        if background is not None:
            subject = Subject(subject.image, background, subject.target)
        scores = yield from ask(
            Evaluate(
                subject=subject,
                masks=masks_of(sets, grid, subject.image.device),
                upsampling=self.upsampling,
                alterations=(*self.problem.rounding, *alterations),
                exact=True,
                metric=True,
            )
        )
        rows = torch.stack([scores.target.double(), scores.top_class.double(), scores.top_score.double()], -1).cpu()
        self.known = rows if self.known is None else torch.cat([self.known[: self.asked].cpu(), rows])
        yield Checkpoint({**self.search, **prefixed("robustness", {"scores": self.known})})


@dataclass(slots=True, kw_only=True, eq=False)
class _Tested:
    """The test of one set."""

    scores: _Scores
    scale: PixelScale
    test: RobustnessTest
    bits: int
    grid: int
    alterations: list[AlterationTest] = field(default_factory=list)
    draws: Counter[str] = field(default_factory=Counter)
    """Draws by kind of background."""
    sufficient: Counter[str] = field(default_factory=Counter)
    minimal: Counter[str] = field(default_factory=Counter)

    @property
    def complete(self) -> bool:
        """Whether all alterations are tested; the draws may end at any time."""
        return len(self.alterations) == len(AlterationKind)

    @property
    def robustness(self) -> Robustness:
        """The result so far."""
        kinds = sorted(self.draws)
        return Robustness(
            alterations=tuple(self.alterations),
            sufficient=self._bound(self.sufficient),
            minimal=self._bound(self.minimal),
            confidence=self.test.confidence,
            backgrounds=tuple(
                BackgroundTally(kind, self.draws[kind], self.sufficient[kind], self.minimal[kind]) for kind in kinds
            ),
        )

    def run(self) -> Steps[OutOfBudget | None]:
        """Returns the limit that ended the test early, if any."""
        try:
            for kind, alterations in alterations_of(self.scale).items():
                yield from self._alter(kind, alterations)
            for number in range(self.test.max_draws):
                if self._bound(self.minimal).at_least >= 1 - self.test.delta:
                    break
                yield from self._draw(number)
        except OutOfBudget as spent:
            return spent
        return None

    def _alter(self, kind: AlterationKind, alterations: Sequence[Alteration]) -> Steps[None]:
        """Tests the set and the sets with one patch less after each alteration of a kind."""
        alone: list[tuple[bool, float]] = []
        removed: list[tuple[bool, float]] = []
        for alteration in alterations:
            first, *others = yield from self.scores.hold(self.grid, [self.bits, *removals(self.bits)], [alteration])
            alone.append(first)
            removed += others
        sufficient = all(holds for holds, _ in alone)
        self.alterations.append(
            AlterationTest(
                alteration=kind,
                sufficient=sufficient,
                minimal=sufficient and not any(holds for holds, _ in removed),
                score=min(score for _, score in alone),
                removal_score=max(score for _, score in removed),
            )
        )

    def _draw(self, number: int) -> Steps[None]:
        """Tests the set on a drawn background; the sets with one patch less only if the set is sufficient."""
        problem = self.scores.problem
        generator = problem.generator("background", self.bits, number)
        background = draw_background(problem.image, self.test.images, generator)
        image = self.scale.rounded(background.image)
        ((holds, _),) = yield from self.scores.hold(self.grid, [self.bits], (), image)
        minimal = False
        if holds:
            removed = yield from self.scores.hold(self.grid, removals(self.bits), (), image)
            minimal = not any(each for each, _ in removed)
        self.draws[background.kind] += 1
        self.sufficient[background.kind] += holds
        self.minimal[background.kind] += minimal

    def _bound(self, held: Counter[str]) -> DrawsBound:
        count, draws = held.total(), self.draws.total()
        at_least = lower_bound(count, draws, 1 - self.test.confidence) if draws else 0.0
        return DrawsBound(at_least, count, draws)


PIXELS_UNKNOWN = Warning(
    "ROBUSTNESS_NOT_TESTED",
    "The image does not have 8-bit pixels, so that it cannot be stored in a file and compared. Give an image instead "
    "of model inputs, or inputs that were made from one with the model's preprocessing.",
)

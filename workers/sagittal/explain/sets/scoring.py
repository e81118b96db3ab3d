"""Scores of patch sets, each evaluated once: the memo that every structured explanation shares within its job."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sagittal.engine.requests import Scores, Upsampling
from sagittal.explain.events import Checkpoint, ClassScore
from sagittal.explain.problem import Problem, State, prefixed, within
from sagittal.explain.sets.patches import everything, masks_of, packed
from sagittal.explain.steps import Steps

# What a search asked and was told, in order, so that another attempt can repeat it without the model.
#
# A search is a function of its scores and its seed: one that is told the same scores again does the same again.


class Recording:
    """Scores of patch sets as tensors: one row for each set that was evaluated."""

    def __init__(self, grid: int, restored: State) -> None:
        """Begins with the recording of an earlier attempt, where its checkpoint has one.

        Args:
            grid: Side of the grid of patches.
            restored: State of that checkpoint.
        """
        self._grid = grid
        self._rows: dict[str, Tensor] = within(restored, "scores")
        self._places: dict[tuple[int, bool], int] = {}
        if self._rows:
            sets = [int.from_bytes(bytes(row), "little") for row in self._rows["sets"].tolist()]
            self._note(sets, self._rows["exact"].tolist())

    @property
    def state(self) -> dict[str, Tensor]:
        """The recording, for a checkpoint."""
        return prefixed("scores", self._rows)

    def add(self, sets: Sequence[int], scores: Scores, *, exact: bool) -> None:
        """Takes in the scores of sets."""
        rows = {
            "sets": packed(sets, self._grid),
            "exact": torch.full((len(sets),), exact),
            "target": scores.target,
            "top_class": scores.top_class,
            "top_score": scores.top_score,
        }
        known = self._rows or {name: new[:0] for name, new in rows.items()}
        self._rows = {name: torch.cat([known[name], new.to(known[name])]) for name, new in rows.items()}
        self._note(sets, [exact] * len(sets))

    def scores(self, sets: Sequence[int], *, exact: bool) -> Scores | None:
        """Returns the scores of sets; None where one was not evaluated with this precision."""
        places = [self._places.get((bits, exact), -1) for bits in sets]
        if -1 in places:
            return None
        return Scores(*(self._rows[name][places] for name in ("target", "top_class", "top_score")))

    def _note(self, sets: Iterable[int], exact: Iterable[bool]) -> None:
        for key in zip(sets, exact, strict=True):
            self._places[key] = len(self._places)


CHUNK = 256
"""Most sets in one request: between requests, progress flows and a cancellation bites."""

DOUBT = 0.005
"""A score this near to the required one is measured again in full precision before anything is decided on it."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What the model says when only a set is shown."""

    score: float
    """Probability of the target."""
    top_class: int
    top_score: float
    exact: bool
    """Whether it was measured in full precision."""

    @property
    def top(self) -> ClassScore:
        """The top class with its probability."""
        return ClassScore(self.top_class, self.top_score)


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A set is sufficient when its score reaches a share of the full image's."""

    required_score: float

    def holds(self, scored: Scored) -> bool:
        """Whether the set is sufficient."""
        return scored.score >= self.required_score

    def doubtful(self, scored: Scored) -> bool:
        """Whether the score is too near to the required one to be trusted in reduced precision."""
        return not scored.exact and abs(scored.score - self.required_score) <= DOUBT

    def shortfall(self, scored: Scored) -> float:
        """Returns how far the set is from sufficient; at most 0 where it is."""
        return self.required_score - scored.score


@dataclass(frozen=True, slots=True, kw_only=True)
class TopClass:
    """A set is sufficient when the target is still the model's top class."""

    target: int
    required_score: float = 0.0
    """No score is required: what counts is the rank."""

    def holds(self, scored: Scored) -> bool:
        """Whether the set is sufficient."""
        return scored.top_class == self.target

    def doubtful(self, scored: Scored) -> bool:
        """Whether full precision could change the top class. A lead over the second is not known: it is doubted."""
        return not scored.exact and scored.top_score - scored.score <= DOUBT

    def shortfall(self, scored: Scored) -> float:
        """Returns how far the target is behind the top class; minus its score where it leads."""
        return scored.top_score - scored.score if scored.top_class != self.target else -scored.score


Rule = Threshold | TopClass
"""When a set counts as sufficient."""


@dataclass(slots=True, kw_only=True, eq=False)
class Memo:
    """Scores by bit set. A set is evaluated once, and once more in full precision where a decision is close."""

    problem: Problem
    grid: int
    rule: Rule
    upsampling: Upsampling = Upsampling.BOX
    scores: dict[int, Scored] = field(default_factory=dict)
    evaluations: int = 0
    """Sets that were evaluated, by this attempt or one before it, those in full precision counted apart."""
    recording: Recording = field(init=False)
    """What was evaluated, so that an attempt that goes on from a checkpoint evaluates it no more."""

    def __post_init__(self) -> None:
        self.recording = Recording(self.grid, self.problem.restored)

    @property
    def all(self) -> int:
        """The set of all patches."""
        return everything(self.grid)

    def __getitem__(self, bits: int) -> Scored:
        """Returns the scores of a set that was evaluated."""
        return self.scores[bits]

    def __contains__(self, bits: int) -> bool:
        """Whether a set was evaluated."""
        return bits in self.scores

    def unseen(self, sets: Iterable[int]) -> list[int]:
        """Returns the sets that were not evaluated yet, each once, in order."""
        return [bits for bits in dict.fromkeys(sets) if bits not in self.scores]

    def sufficient(self, bits: int) -> bool:
        """Whether a set that was evaluated is sufficient."""
        return self.rule.holds(self.scores[bits])

    def merit(self, bits: int) -> float:
        """Returns how far a set that was evaluated is beyond sufficient; negative where it is not."""
        return -self.rule.shortfall(self.scores[bits])

    def evaluate(self, sets: Iterable[int]) -> Steps[None]:
        """Sees to it that sets are scored, in full precision where reduced precision leaves a doubt."""
        wanted = list(dict.fromkeys(sets))
        yield from self._request(self.unseen(wanted), exact=False)
        yield from self._request([bits for bits in wanted if self.rule.doubtful(self.scores[bits])], exact=True)

    def confirm(self, bits: int) -> Steps[Scored]:
        """Returns the scores of a set, measured alone and in full precision: for what is reported.

        A measurement: a spent budget does not stop it, so that what was found by then can be reported as it is.
        """
        if bits not in self.scores or not self.scores[bits].exact:
            yield from self._request([bits], exact=True, metric=True, report=True)
        return self.scores[bits]

    def measure(self, sets: Iterable[int]) -> Steps[None]:
        """Sees to it that sets are scored in full precision."""
        wanted = dict.fromkeys(sets)
        yield from self._request([b for b in wanted if b not in self.scores or not self.scores[b].exact], exact=True)

    def _request(self, sets: Sequence[int], **options: bool) -> Steps[None]:
        for start in range(0, len(sets), CHUNK):
            chunk = sets[start : start + CHUNK]
            recorded = self.recording.scores(chunk, exact=options["exact"])
            if recorded is not None:
                self.store(chunk, recorded, exact=options["exact"])
                continue
            masks = masks_of(chunk, self.grid, self.problem.image.device)
            scores = yield from self.problem.evaluate(masks, upsampling=self.upsampling, **options)
            self.recording.add(chunk, scores, exact=options["exact"])
            self.store(chunk, scores, exact=options["exact"])
            yield Checkpoint(self.recording.state)

    def store(self, sets: Sequence[int], scores: Scores, *, exact: bool) -> None:
        """Takes in the scores of sets."""
        self.evaluations += len(sets)
        rows = zip(scores.target.tolist(), scores.top_class.tolist(), scores.top_score.tolist(), strict=True)
        for bits, (score, top_class, top_score) in zip(sets, rows, strict=True):
            self.scores[bits] = Scored(score, top_class, top_score, exact)

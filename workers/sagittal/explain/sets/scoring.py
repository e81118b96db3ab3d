"""Scores of patch sets, each evaluated once: the memo that a structured explanation uses throughout its job."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sagittal.engine.alterations import Alteration
from sagittal.engine.requests import Scores, Upsampling
from sagittal.explain.events import Checkpoint, ClassScore
from sagittal.explain.problem import Problem, State, prefixed, within
from sagittal.explain.sets.patches import everything, masks_of, packed
from sagittal.explain.steps import Steps


class Recording:
    """Scores of patch sets as tensors: one row per evaluated set.

    A search is a function of its scores and its seed: with the same scores it takes the same steps.
    """

    def __init__(self, grid: int, restored: State, part: str = "scores") -> None:
        """Starts with the recording of an earlier attempt, if its checkpoint has one.

        Args:
            grid: Side of the grid of patches.
            restored: State of that checkpoint.
            part: Name of the recording in the state.
        """
        self._grid, self._part = grid, part
        self._rows: dict[str, Tensor] = within(restored, part)
        self._places: dict[tuple[int, bool], int] = {}
        if self._rows:
            sets = [int.from_bytes(bytes(row), "little") for row in self._rows["sets"].tolist()]
            self._note(sets, self._rows["exact"].tolist())

    @property
    def state(self) -> dict[str, Tensor]:
        """The recording, for a checkpoint."""
        return prefixed(self._part, self._rows)

    def add(self, sets: Sequence[int], scores: Scores, *, exact: bool) -> None:
        """Adds the scores of sets."""
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
        """Returns the scores of sets; None if one was not evaluated in this precision."""
        places = [self._places.get((bits, exact), -1) for bits in sets]
        if -1 in places:
            return None
        rows = {name: self._rows[name][places] for name in ("target", "top_class", "top_score")}
        return Scores(rows["target"], rows["top_class"], rows["top_score"])

    def _note(self, sets: Iterable[int], exact: Iterable[bool]) -> None:
        for key in zip(sets, exact, strict=True):
            self._places[key] = len(self._places)


FLOOR = 1e-5
"""Scores are kept at this distance from 0 and 1 before their log-odds are computed."""


def log_odds(score: float) -> float:
    """Returns the log-odds of a probability, finite at 0 and 1."""
    bounded = min(max(score, FLOOR), 1 - FLOOR)
    return math.log(bounded / (1 - bounded))


CHUNK = 256
"""Maximum number of sets in one request: between requests, progress is reported and a cancellation takes effect."""

DOUBT = 0.005
"""A score this close to the required one is measured again in full precision before a decision."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of the model if only a set is shown."""

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
    """A set is sufficient if its score reaches a share of the unmasked score."""

    required_score: float

    def holds(self, scored: Scored) -> bool:
        """Returns whether the set is sufficient."""
        return scored.score >= self.required_score

    def doubtful(self, scored: Scored) -> bool:
        """Returns whether the score is too close to the required one for reduced precision."""
        return not scored.exact and abs(scored.score - self.required_score) <= DOUBT

    def shortfall(self, scored: Scored) -> float:
        """Returns the difference between the required score and the set's; at most 0 if the set is sufficient."""
        return self.required_score - scored.score

    def margin(self, scored: Scored) -> float:
        """Returns the distance of the score from the required one in log-odds; negative below it."""
        return log_odds(scored.score) - log_odds(self.required_score)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopClass:
    """A set is sufficient if the target is still the model's top class."""

    target: int
    required_score: float = 0.0
    """No score is required: the rank decides."""

    def holds(self, scored: Scored) -> bool:
        """Returns whether the set is sufficient."""
        return scored.top_class == self.target

    def doubtful(self, scored: Scored) -> bool:
        """Returns whether full precision could change the top class.

        A leading target is always doubtful: its margin over the second class is unknown.
        """
        return not scored.exact and scored.top_score - scored.score <= DOUBT

    def shortfall(self, scored: Scored) -> float:
        """Returns the distance of the target behind the top class; minus its score if it leads."""
        return scored.top_score - scored.score if scored.top_class != self.target else -scored.score

    def margin(self, scored: Scored) -> float:
        """Returns the distance of the score from that of the best other class, or from its bound, in log-odds."""
        other = scored.top_score if scored.top_class != self.target else min(scored.score, 1 - scored.score)
        return log_odds(scored.score) - log_odds(other)


Rule = Threshold | TopClass
"""A rule that decides whether a set is sufficient."""


@dataclass(slots=True, kw_only=True, eq=False)
class Memo:
    """Scores by bit set. A set is evaluated once, and again in full precision if a decision is close."""

    problem: Problem
    grid: int
    rule: Rule
    upsampling: Upsampling = Upsampling.BOX
    scores: dict[int, Scored] = field(default_factory=dict)
    evaluations: int = 0
    """Number of evaluated sets, including earlier attempts; a set that was repeated in full precision counts twice."""
    alterations: tuple[Alteration, ...] = ()
    """Changes to the composed images, which then are always scored in full precision."""
    recording: Recording = field(init=False)
    """All evaluated scores, so that an attempt that resumes from a checkpoint does not evaluate them again."""
    recordings: list[Recording] = field(default_factory=list)
    """The recordings of all memos of a job: each checkpoint has them all."""

    def __post_init__(self) -> None:
        part = "altered-scores" if self.alterations else "scores"
        self.recording = Recording(self.grid, self.problem.restored, part)
        self.recordings.append(self.recording)

    def altered(self, *alterations: Alteration) -> "Memo":
        """Returns an empty memo of the same sets after alterations."""
        return replace(self, alterations=alterations, scores={}, evaluations=0)

    @property
    def all(self) -> int:
        """The set of all patches."""
        return everything(self.grid)

    def __getitem__(self, bits: int) -> Scored:
        """Returns the scores of an evaluated set."""
        return self.scores[bits]

    def __contains__(self, bits: int) -> bool:
        """Returns whether a set was evaluated."""
        return bits in self.scores

    def unseen(self, sets: Iterable[int]) -> list[int]:
        """Returns the sets that were not evaluated yet, each once, in order."""
        return [bits for bits in dict.fromkeys(sets) if bits not in self.scores]

    def sufficient(self, bits: int) -> bool:
        """Returns whether an evaluated set is sufficient."""
        return self.rule.holds(self.scores[bits])

    def merit(self, bits: int) -> float:
        """Returns the margin by which an evaluated set is sufficient; negative if it is not."""
        return -self.rule.shortfall(self.scores[bits])

    def margin(self, bits: int) -> float:
        """Returns the distance of an evaluated set from the threshold in log-odds; negative if it is not sufficient."""
        return self.rule.margin(self.scores[bits])

    def evaluate(self, sets: Iterable[int]) -> Steps[None]:
        """Ensures that sets are scored, in full precision if reduced precision leaves a doubt."""
        wanted = list(dict.fromkeys(sets))
        yield from self._request(self.unseen(wanted), exact=bool(self.alterations))
        yield from self._request([bits for bits in wanted if self.rule.doubtful(self.scores[bits])], exact=True)

    def confirm(self, bits: int) -> Steps[Scored]:
        """Returns the scores of a set, measured alone and in full precision, for reporting.

        This is a measurement: a spent budget does not prevent it, so that results found until then can be reported.
        """
        if bits not in self.scores or not self.scores[bits].exact:
            yield from self._request([bits], exact=True, metric=True, report=True)
        return self.scores[bits]

    def measure(self, sets: Iterable[int]) -> Steps[None]:
        """Ensures that sets are scored in full precision."""
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
            scores = yield from self.problem.evaluate(
                masks, upsampling=self.upsampling, alterations=self.alterations, **options
            )
            self.recording.add(chunk, scores, exact=options["exact"])
            self.store(chunk, scores, exact=options["exact"])
            yield Checkpoint({name: rows for each in self.recordings for name, rows in each.state.items()})

    def store(self, sets: Sequence[int], scores: Scores, *, exact: bool) -> None:
        """Stores the scores of sets."""
        self.evaluations += len(sets)
        rows = zip(scores.target.tolist(), scores.top_class.tolist(), scores.top_score.tolist(), strict=True)
        for bits, (score, top_class, top_score) in zip(sets, rows, strict=True):
            self.scores[bits] = Scored(score, top_class, top_score, exact)

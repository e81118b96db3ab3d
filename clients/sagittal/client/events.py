"""Events of a job: one frozen dataclass for each, with masks as numpy arrays.

A class has the name of the API's message, and its fields have the names of the message's fields, so that `parsing` is
generic; `From` names a field with another name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from math import floor
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sagittal.client.errors import InvalidRequest
from sagittal.client.preprocessing import Preprocessing
from sagittal.imaging.surrogates import pooled, predict


@dataclass(frozen=True, slots=True)
class From:
    """Names the field of the API's message that a field comes from."""

    field: str


@dataclass(frozen=True, slots=True)
class ClassScore:
    """A class and its probability."""

    index: int
    label: str
    """Empty if the model has no labels."""
    score: float
    """Probability, 0 to 1."""


@dataclass(frozen=True, slots=True)
class PatchSet:
    """A set of patches on a square grid."""

    grid: int
    """Side of the grid in patches."""
    patches: tuple[int, ...]
    """Indices in row-major order (row * grid + column), ascending."""

    @property
    def cells(self) -> tuple[tuple[int, int], ...]:
        """The patches as (row, column) pairs."""
        return tuple(divmod(patch, self.grid) for patch in self.patches)


@dataclass(frozen=True, slots=True)
class CausalTriple:
    """Scores of a set: shown alone, and hidden."""

    sufficiency: float
    without: float
    top_without: ClassScore


@dataclass(frozen=True, slots=True)
class AlterationTest:
    """A set and the sets with one patch less, scored after an alteration of the composed images."""

    alteration: str
    """"rounding" (8-bit pixels), "jpeg" (quality 95) or "shift" (by one pixel; the worst of four directions)."""
    sufficient: bool
    minimal: bool
    """Whether the set is sufficient and no set with one patch less is."""
    score: float
    """Lowest score of the set."""
    removal_score: float
    """Highest score of a set with one patch less."""


@dataclass(frozen=True, slots=True)
class DrawsBound:
    """A lower confidence bound on the probability of a property, from independent draws."""

    at_least: float
    held: int
    """Number of draws for which the property held."""
    draws: int


@dataclass(frozen=True, slots=True)
class BackgroundTally:
    """Draws of one kind of background."""

    kind: str
    """"blur", "mean", "noise" or "image"."""
    draws: int
    sufficient: int
    """Number of draws for which the set was sufficient."""
    minimal: int
    """Number of draws for which no set with one patch less was sufficient either."""


@dataclass(frozen=True, slots=True)
class Robustness:
    """Sufficiency and minimality of a set after alterations, and on drawn backgrounds."""

    alterations: tuple[AlterationTest, ...]
    sufficient: DrawsBound
    minimal: DrawsBound
    """Of draws for which the set is sufficient and no set with one patch less is."""
    confidence: float
    """Probability that a bound does not exceed the truth, for each bound by itself, whenever the draws ended."""
    backgrounds: tuple[BackgroundTally, ...]
    """The draws by kind of background; none if only the search tested alterations."""

    @property
    def survives(self) -> Mapping[str, bool]:
        """Whether the set is sufficient and minimal after each alteration, by name."""
        return {each.alteration: each.minimal for each in self.alterations}

    @property
    def text(self) -> str:
        """One line, such as "holds 8-bit, JPEG 95; sufficient on at least 90% of backgrounds (33 of 33 drawn)"."""
        names = {"rounding": "8-bit", "jpeg": "JPEG 95", "shift": "shifted by a pixel"}
        tested = {names.get(name, name): held for name, held in self.survives.items()}
        parts = [
            f"{word} {', '.join(found)}"
            for word, found in (
                ("holds", [name for name, held in tested.items() if held]),
                ("does not hold", [name for name, held in tested.items() if not held]),
            )
            if found
        ]
        halves = [
            names.get(each.alteration, each.alteration)
            for each in self.alterations
            if each.sufficient and not each.minimal
        ]
        if halves:
            parts.append(f"still sufficient, but not minimal: {', '.join(halves)}")
        held, draws, at_least = self.sufficient.held, self.sufficient.draws, floor(100 * self.sufficient.at_least)
        if draws:
            parts.append(f"sufficient on at least {at_least}% of backgrounds ({held} of {draws} drawn)")
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A claim of minimality, and the checks behind it."""

    level: str
    """"sufficient", "one-minimal", "subset-minimal" or "minimum-size"; each includes those before it."""
    checked: int
    """Number of sets that were scored to prove it."""
    required_score: float
    """The score that a sufficient set must reach."""
    model_digest: str
    robust: Robustness | None = None
    """How the claim fares on altered images; None if it was not tested by `certify_after` or `Metrics.robustness`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Event:
    """One fact about a job. Events are equal if all their fields are, including arrays."""

    job_id: str
    sequence: int
    """Position in the job's log, from 1, without gaps."""
    time: datetime
    """When it was written, in UTC."""
    request_id: str = ""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(
            _same(getattr(self, each.name), getattr(other, each.name)) for each in fields(self)
        )

    def __hash__(self) -> int:
        return hash((type(self), self.job_id, self.sequence))

    def __repr__(self) -> str:
        """The fields of this kind, with arrays by their shape."""
        own = [each.name for each in fields(self) if each.name not in COMMON_FIELDS]
        return f"{type(self).__name__}({', '.join(f'{name}={_short(getattr(self, name))}' for name in own)})"


#: Fields of every event, which do not describe its content.
COMMON_FIELDS = frozenset(each.name for each in fields(Event))


def _short(value: object) -> str:
    return f"array{value.shape}" if isinstance(value, np.ndarray) else repr(value)


def _same(one: object, other: object) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return bool(one == other)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Accepted(Event):
    """The job is in the queue."""

    queue_position: int
    estimated_evaluations: int
    """Expected number of model evaluations; 0 if unknown."""
    ready_workers: int
    """Number of workers with the model ready; 0 means that the job waits for one."""
    estimated_seconds: Annotated[float | None, From("estimated_run_time")] = None
    """Expected run time; None if unknown."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Started(Event):
    """A worker started the job, or restarted it."""

    worker: str
    attempt: int
    waited_seconds: Annotated[float, From("waited")]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Prediction(Event):
    """Probabilities that the model gives on the image and on the baseline."""

    target: ClassScore
    """The explained class."""
    top: tuple[ClassScore, ...]
    baseline_score: float
    """The target's probability on the baseline, which should be near 0; 0 if there is no baseline."""
    baseline: str
    """"blur", "black", "mean", "noise" or "image"; empty if nothing was hidden: a method that only reads the model's
    layers, without curves."""
    blur_sigma: float
    """Standard deviation of a blurred baseline, in pixels of the model's input; otherwise 0."""
    preprocessing: Preprocessing | None = None
    """Conversion of an image to the model's input; None if the worker did not report it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Progress(Event):
    """Progress of the job."""

    fraction: float
    evaluations: int
    objective: float | None
    phase: str
    terms: Mapping[str, float] = field(default_factory=dict)
    """Unweighted terms of the objective by name, and their "epoch"; empty for other methods."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Mask(Event):
    """A saliency mask, intermediate or final."""

    saliency: NDArray[np.float32]
    """Shape (size, size), 0 to 1 unless `signed`; 1 is most salient; not normalised per image."""
    final: bool
    index: int
    """Index of this mask among several diverse masks."""
    signed: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class SufficientSet(Event):
    """A minimal sufficient explanation."""

    patches: PatchSet
    score: float
    """The target's probability if only they are shown."""
    certificate: Certificate
    causal: CausalTriple | None
    evaluations: int
    diverse: bool
    top: ClassScore | None = None
    """The top class if only the patches are shown."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class GraphNode(Event):
    """A node of the structured attention graph."""

    id: str
    patches: PatchSet
    score: float
    relative_score: float
    root: bool
    causal: CausalTriple | None
    top: ClassScore | None = None
    """The top class if only the patches are shown."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class GraphEdge(Event):
    """An edge of the graph: the child is its parent without one patch."""

    parent: str
    child: str
    removed_patch: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Curve(Event):
    """The score as a function of the share of the image that is inserted or deleted."""

    kind: str
    """"insertion" or "deletion"."""
    fractions: NDArray[np.float32]
    scores: NDArray[np.float32]
    auc: float
    auc_normalized: float
    mask_index: int


@dataclass(frozen=True, slots=True)
class AreaInterval:
    """An interval for the area of a curve."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Stability(Event):
    """How much a heatmap and its curves change with the seed."""

    runs: int
    """Number of runs, the explanation among them."""
    rank_correlation: float
    """Mean rank correlation of the explanation's heatmap with those of the other runs."""
    lowest_rank_correlation: float
    unstable: bool
    """Whether the mean rank correlation is below 0.5."""
    deviation: NDArray[np.float32]
    """Standard deviation of each cell over the runs, of the mask's shape."""
    insertion: AreaInterval | None
    """Interval that contains the area of one more run; None without curves."""
    deletion: AreaInterval | None
    confidence: float
    """Probability that an interval contains it, if areas are normally distributed over seeds."""

    @property
    def text(self) -> str:
        """One line, such as "rank correlation 0.93 with 4 other seeds; insertion 0.61 to 0.67"."""
        parts = [f"rank correlation {self.rank_correlation:.2f} with {self.runs - 1} other seeds"]
        for name, area in (("insertion", self.insertion), ("deletion", self.deletion)):
            if area is not None:
                parts.append(f"{name} {area.low:.3f} to {area.high:.3f}")
        return "; ".join(parts) + (" (unstable)" if self.unstable else "")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Surrogate(Event):
    """What predicts the score of any occlusion of the image, from those that were scored."""

    occlusions: NDArray[np.float32]
    """Share of each cell that each scored occlusion shows, of shape (n, grid, grid), 0 to 1."""
    scores: NDArray[np.float32]
    """Scores of the occlusions as shares of the unmasked score, of shape (n,)."""
    relevance: NDArray[np.float32]
    """Weight of each cell in the similarity of two occlusions, of shape (grid, grid)."""
    noise: float
    """Variance of what the surrogate does not explain, as a share of the variance that it explains."""
    usual_error: float
    """Mean absolute error of predicting each scored occlusion from the others, as a share of the unmasked score."""

    def predict(self, masks: ArrayLike) -> NDArray[np.float64]:
        """Returns the predicted scores (n,) as shares of the unmasked score.

        Args:
            masks: Occlusions of the model's input: 1 where the image is shown and 0 where the baseline is, of shape
                (n, height, width) of any size.

        Raises:
            InvalidRequest: the masks have another shape.
        """
        try:
            shown = pooled(masks, self.relevance.shape[0])
        except ValueError as error:
            raise InvalidRequest(str(error), field="masks") from error
        return predict(self.occlusions, self.scores, self.relevance, self.noise, shown)

    @property
    def text(self) -> str:
        """One line, such as "from 800 occlusions, usual error 6% of the unmasked score"."""
        return f"from {len(self.scores)} occlusions, usual error {self.usual_error:.0%} of the unmasked score"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ConceptContribution(Event):
    """The contribution of one concept to the prediction."""

    index: int
    name: str
    value: float
    contribution: float
    heatmap: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ConceptPrediction(Event):
    """Prediction of a concept set for the image: the sum of its concepts' contributions."""

    target: ClassScore
    predicted: float
    """In units of the model's output, before softmax if it has one."""
    output: float
    """The output of the model itself."""
    gap: float
    usual_error: float
    """Mean absolute gap on the images that were held out of the fit."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Warning(Event):
    """A limit on how far the result can be trusted."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Completed(Event):
    """Terminal event: the explanation is complete."""

    insertion: float | None
    deletion: float | None
    evaluations: int
    gradient_evaluations: int
    metric_evaluations: int
    cache_hits: int
    """Evaluations that the worker answered from memory; they are included in `evaluations`."""
    run_seconds: Annotated[float, From("run_time")]
    wait_seconds: Annotated[float, From("wait_time")]
    model_digest: str
    model_version: str
    seed: int
    method: str
    parameters_json: str
    versions: Mapping[str, str]
    truncated: bool
    truncated_by: str
    pointing_game_hit: bool | None
    predictability_auroc: float | None
    """How well the explanation predicts the model on random occlusions; None if it was not measured."""
    predictability_balanced_accuracy: float | None
    cache_age_seconds: Annotated[float | None, From("cache_age")]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Unrecognised(Event):
    """An event of a kind that this version does not know, sent by a newer service."""

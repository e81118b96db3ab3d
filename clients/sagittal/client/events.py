"""Events of a job as they come: one frozen dataclass for each, masks as numpy arrays.

A class has the name of the API's message and a field has the name of its field, so that `parsing` needs no word about
either; `From` names a field that is called otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from sagittal.client.preprocessing import Preprocessing


@dataclass(frozen=True, slots=True)
class From:
    """Names the field of the API's message that a field comes from."""

    field: str


@dataclass(frozen=True, slots=True)
class ClassScore:
    """A class and its probability."""

    index: int
    label: str
    """Empty where the model has none."""
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
    """What the model says when only the set is shown, and when only the set is hidden."""

    sufficiency: float
    without: float
    top_without: ClassScore


@dataclass(frozen=True, slots=True)
class Certificate:
    """How a claim of minimality was checked."""

    level: str
    """"sufficient", "one-minimal", "subset-minimal" or "minimum-size", each containing the ones before it."""
    checked: int
    """Sets that were scored to prove it."""
    required_score: float
    """The score a set must reach to be sufficient."""
    model_digest: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Event:
    """One fact about a job. Events are equal if all that they say is, arrays included."""

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
        """The fields of this kind, arrays by their shape."""
        own = [each.name for each in fields(self) if each.name not in COMMON_FIELDS]
        return f"{type(self).__name__}({', '.join(f'{name}={_short(getattr(self, name))}' for name in own)})"


#: Fields that every event has, by which a reader tells none from another.
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
    """Model evaluations it is expected to take; 0 where not known."""
    ready_workers: int
    """Workers that have the model ready; 0 means that the job waits until one comes."""
    estimated_seconds: Annotated[float | None, From("estimated_run_time")] = None
    """Time that it is expected to run once begun; None where not known."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Started(Event):
    """A worker began, or began again."""

    worker: str
    attempt: int
    waited_seconds: Annotated[float, From("waited")]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Prediction(Event):
    """What the model says of the image."""

    target: ClassScore
    """The class that is explained."""
    top: tuple[ClassScore, ...]
    baseline_score: float
    """The target's probability on the baseline, which should be near 0; 0 where there is none."""
    baseline: str
    """"blur", "black", "mean", "noise" or "image"; empty where nothing was hidden: a method that only looks into the
    model's layers, without curves."""
    blur_sigma: float
    """For a blurred baseline, in pixels of the model's input; else 0."""
    preprocessing: Preprocessing | None = None
    """How an image becomes the model's input; None if the worker did not report it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Progress(Event):
    """How far the job is."""

    fraction: float
    evaluations: int
    objective: float | None
    phase: str
    terms: Mapping[str, float] = field(default_factory=dict)
    """Terms of the objective by name, without their weights, and the "epoch" they are of; empty for other methods."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Mask(Event):
    """A saliency mask, forming or final."""

    saliency: NDArray[np.float32]
    """Shape (size, size), 0 to 1 unless `signed`; 1 is most salient; not normalised per image."""
    final: bool
    index: int
    """Which of several diverse masks this is."""
    signed: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class SufficientSet(Event):
    """A minimal sufficient explanation."""

    patches: PatchSet
    score: float
    """The target's probability when only they are shown."""
    certificate: Certificate
    causal: CausalTriple | None
    evaluations: int
    diverse: bool
    top: ClassScore | None = None
    """The top class when only the patches are shown."""


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
    """The top class when only the patches are shown."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class GraphEdge(Event):
    """An edge of the graph: the child is its parent less one patch."""

    parent: str
    child: str
    removed_patch: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Curve(Event):
    """How the score follows the share of the image inserted or deleted."""

    kind: str
    """"insertion" or "deletion"."""
    fractions: NDArray[np.float32]
    scores: NDArray[np.float32]
    auc: float
    auc_normalized: float
    mask_index: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ConceptContribution(Event):
    """The part of one concept in the prediction."""

    index: int
    name: str
    value: float
    contribution: float
    heatmap: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ConceptPrediction(Event):
    """What a concept set predicts of the image: the sum of its concepts' contributions."""

    target: ClassScore
    predicted: float
    """In units of the model's output, before softmax where it has one."""
    output: float
    """What the model says."""
    gap: float
    usual_error: float
    """Mean absolute gap on the images that were held out of the fit."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Warning(Event):
    """Something that limits how far the answer can be trusted."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Completed(Event):
    """Terminal: the explanation is whole."""

    insertion: float | None
    deletion: float | None
    evaluations: int
    gradient_evaluations: int
    metric_evaluations: int
    cache_hits: int
    """Of the evaluations, those that the worker answered from memory."""
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
    cache_age_seconds: Annotated[float | None, From("cache_age")]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Unrecognised(Event):
    """An event of a kind that this version does not know: a newer service sent it."""

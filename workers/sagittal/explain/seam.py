"""The seam between explainers and whatever evaluates the model.

An explainer never touches a model, a queue or a device. It is a generator that yields

- `Evaluate`: masked images to score, with or without the gradient with respect to the masks; answered with `Scores`;
- `Inspect`: a call with the model itself, for methods that must see its layers; answered with the call's result;
- an event (`Progress`, `SaliencyMask`, ...): something that was found out; answered with None.

The engine gathers the requests of all running jobs into batches. It throws `OutOfBudget` into a generator whose budget
is spent: an explainer that catches it yields the best it has so far.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torch import Tensor, nn

Steps = Generator[Any, Any, Any]
"""What an explainer is: it yields requests and events, and receives answers; some parts return a value."""


class OutOfBudget(Exception):
    """The job may evaluate no more; `limit` is `evaluations` or `deadline`."""

    def __init__(self, limit: str) -> None:
        super().__init__(f"the budget of {limit} is spent")
        self.limit = limit


class Upsampling(Enum):
    """How a mask of cells becomes a mask of pixels."""

    BILINEAR = "bilinear"
    """Smooth: hard edges are features to a network."""
    BOX = "box"
    """Exact rectangles, for patches: what is drawn is what was tested."""
    ALIGNED = "aligned"
    """Bilinear with aligned corners, as the authors' code does it: cells at the border cover less than others."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What masks are applied to, and the class whose score counts."""

    image: Tensor
    """Float32 of shape (3, height, width), normalised as the model takes it."""
    baseline: Tensor
    """What replaces the hidden part, of the image's shape."""
    target: int | None
    """Index of the class; None for the top class of each masked image."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluate:
    """Masked images to score: `image * mask + baseline * (1 - mask)`, the mask upsampled to the image's size."""

    subject: Subject
    masks: Tensor
    """Float32 of shape (n, height, width) in [0, 1]: 1 keeps the image. Any n of at least 1, any size."""
    gradient: bool = False
    """Asks for the gradient of each score with respect to its mask."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise on the masked image, in units of the normalised input."""
    noise_seed: int = 0
    """Seed of that noise: row i of the masks gets the same noise wherever and whenever it is evaluated."""
    upsampling: Upsampling = Upsampling.BILINEAR
    exact: bool = False
    """Asks for full precision: for scores that are reported or decided on."""
    metric: bool = False
    """Counts as measurement, not against the budget of evaluations."""
    probabilities: bool = False
    """Asks for the probabilities of all classes."""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Scores of n masked images."""

    target: Tensor
    """Float32 of shape (n,): probability of the target."""
    top_class: Tensor
    """Int64 of shape (n,): index of the most probable class."""
    top_score: Tensor
    """Float32 of shape (n,): its probability."""
    gradient: Tensor | None = None
    """Float32 of the masks' shape: derivative of each target score with respect to each cell of its mask."""
    probabilities: Tensor | None = None
    """Float32 of shape (n, classes)."""


def gradient_of(scores: Scores) -> Tensor:
    """Returns the gradient of scores that were asked for with one."""
    if scores.gradient is None:
        raise ValueError("the scores have no gradient: ask with gradient=True")
    return scores.gradient


@dataclass(frozen=True, slots=True, eq=False)
class ModelView:
    """The model as a method sees it that looks into its layers."""

    module: nn.Module
    """The model with its own layers and names, in evaluation mode, parameters frozen. It maps (n, 3, height, width) to
    (n, classes)."""
    probabilities: Callable[[Tensor], Tensor]
    """Turns its output into probabilities of shape (n, classes)."""
    subject: Subject


def always() -> bool:
    """Is ready now."""
    return True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inspect:
    """A call with the model, run alone between batches; answered with what it returns."""

    subject: Subject
    call: Callable[[ModelView], Any]
    evaluations: int = 0
    """Model evaluations that the call makes, those with gradient included."""
    gradient_evaluations: int = 0
    exact: bool = True
    rows: int = 0
    """Masked images that it takes as long as, beside its evaluations, when turns are given; no budget counts them."""
    ready: Callable[[], bool] = always
    """Whether it can run now: what it waits for, such as images that are being read, holds up nobody else."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the job is."""

    fraction: float
    """Share done, 0 to 1."""
    objective: float | None = None
    """What is minimised, where the method has an objective."""
    phase: str = "optimise"
    terms: Mapping[str, float] = field(default_factory=dict)
    """Terms of the objective by name, without their weights, where the method tells them."""


@dataclass(frozen=True, slots=True, eq=False)
class SaliencyMask:
    """A heatmap: float32 of shape (height, width), 1 most salient; empty explanations are all zeros."""

    saliency: Tensor
    final: bool = True
    index: int = 0
    """Which of several diverse masks it is."""
    signed: bool = False
    """Whether values may be negative: evidence against the target."""


@dataclass(frozen=True, slots=True)
class ClassScore:
    """A class and its probability."""

    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says of the image, and of the baseline."""

    target: ClassScore
    top: tuple[ClassScore, ...]
    """The most probable classes, best first."""
    baseline_score: float
    """Probability of the target on the baseline; 0 where there is none."""
    baseline: str
    """Kind of the baseline, such as `blur`; empty where nothing is hidden, so that there is none."""
    blur_sigma: float = 0.0
    """Standard deviation of the blur in pixels; 0 for other baselines."""


class CertificateLevel(Enum):
    """How far minimality was proven, each level containing those before it."""

    SUFFICIENT = "sufficient"
    ONE_MINIMAL = "1-minimal"
    SUBSET_MINIMAL = "subset-minimal"
    MINIMUM_SIZE = "minimum-size"


@dataclass(frozen=True, slots=True)
class Certificate:
    """A claim of minimality, and what was checked for it."""

    level: CertificateLevel
    checked: int
    """Sets that the claim rests on, the certified one included; each was scored."""
    required_score: float
    """The score that a set must reach to be sufficient; 0 where the target must be the top class instead."""


@dataclass(frozen=True, slots=True)
class CausalTriple:
    """What the model says when only a set is shown, and when only the set is hidden."""

    sufficiency: float
    without: float
    top_without: ClassScore


@dataclass(frozen=True, slots=True)
class SufficientSet:
    """A minimal sufficient explanation on a square grid of patches."""

    grid: int
    patches: tuple[int, ...]
    """Indices row * grid + column, ascending."""
    score: float
    certificate: Certificate
    causal: CausalTriple | None
    """None where the budget ended before it was measured."""
    diverse: bool = True
    """Whether it is in the largest family that overlaps no more than allowed. Known only at the end: a set whose flag
    changes is yielded again, and of two events with the same patches the later one holds."""
    top: ClassScore | None = None
    """The top class when only the set is shown."""
    evaluations: int = 0
    """Sets that the search had evaluated when it was found, those of an earlier attempt included."""


@dataclass(frozen=True, slots=True)
class GraphNode:
    """A node of the structured attention graph."""

    grid: int
    patches: tuple[int, ...]
    score: float
    relative_score: float
    root: bool
    causal: CausalTriple | None = None
    top: ClassScore | None = None
    """The top class when only the patches are shown."""


@dataclass(frozen=True, slots=True)
class GraphEdge:
    """An edge of the graph: the child is the parent less one patch."""

    grid: int
    parent: tuple[int, ...]
    child: tuple[int, ...]
    removed: int


@dataclass(frozen=True, slots=True)
class RegionScores:
    """What the model says of sets of patches, each shown alone or hidden, in the order in which they were asked for."""

    full: ClassScore
    """The target on the whole image."""
    scores: tuple[float, ...]
    """Probability of the target for each set."""
    top: tuple[ClassScore, ...]
    """The top class for each set."""


class CurveKind(Enum):
    """Which way the curve goes."""

    INSERTION = "insertion"
    DELETION = "deletion"


@dataclass(frozen=True, slots=True)
class Curve:
    """How the score follows the share of the image that is inserted or deleted, most salient first."""

    kind: CurveKind
    fractions: tuple[float, ...]
    """From 0 to 1, ascending."""
    scores: tuple[float, ...]
    auc: float
    """Area under the curve by the trapezoid rule."""
    auc_normalized: float
    """That area over the full image's score."""
    mask_index: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class ConceptContribution:
    """The part of one x-feature in the prediction."""

    index: int
    name: str
    value: float
    contribution: float
    heatmap: Tensor


@dataclass(frozen=True, slots=True)
class ConceptPrediction:
    """What an explanation network (XNN) predicts of an image: the sum of its x-features' contributions."""

    target: int
    """Class whose output it is."""
    predicted: float
    """In units of the model's output, before softmax where it has one."""
    output: float
    """What the model says; `predicted` less it is the faithfulness gap."""
    usual_error: float
    """Mean absolute gap on the images that were held out of the fit."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that limits how far the answer can be trusted; the wire calls it a warning."""

    reason: str
    """Stable identifier in capitals, such as `BASELINE_STILL_CONFIDENT`."""
    message: str


@dataclass(frozen=True, slots=True)
class Truncated:
    """A budget ended the search: what follows is the best so far."""

    limit: str
    """`evaluations` or `deadline`."""


@dataclass(frozen=True, slots=True)
class PointingGame:
    """Whether the heatmap's peak lies in a box, within the tolerance."""

    hit: bool


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """State from which another worker can go on: tensors by name."""

    state: Mapping[str, Tensor] = field(default_factory=dict)


Request = Evaluate | Inspect
"""What an explainer may ask."""

Event = (
    Progress
    | SaliencyMask
    | Prediction
    | SufficientSet
    | GraphNode
    | GraphEdge
    | RegionScores
    | Curve
    | ConceptPrediction
    | ConceptContribution
    | Notice
    | Truncated
    | PointingGame
    | Checkpoint
)
"""What an explainer may tell."""

"""What an explainer may tell: each event is something that was found out, and none is answered."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor


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

    @property
    def id(self) -> str:
        """Identifies the node in its graph: its patches as a bit set in hexadecimal."""
        return f"{sum(1 << patch for patch in self.patches):x}"


@dataclass(frozen=True, slots=True)
class GraphEdge:
    """An edge of the graph: the child is the parent less one patch."""

    parent: str
    """The `id` of a node."""
    child: str
    removed_patch: int


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
    heatmap: SaliencyMask


@dataclass(frozen=True, slots=True)
class ConceptPrediction:
    """What an explanation network (XNN) predicts of an image: the sum of its x-features' contributions."""

    target: ClassScore
    """Class whose output it is; its score is 0."""
    predicted: float
    """In units of the model's output, before softmax where it has one."""
    output: float
    """What the model says."""
    usual_error: float
    """Mean absolute gap on the images that were held out of the fit."""

    @property
    def gap(self) -> float:
        """The faithfulness gap."""
        return self.predicted - self.output


@dataclass(frozen=True, slots=True)
class Warning:
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
class Measurement:
    """A figure of the result, by the name of its field in the terminal event, such as `insertion`."""

    name: str
    value: float | bool


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """State from which another worker can go on: tensors by name."""

    state: Mapping[str, Tensor] = field(default_factory=dict)


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
    | Warning
    | Truncated
    | Measurement
    | Checkpoint
)
"""What an explainer may tell."""

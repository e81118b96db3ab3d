"""Events that an explainer yields. Each event reports one finding and gets no answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of the job."""

    fraction: float
    """Completed share, 0 to 1."""
    objective: float | None = None
    """Current value of the objective, if the method has one."""
    phase: str = "optimise"
    terms: Mapping[str, float] = field(default_factory=dict)
    """Unweighted terms of the objective by name, if the method reports them."""


@dataclass(frozen=True, slots=True, eq=False)
class SaliencyMask:
    """A heatmap: float32 of shape (height, width), 1 most salient; an empty explanation is all zeros."""

    saliency: Tensor
    final: bool = True
    index: int = 0
    """Index of this mask among several diverse masks."""
    signed: bool = False
    """Whether values may be negative. A negative value is evidence against the target."""


@dataclass(frozen=True, slots=True)
class ClassScore:
    """A class and its probability."""

    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """Probabilities that the model gives on the image and on the baseline."""

    target: ClassScore
    top: tuple[ClassScore, ...]
    """The most probable classes, best first."""
    baseline_score: float
    """Probability of the target on the baseline; 0 if there is no baseline."""
    baseline: str
    """Kind of the baseline, such as `blur`; empty if the method hides nothing and there is no baseline."""
    blur_sigma: float = 0.0
    """Standard deviation of the blur in pixels; 0 for other baselines."""


class CertificateLevel(Enum):
    """Degree to which minimality was proven. Each level includes the levels before it."""

    SUFFICIENT = "sufficient"
    ONE_MINIMAL = "one-minimal"
    SUBSET_MINIMAL = "subset-minimal"
    MINIMUM_SIZE = "minimum-size"


class AlterationKind(Enum):
    """A change to composed images under which a certificate is tested."""

    ROUNDING = "rounding"
    """Rounding to 8-bit pixels, as in a file without loss."""
    JPEG = "jpeg"
    """A JPEG file of quality 95."""
    SHIFT = "shift"
    """A shift by one pixel up, down, left or right: the worst of the four."""


@dataclass(frozen=True, slots=True)
class AlterationTest:
    """A set and the sets with one patch less, scored after an alteration of the composed images."""

    alteration: AlterationKind
    sufficient: bool
    minimal: bool
    """Whether the set is sufficient and no set with one patch less is."""
    score: float
    """Lowest score of the set."""
    removal_score: float
    """Highest score of a set with one patch less."""


@dataclass(frozen=True, slots=True)
class DrawsBound:
    """A lower confidence bound on the probability of a property over drawn backgrounds, valid at any stopping time."""

    at_least: float
    held: int
    """Number of draws for which the property held."""
    draws: int


@dataclass(frozen=True, slots=True)
class BackgroundTally:
    """Draws of one kind of background."""

    kind: str
    """`blur`, `mean`, `noise` or `image`."""
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
    """Probability that a bound does not exceed the truth, for each bound by itself."""
    backgrounds: tuple[BackgroundTally, ...]
    """The draws by kind of background; none if only the search tested alterations."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A claim of minimality, and the checks behind it."""

    level: CertificateLevel
    checked: int
    """Number of sets that the claim rests on, including the certified set; each was scored."""
    required_score: float
    """The score that a sufficient set must reach; 0 if the target must be the top class instead."""
    robust: Robustness | None = None
    """How the claim fares on altered images; None if it was not tested."""


@dataclass(frozen=True, slots=True)
class CausalTriple:
    """Scores of a set: shown alone, and hidden."""

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
    """None if the budget ended before it was measured."""
    diverse: bool = True
    """Whether the set belongs to the largest family whose sets overlap no more than allowed. This is known only at the
    end: a set whose flag changes is yielded again. Of two events with the same patches, the later one is valid."""
    top: ClassScore | None = None
    """The top class if only the set is shown."""
    evaluations: int = 0
    """Number of sets evaluated before this set was found, including those of earlier attempts."""


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
    """The top class if only these patches are shown."""

    @property
    def id(self) -> str:
        """Identifies the node in its graph: its patches as a bit set in hexadecimal."""
        return f"{sum(1 << patch for patch in self.patches):x}"


@dataclass(frozen=True, slots=True)
class GraphEdge:
    """An edge of the graph: the child is the parent without one patch."""

    parent: str
    """The `id` of a node."""
    child: str
    removed_patch: int


@dataclass(frozen=True, slots=True)
class RegionScores:
    """Scores of sets of patches, each shown alone or hidden, in the order of the request."""

    full: ClassScore
    """The target's score on the whole image."""
    scores: tuple[float, ...]
    """Probability of the target for each set."""
    top: tuple[ClassScore, ...]
    """The top class for each set."""


@dataclass(frozen=True, slots=True, eq=False)
class Surrogate:
    """What predicts the score of any occlusion from those that were scored (see `sagittal.imaging.surrogates`)."""

    occlusions: Tensor
    """Share of each cell that each scored occlusion shows, of shape (n, grid, grid), 0 to 1."""
    scores: Tensor
    """Scores of the occlusions as shares of the unmasked score, of shape (n,)."""
    relevance: Tensor
    """Weight of each cell in the similarity of two occlusions, of shape (grid, grid)."""
    noise: float
    """Variance of what the surrogate does not explain, as a share of the variance that it explains."""
    usual_error: float
    """Mean absolute error of predicting each scored occlusion from the others, as a share of the unmasked score."""


class CurveKind(Enum):
    """Direction of the curve."""

    INSERTION = "insertion"
    DELETION = "deletion"


@dataclass(frozen=True, slots=True)
class Curve:
    """The score as a function of the share of the image that is inserted or deleted, most salient cells first."""

    kind: CurveKind
    fractions: tuple[float, ...]
    """From 0 to 1, ascending."""
    scores: tuple[float, ...]
    auc: float
    """Area under the curve by the trapezoid rule."""
    auc_normalized: float
    """The area relative to the unmasked score."""
    mask_index: int = 0


@dataclass(frozen=True, slots=True)
class AreaInterval:
    """An interval for the area of a curve."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class Stability:
    """How much a heatmap and its curves change with the seed."""

    runs: int
    """Number of runs, the explanation among them."""
    rank_correlation: float
    """Mean rank correlation of the explanation's heatmap with those of the other runs."""
    lowest_rank_correlation: float
    unstable: bool
    """Whether the mean rank correlation is below 0.5."""
    deviation: Tensor
    """Standard deviation of each cell over the runs: float32 of shape (height, width)."""
    insertion: AreaInterval | None
    """Interval that contains the area of one more run; None without curves."""
    deletion: AreaInterval | None
    confidence: float
    """Probability that an interval contains it, if areas are normally distributed over seeds."""


@dataclass(frozen=True, slots=True, eq=False)
class ConceptContribution:
    """The contribution of one x-feature to the prediction."""

    index: int
    name: str
    value: float
    contribution: float
    heatmap: SaliencyMask


@dataclass(frozen=True, slots=True)
class ConceptPrediction:
    """Prediction of an explanation network (XNN) for an image: the sum of the contributions of its x-features."""

    target: ClassScore
    """The class whose output is explained; its score is 0."""
    predicted: float
    """In units of the model's output, before softmax if it has one."""
    output: float
    """The output of the model itself."""
    usual_error: float
    """Mean absolute gap on the images that were held out of the fit."""

    @property
    def gap(self) -> float:
        """The faithfulness gap."""
        return self.predicted - self.output


@dataclass(frozen=True, slots=True)
class Warning:
    """A limit on how far the result can be trusted."""

    reason: str
    """Stable identifier in capitals, such as `BASELINE_STILL_CONFIDENT`."""
    message: str


@dataclass(frozen=True, slots=True)
class Truncated:
    """A budget ended the search. The results that follow are the best found until then."""

    limit: str
    """`evaluations` or `deadline`."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """A figure of the result, named after its field in the terminal event, such as `insertion`."""

    name: str
    value: float | bool


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """State from which another worker can resume: tensors by name."""

    state: Mapping[str, Tensor] = field(default_factory=dict)


Event = (
    Progress
    | SaliencyMask
    | Prediction
    | SufficientSet
    | GraphNode
    | GraphEdge
    | RegionScores
    | Surrogate
    | Curve
    | Stability
    | ConceptPrediction
    | ConceptContribution
    | Warning
    | Truncated
    | Measurement
    | Checkpoint
)
"""Any event that an explainer yields."""

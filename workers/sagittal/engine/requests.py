"""What the engine can be asked, and what it answers.

A task is a generator that yields requests: `Evaluate`, for masked images to score, answered with `Scores`; and
`Inspect`, a call with the model itself, answered with the call's result. The engine gathers the requests of all running
tasks into batches. It throws `OutOfBudget` into a task whose budget is spent.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

T = TypeVar("T")


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
    """Exact rectangles, for patches: a drawing that shows a set's cells shows exactly the pixels that the model saw."""
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
    report: bool = False
    """Is needed to report what was found: a deadline does not refuse it."""
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
class Inspect(Generic[T]):
    """A call with the model, run alone between batches; answered with what it returns."""

    subject: Subject
    call: Callable[[ModelView], T]
    evaluations: int = 0
    """Model evaluations that the call makes, those with gradient included."""
    gradient_evaluations: int = 0
    exact: bool = True
    rows: int = 0
    """Masked images that it takes as long as, beside its evaluations, when turns are given; no budget counts them."""
    ready: Callable[[], bool] = always
    """Whether it can run now: what it waits for, such as images that are being read, holds up nobody else."""


Request = Evaluate | Inspect[Any]
"""What a task may ask."""

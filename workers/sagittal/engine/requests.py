"""Requests to the engine, and their answers.

A task is a generator that yields requests: `Evaluate` scores masked images and is answered with `Scores`; `Inspect`
calls the model itself and is answered with the result of the call. The engine gathers the requests of all running tasks
into batches. It raises `OutOfBudget` in a task whose budget is spent.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from sagittal.engine.alterations import Alteration

T = TypeVar("T")


class OutOfBudget(Exception):
    """The job's budget is spent; `limit` is `evaluations` or `deadline`."""

    def __init__(self, limit: str) -> None:
        super().__init__(f"the budget of {limit} is spent")
        self.limit = limit


class Upsampling(Enum):
    """Upsampling of a mask of cells to a mask of pixels."""

    BILINEAR = "bilinear"
    """Smooth: a network detects hard edges as features."""
    BOX = "box"
    """Exact rectangles, for patches: a drawing of a set shows exactly the pixels that the model saw."""
    ALIGNED = "aligned"
    """Bilinear with aligned corners, as in the reference implementation: cells at the border cover less than others."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """The image and baseline that masks are applied to, and the class whose score is computed."""

    image: Tensor
    """Float32 of shape (3, height, width), normalised for the model."""
    baseline: Tensor
    """Replaces the hidden part, of the image's shape."""
    target: int | None
    """Index of the class; None for the top class of each masked image."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluate:
    """Masked images to score: `image * mask + baseline * (1 - mask)`, the mask upsampled to the image's size."""

    subject: Subject
    masks: Tensor
    """Float32 of shape (n, height, width) in [0, 1]: 1 keeps the image. Any n of at least 1, any size."""
    gradient: bool = False
    """Requests the gradient of each score with respect to its mask."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise on the masked image, in units of the normalised input."""
    noise_seed: int = 0
    """Seed of that noise: row i of the masks has the same noise in every evaluation."""
    upsampling: Upsampling = Upsampling.BILINEAR
    alterations: tuple[Alteration, ...] = ()
    """Changes to the masked images before the model sees them, in order; not with `gradient`."""
    exact: bool = False
    """Requests full precision, for scores that are reported or that decide."""
    metric: bool = False
    """Counts as a measurement, not towards the budget of evaluations."""
    report: bool = False
    """Required to report results: a deadline does not refuse it."""
    probabilities: bool = False
    """Requests the probabilities of all classes."""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Scores of n masked images, on the host, because explainers decide by them. The gradient is on the device."""

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
    finite: bool = True
    """Whether all scores and gradients are finite."""


def gradient_of(scores: Scores) -> Tensor:
    """Returns the gradient of scores that were requested with one."""
    if scores.gradient is None:
        raise ValueError("the scores have no gradient; request them with gradient=True")
    return scores.gradient


@dataclass(frozen=True, slots=True, eq=False)
class ModelView:
    """Access to the model for methods that inspect its layers."""

    module: nn.Module
    """The model with its own layers and names, in evaluation mode, with frozen parameters. It maps (n, 3, height,
    width) to (n, classes)."""
    probabilities: Callable[[Tensor], Tensor]
    """Converts its output to probabilities of shape (n, classes)."""
    subject: Subject


def always() -> bool:
    """Returns True."""
    return True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inspect(Generic[T]):
    """A call with the model, run alone between batches and answered with its result."""

    subject: Subject
    call: Callable[[ModelView], T]
    evaluations: int = 0
    """Model evaluations of the call, including those with gradient."""
    gradient_evaluations: int = 0
    exact: bool = True
    rows: int = 0
    """Further cost of the call, in masked images that take as long. It counts for scheduling, not for budgets."""
    ready: Callable[[], bool] = always
    """Returns whether the call can run now. While it waits, for example for images to be read, other tasks run."""


Request = Evaluate | Inspect[Any]
"""Any request of a task."""

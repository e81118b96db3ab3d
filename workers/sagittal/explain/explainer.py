"""What every explainer is: parameters, what it needs of a model, and a generator of requests and events."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Flag, auto
from typing import ClassVar

from sagittal.engine.requests import ModelView
from sagittal.explain.parameters import check
from sagittal.explain.problem import Problem
from sagittal.explain.steps import Steps


class Needs(Flag):
    """What a method needs of a model beyond scores."""

    NOTHING = 0
    GRADIENTS = auto()
    """Gradients of the score with respect to the input."""
    SPATIAL_LAYER = auto()
    """A layer whose output keeps the places of the image apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explainer(ABC):
    """A method with its parameters. Parameters out of bounds raise InvalidParameter."""

    needs: ClassVar[Needs] = Needs.NOTHING
    hides: ClassVar[bool] = True
    """Whether it hides parts of the image, so that a baseline is looked for. A method that only looks into the model's
    layers needs none, and says so here."""
    summary: ClassVar[str] = ""
    """What the method does, in a sentence."""

    def __post_init__(self) -> None:
        check(self)

    def try_on(self, view: ModelView) -> None:  # noqa: B027 - most methods are defined for every model that they need
        """Raises Unsupported where the method is not defined for a model that has what it needs; costs a few passes."""

    @abstractmethod
    def explain(self, problem: Problem) -> Steps[None]:
        """Yields requests and events: at least one final SaliencyMask, or structured findings."""

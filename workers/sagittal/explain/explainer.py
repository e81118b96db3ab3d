"""The base class of explainers: parameters, requirements on the model, and a generator of requests and events."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Flag, auto
from typing import ClassVar

from sagittal.engine.requests import ModelView
from sagittal.explain.parameters import check
from sagittal.explain.problem import Problem
from sagittal.explain.steps import Steps


class Needs(Flag):
    """Requirements of a method on the model, beyond scores."""

    NOTHING = 0
    GRADIENTS = auto()
    """Gradients of the score with respect to the input."""
    SPATIAL_LAYER = auto()
    """A layer whose output has spatial positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explainer(ABC):
    """A method with its parameters. Parameters out of bounds raise InvalidParameter."""

    needs: ClassVar[Needs] = Needs.NOTHING
    hides: ClassVar[bool] = True
    """Whether the method hides parts of the image and therefore needs a baseline. A method that only reads the layers
    of the model sets this to False."""
    summary: ClassVar[str] = ""
    """One sentence that states how the method explains."""

    def __post_init__(self) -> None:
        check(self)

    def try_on(self, view: ModelView) -> None:  # noqa: B027 - most methods are defined for every model that they need
        """Raises Unsupported if the method is not defined for this model; costs a few passes."""

    @abstractmethod
    def explain(self, problem: Problem) -> Steps[None]:
        """Yields requests and events, among them at least one final SaliencyMask or structured finding."""

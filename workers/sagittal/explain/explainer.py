"""What every explainer is: parameters, what it needs of a model, and a generator on the seam."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Flag, auto
from typing import Any, ClassVar

from sagittal.engine.requests import ModelView
from sagittal.explain.problem import Problem
from sagittal.explain.steps import Steps

# Parameters of explainers: their bounds stand beside their defaults, once, for library, service and documentation.


_KEY = "sagittal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a parameter may be, and what it is in a sentence."""

    summary: str
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: bool = False
    exclusive_maximum: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of an explainer, as its class declares it."""

    name: str
    type: str
    """`int`, `float`, `bool`, `str` or `tensor`."""
    default: Any
    bounds: Bounds


class InvalidParameter(ValueError):
    """A parameter that is out of its bounds; `name` says which."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message


def parameter(default: Any, summary: str, **bounds: Any) -> Any:
    """Declares a dataclass field with its bounds (see `Bounds`)."""
    return dataclasses.field(default=default, metadata={_KEY: Bounds(summary=summary, **bounds)})


def parameters(explainer: type[Any]) -> Iterator[Parameter]:
    """Yields the parameters that an explainer's class declares."""
    for field in dataclasses.fields(explainer):
        if _KEY in field.metadata:
            yield Parameter(field.name, _type_name(field.type), field.default, field.metadata[_KEY])


def check(explainer: Any) -> None:
    """Raises InvalidParameter for the first parameter that is out of its bounds."""
    for declared in parameters(type(explainer)):
        _check(declared, getattr(explainer, declared.name))


def _type_name(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    name = text.split("|")[0].strip().lower()
    return name if name in ("int", "float", "bool", "str") else "tensor"


def _check(declared: Parameter, value: Any) -> None:
    bounds = declared.bounds
    if declared.type == "int" and (isinstance(value, bool) or not isinstance(value, int)):
        raise InvalidParameter(declared.name, f"is {value!r}; give a whole number")
    if declared.type in ("int", "float") and not _within(bounds, value):
        raise InvalidParameter(declared.name, f"is {value}; give a value {describe(bounds)}")
    if bounds.choices and value not in bounds.choices:
        raise InvalidParameter(declared.name, f"is {value!r}; give one of {', '.join(bounds.choices)}")


def _within(bounds: Bounds, value: float) -> bool:
    if not math.isfinite(value):
        return False
    low, high = bounds.minimum, bounds.maximum
    above = low is None or value > low or (value == low and not bounds.exclusive_minimum)
    below = high is None or value < high or (value == high and not bounds.exclusive_maximum)
    return above and below


def describe(bounds: Bounds) -> str:
    """Says the range in words, such as `from 7 to 224`."""
    low = "" if bounds.minimum is None else f"{'above' if bounds.exclusive_minimum else 'from'} {bounds.minimum:g}"
    high = "" if bounds.maximum is None else f"{'below' if bounds.exclusive_maximum else 'to'} {bounds.maximum:g}"
    return " ".join(part for part in (low, high) if part) or "that is finite"


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

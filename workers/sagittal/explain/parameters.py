"""Parameters of explainers. Defaults and bounds are declared once, for the library, the service and the docs."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_KEY = "sagittal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Bounds of a parameter, and a one-sentence summary."""

    summary: str
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: bool = False
    exclusive_maximum: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter as the class of its explainer declares it."""

    name: str
    type: str
    """`int`, `float`, `bool`, `str` or `tensor`."""
    default: Any
    bounds: Bounds


class InvalidParameter(ValueError):
    """A parameter is out of bounds; `name` identifies it."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message


def parameter(default: Any, summary: str, **bounds: Any) -> Any:
    """Declares a dataclass field with its bounds (see `Bounds`)."""
    return dataclasses.field(default=default, metadata={_KEY: Bounds(summary=summary, **bounds)})


def parameters(explainer: type[Any]) -> Iterator[Parameter]:
    """Yields the parameters declared by an explainer's class."""
    for field in dataclasses.fields(explainer):
        if _KEY in field.metadata:
            yield Parameter(field.name, _type_name(field.type), field.default, field.metadata[_KEY])


def check(explainer: Any) -> None:
    """Raises InvalidParameter for the first parameter out of bounds."""
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
    """Returns the range in words, such as `from 7 to 224`."""
    low = "" if bounds.minimum is None else f"{'above' if bounds.exclusive_minimum else 'from'} {bounds.minimum:g}"
    high = "" if bounds.maximum is None else f"{'below' if bounds.exclusive_maximum else 'to'} {bounds.maximum:g}"
    return " ".join(part for part in (low, high) if part) or "that is finite"

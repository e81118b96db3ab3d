"""One parameter of a method against its description: type, range, choices, default."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NewType

import numpy as np
from google.protobuf import json_format

from sagittal.core.errors import InvalidRequest
from sagittal.core.tensors import array_of
from sagittal.core.text import shown
from sagittal.v1 import model_pb2, tensor_pb2

Path = NewType("Path", str)
"""Path of a message in the request, such as `spec.method.igos_plus_plus`."""

#: Most choices that an error lists.
_CHOICES_SHOWN = 12


def checked(parameter: model_pb2.ParameterDescription, given: Any, path: Path) -> Any:
    """Returns the value to use: the one given, checked, or the default.

    Args:
        parameter: What the workers say of it.
        given: The caller's value; None where there is none.
        path: Path of the message that holds it, for errors.

    Raises:
        InvalidRequest: the value has another type or is out of bounds, or is missing where there is no default.
    """
    field = f"{path}.{parameter.name}"
    if given is None:
        return _default(parameter, field)
    value = _TYPES.get(parameter.type, _as_it_is)(given, field)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not _within(parameter, value):
        raise InvalidRequest(f"{field} is {value}; give {admitted(parameter)}", field=field)
    if parameter.choices and value not in parameter.choices:
        raise InvalidRequest(f"{field} is {shown(value)}; give one of {_choices(parameter)}", field=field)
    return value


def admitted(parameter: model_pb2.ParameterDescription) -> str:
    """Says what a number may be, such as `a whole number from 7 to 224`."""
    kind = "a whole number" if parameter.type == "int" else "a number"
    low = f"{'above' if parameter.exclusive_minimum else 'from'} {parameter.minimum:g}"
    high = f"{'below' if parameter.exclusive_maximum else 'to'} {parameter.maximum:g}"
    if parameter.HasField("minimum") and parameter.HasField("maximum"):
        return f"{kind} {low} {'and ' if parameter.exclusive_maximum else ''}{high}"
    if parameter.HasField("minimum"):
        return f"{kind} {low.replace('from', 'of at least')}"
    if parameter.HasField("maximum"):
        return f"{kind} {high.replace('to', 'of at most')}"
    return f"{kind} that is finite"


def shortest(value: float) -> float:
    """Returns the shortest decimal that is the same in single precision: the 0.1 that was typed, not 0.10000000149."""
    single = np.float32(value)
    return float(str(single)) if float(single) == value else value


def _default(parameter: model_pb2.ParameterDescription, field: str) -> Any:
    if not parameter.HasField("default") or parameter.type == "tensor":
        raise InvalidRequest(f"{field} is not set and has no default: {parameter.summary}", field=field)
    value = json_format.MessageToDict(parameter.default)
    return int(value) if parameter.type == "int" and isinstance(value, float) else value


def _within(parameter: model_pb2.ParameterDescription, value: float) -> bool:
    low = parameter.minimum if parameter.HasField("minimum") else -math.inf
    high = parameter.maximum if parameter.HasField("maximum") else math.inf
    above = value > low if parameter.exclusive_minimum else value >= low
    below = value < high if parameter.exclusive_maximum else value <= high
    return above and below


def _choices(parameter: model_pb2.ParameterDescription) -> str:
    shown = ", ".join(parameter.choices[:_CHOICES_SHOWN])
    more = len(parameter.choices) - _CHOICES_SHOWN
    return f"{shown} or {more} more that GetModel lists" if more > 0 else shown


def _whole_number(given: Any, field: str) -> int:
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not float(given).is_integer():
        raise InvalidRequest(f"{field} is {shown(given)}; give a whole number", field=field)
    return int(given)


def _number(given: Any, field: str) -> float:
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not math.isfinite(given):
        raise InvalidRequest(f"{field} is {shown(given)}; give a finite number", field=field)
    return shortest(given)


def _truth(given: Any, field: str) -> bool:
    if not isinstance(given, bool):
        raise InvalidRequest(f"{field} is {shown(given)}; give true or false", field=field)
    return given


def _text(given: Any, field: str) -> str:
    if not isinstance(given, str):
        raise InvalidRequest(f"{field} is {shown(given)}; give a text", field=field)
    return given


def _tensor(given: Any, field: str) -> bytes:
    if not isinstance(given, tensor_pb2.Tensor):
        raise InvalidRequest(f"{field} must be a tensor, which a method by name cannot carry", field=field)
    array_of(given, field)
    return bytes(given.SerializeToString(deterministic=True))


def _as_it_is(given: Any, field: str) -> Any:
    if isinstance(given, tensor_pb2.Tensor):
        return _tensor(given, field)
    return given


_TYPES: Mapping[str, Callable[[Any, str], Any]] = {
    "int": _whole_number,
    "float": _number,
    "bool": _truth,
    "str": _text,
    "tensor": _tensor,
}

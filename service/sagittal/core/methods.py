"""Checks methods and their parameters against the catalogue that workers publish for a model.

A typed method is a message in the oneof `Method.method`; the catalogue entry with that `field` describes it. A method
by name (`custom`) is described by the entry with that `name`. No method is hard-coded here, so a new one needs no
change.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NewType

import numpy as np
from google.protobuf import json_format, struct_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from sagittal.core.enums import enum_name
from sagittal.core.errors import FailedPrecondition, InvalidRequest, NotServed
from sagittal.core.tensors import array_of
from sagittal.core.text import shown
from sagittal.v1 import method_pb2, model_pb2, tensor_pb2

Path = NewType("Path", str)
"""Path of a message in the request, such as `spec.method.igos_plus_plus`; errors name it."""

#: Retry delay for a model that no worker has loaded yet, in seconds.
LOADING_SECONDS = 5.0

#: Choices that an error lists before it refers to GetModel.
_CHOICES_SHOWN = 12


def checked(parameter: model_pb2.ParameterDescription, given: Any, path: Path) -> Any:
    """Returns the value to use: the given one after a check, or the default.

    Args:
        parameter: Its description from the catalogue.
        given: The caller's value; None if the request does not set it.
        path: Path of the message that holds it, for errors.

    Raises:
        InvalidRequest: the value has the wrong type, is out of bounds, or is missing and has no default.
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
    """Describes the allowed numbers, such as `a whole number from 7 to 224`."""
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
    """Returns the shortest decimal that is equal in single precision: 0.1 instead of 0.10000000149."""
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
        raise InvalidRequest(
            f"{field} must be a tensor, which `custom` cannot carry: use the method's typed field", field=field
        )
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


#: Field of `Method` that is used if none is set.
DEFAULT_FIELD = "igos_plus_plus"

_CUSTOM = "custom"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedMethod:
    """A method with the values of all its parameters."""

    name: str
    """Name in the catalogue, such as `igos++`."""
    field: str
    """Field of `Method` that carries it; `custom` if it has none."""
    parameters: Mapping[str, Any]
    """Values by name, including defaults. Tensors are serialized `sagittal.v1.Tensor` messages."""
    stateful: bool = False
    """True if the answer depends on more than the request; such answers are never shared."""

    def message(self) -> method_pb2.Method:
        """Returns a message with every parameter set, so that `resolve` returns the same values again."""
        method = method_pb2.Method()
        if self.field == _CUSTOM:
            method.custom.name = self.name
            method.custom.parameters.update(self.parameters)
            return method
        typed: Message = getattr(method, self.field)
        typed.SetInParent()
        for name, value in self.parameters.items():
            if name in typed.DESCRIPTOR.fields_by_name and value is not None:  # None: the method chooses
                _set(typed, name, value)
        return method


def resolve(
    method: method_pb2.Method, catalogue: Iterable[model_pb2.MethodDescription], *, field: str = "method"
) -> ResolvedMethod:
    """Returns the requested method with checked parameters and defaults filled in.

    Args:
        method: The caller's method.
        catalogue: Methods of the model, as its workers published them.
        field: Path of the method in the request, for errors.

    Raises:
        InvalidRequest: a parameter is unknown or out of bounds, or no method has the given name.
        NotServed: no worker of the model offers the method.
        FailedPrecondition: no worker has loaded the model yet, or the model does not support the method.
    """
    listed = list(catalogue)
    if not listed:
        text = "no worker has loaded this model yet, so its methods are unknown; try again when GetModel lists them"
        raise FailedPrecondition(text, field=field, retry_after=LOADING_SECONDS)
    chosen = method.WhichOneof("method")
    if chosen == _CUSTOM:
        return _by_name(method.custom, listed, Path(f"{field}.{_CUSTOM}"))
    path = Path(f"{field}.{chosen or DEFAULT_FIELD}")
    description = next((entry for entry in listed if entry.field == (chosen or DEFAULT_FIELD)), None)
    if description is None:
        text = f"{path} is not served by this model's workers; they serve {_names(listed)}"
        raise NotServed(text, field=str(path))
    return _resolved(description, typed_parameters(getattr(method, chosen), path) if chosen else {}, path)


def typed_parameters(message: Message, path: Path) -> dict[str, Any]:
    """Returns the parameters that are set; enums as their names in the catalogue, such as `line-search`."""
    return {field.name: _plain(field, value, path) for field, value in message.ListFields()}


def _by_name(custom: method_pb2.CustomMethod, listed: list[model_pb2.MethodDescription], path: Path) -> ResolvedMethod:
    description = next((each for each in listed if custom.name in (each.name, *each.aliases)), None)
    if description is None:
        text = f"{path}.name is {shown(custom.name)}; this model's workers serve {_names(listed)}"
        raise InvalidRequest(text, field=f"{path}.name")
    return _resolved(description, _custom_parameters(custom, path), Path(f"{path}.parameters"))


def _custom_parameters(custom: method_pb2.CustomMethod, path: Path) -> dict[str, Any]:
    try:
        return json_format.MessageToDict(custom.parameters)
    except ValueError as error:  # NaN and infinity, which JSON does not have
        for name, value in custom.parameters.fields.items():
            _check_json(value, f"{path}.parameters.{name}")
        raise InvalidRequest(f"{path}.parameters: {error}", field=f"{path}.parameters") from error


def _check_json(value: struct_pb2.Value, field: str) -> None:
    """Raises InvalidRequest if the caller's value is or contains NaN or infinity."""
    try:
        json_format.MessageToDict(value)
    except ValueError as error:
        text = f"{field} is or contains NaN or infinity; give finite numbers"
        raise InvalidRequest(text, field=field) from error


def _resolved(description: model_pb2.MethodDescription, given: Mapping[str, Any], path: Path) -> ResolvedMethod:
    if description.unavailable:
        text = f"{description.name} is not possible with this model: {description.unavailable}"
        raise FailedPrecondition(text, field=str(path))
    known = {parameter.name: parameter for parameter in description.parameters}
    for name in given:
        if name not in known:
            text = f"{path}.{name} is no parameter of {description.name}; give one of {', '.join(known) or 'none'}"
            raise InvalidRequest(text, field=f"{path}.{name}")
    parameters = {name: checked(parameter, given.get(name), path) for name, parameter in known.items()}
    return ResolvedMethod(
        name=description.name, field=description.field, parameters=parameters, stateful=description.stateful
    )


def _plain(field: FieldDescriptor, value: Any, path: Path) -> Any:
    if field.enum_type is not None:
        name = enum_name(field.enum_type, value)
        if name is None:
            admitted = ", ".join(entry.name for entry in field.enum_type.values)
            text = f"{path}.{field.name} is {value}, which this API version does not know; give one of {admitted}"
            raise InvalidRequest(text, field=f"{path}.{field.name}")
        return name
    return value


def _set(message: Message, name: str, value: Any) -> None:
    """Sets a parameter; `typed_parameters` reads the same value back."""
    enum: Any = message.DESCRIPTOR.fields_by_name[name].enum_type
    if isinstance(value, bytes):
        getattr(message, name).ParseFromString(value)
    elif enum is not None:
        setattr(message, name, next(number for number in enum.values_by_number if enum_name(enum, number) == value))
    else:
        setattr(message, name, value)


def _names(listed: Iterable[model_pb2.MethodDescription]) -> str:
    return ", ".join(sorted(entry.name for entry in listed if not entry.unavailable)) or "none"

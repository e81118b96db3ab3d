"""Methods: the typed messages of `sagittal.v1.method_pb2`, or a method by name.

The type checker checks a typed message. A name is looked up in the model's catalogue, so that a method added by a
worker works without a new client.
"""

from collections.abc import Mapping
from inspect import Parameter, Signature
from typing import Any

import numpy as np
from google.protobuf import struct_pb2
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from sagittal.client.errors import FailedPrecondition, InvalidRequest, SagittalError
from sagittal.client.images import to_tensor
from sagittal.client.models import MethodInfo, ParameterInfo, by_name
from sagittal.v1 import method_pb2
from sagittal.v1.method_pb2 import (
    IGOS,
    RISE,
    CertifyAfter,
    Concepts,
    EvaluateMask,
    ExcitationBackprop,
    GradCAM,
    IGOSPlus,
    IGOSPlusPlus,
    IntegratedGradients,
    MeaningfulPerturbation,
    MinimalSufficientExplanations,
    Occlusion,
    OcclusionSurrogate,
    Optimizer,
    OrderedRegionSearch,
    PatchShape,
    Protocol,
    StructuredAttentionGraph,
    Sufficiency,
)

__all__ = [
    "IGOS",
    "RISE",
    "CertifyAfter",
    "Concepts",
    "EvaluateMask",
    "ExcitationBackprop",
    "GradCAM",
    "IGOSPlus",
    "IGOSPlusPlus",
    "IntegratedGradients",
    "MeaningfulPerturbation",
    "Method",
    "MethodLike",
    "MinimalSufficientExplanations",
    "Occlusion",
    "OcclusionSurrogate",
    "Optimizer",
    "OrderedRegionSearch",
    "PatchShape",
    "Protocol",
    "StructuredAttentionGraph",
    "Sufficiency",
    "pack_method",
    "resolve_method",
]

#: Common names of methods whose field has another name; a model's catalogue takes precedence.
ALIASES: Mapping[str, str] = {
    "i-gos": "igos",
    "igos+": "igos_plus",
    "igos++": "igos_plus_plus",
    "gradcam": "grad_cam",
    "ig": "integrated_gradients",
    "excitation-bp": "excitation_backprop",
    "ors": "ordered_region_search",
    "mse": "minimal_sufficient_explanations",
    "sag": "structured_attention_graph",
    "xnn": "concepts",
}

_FIELDS: Mapping[str, FieldDescriptor] = {
    field.name: field for field in method_pb2.Method.DESCRIPTOR.oneofs_by_name["method"].fields
}
_FIELD_OF_TYPE: Mapping[str, str] = {
    field.message_type.name: name for name, field in _FIELDS.items() if field.message_type
}
_INTEGERS = frozenset({FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_INT32})
_FLOATS = frozenset({FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE})
_TRUTHS: Mapping[str, bool] = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _show_signature(kind: type[Message]) -> None:
    """Gives a message's class the signature of its type hints, for editors and `help`: compiled messages have none."""
    found = []
    for field in kind.DESCRIPTOR.fields:
        annotation = _annotation(field) | None
        found.append(Parameter(field.name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    kind.__signature__ = Signature(found)  # type: ignore[attr-defined]


def _annotation(field: Any) -> Any:
    """Returns the type of a field's values; `field` is a descriptor of either implementation of protobuf."""
    if field.enum_type is not None or field.type in _INTEGERS:
        return int
    if field.type in _FLOATS:
        return float
    if field.type == FieldDescriptor.TYPE_BOOL:
        return bool
    return str if field.message_type is None else Message


for _name in _FIELD_OF_TYPE:
    _show_signature(getattr(method_pb2, _name))


class Method:
    """A method by name, with parameters by name: `Method("igos++", mask_size=28)`."""

    __slots__ = ("name", "parameters")

    def __init__(self, name: str, **parameters: Any) -> None:
        self.name = name
        self.parameters = parameters

    def __repr__(self) -> str:
        return f"Method({', '.join([repr(self.name), *(f'{k}={v!r}' for k, v in self.parameters.items())])})"


MethodLike = (
    IGOS
    | IGOSPlus
    | IGOSPlusPlus
    | MeaningfulPerturbation
    | OrderedRegionSearch
    | RISE
    | GradCAM
    | IntegratedGradients
    | ExcitationBackprop
    | Occlusion
    | OcclusionSurrogate
    | MinimalSufficientExplanations
    | StructuredAttentionGraph
    | Concepts
    | EvaluateMask
    | method_pb2.CustomMethod
    | method_pb2.Method
    | Method
    | type[Message]
    | str
)
"""Accepted forms of a method; the class of a message selects its defaults."""


def pack_method(method: object) -> method_pb2.Method:
    """Returns a typed message, or its class for all defaults, as the API's `Method`."""
    if isinstance(method, type) and issubclass(method, Message):
        method = method()
    if isinstance(method, method_pb2.Method):
        return method
    if not isinstance(method, Message):
        text = (
            f'got {type(method).__name__}; expected a method by name, such as "igos++", or a message, such as GradCAM()'
        )
        raise InvalidRequest(text, field="spec.method")
    field = _FIELD_OF_TYPE.get(method.DESCRIPTOR.name)
    if field is None:
        raise InvalidRequest(f"{method.DESCRIPTOR.full_name} is no method", field="spec.method")
    packed = method_pb2.Method()
    getattr(packed, field).CopyFrom(method)
    getattr(packed, field).SetInParent()
    return packed


def resolve_method(method: Method, catalogue: tuple[MethodInfo, ...]) -> method_pb2.Method:
    """Returns a named method as the API's `Method`, with typed parameters.

    The catalogue is empty until a worker has loaded the model; until then only the API's own methods are known.

    Raises:
        InvalidRequest: there is no such method or parameter; the message lists those that exist.
        FailedPrecondition: a worker may know the method, but none has loaded the model.
    """
    if not isinstance(method.name, str):
        raise InvalidRequest(f"got {method.name!r}; expected the name of a method", field="spec.method")
    name = method.name.lower().replace("_", "-")
    known = by_name(catalogue)
    info = known.get(name) or known.get(ALIASES.get(name, "").replace("_", "-"))
    if info is not None and info.field == "custom":
        return _custom(info, method.parameters)
    field = info.field if info else ALIASES.get(name, name.replace("-", "_"))
    if field not in _FIELDS or field == "custom" or (catalogue and info is None):
        raise _unknown_method(method.name, catalogue)
    return _typed(field, method.parameters)


def _unknown_method(name: str, catalogue: tuple[MethodInfo, ...]) -> SagittalError:
    if catalogue:
        names = ", ".join(sorted(method.name for method in catalogue))
        return InvalidRequest(f"no method {name!r}; there are: {names}", field="spec.method")
    names = ", ".join(sorted({*ALIASES, *(field.replace("_", "-") for field in _FIELDS if field != "custom")}))
    text = (
        f"the API has no method {name!r}, and no worker has loaded the model, which might add it: try again later, or "
        f"use one of: {names}"
    )
    return FailedPrecondition(text, field="spec.method", retry_after=LOADING_SECONDS)


#: Retry delay for a model that no worker has loaded, in seconds.
LOADING_SECONDS = 5.0


def _typed(field: str, parameters: Mapping[str, Any]) -> method_pb2.Method:
    packed = method_pb2.Method()
    message = getattr(packed, field)
    message.SetInParent()
    fields = message.DESCRIPTOR.fields_by_name
    for name, value in parameters.items():
        path = f"spec.method.{field}.{name}"
        if name not in fields:
            raise _unknown_parameter(path, sorted(fields))
        converted = _convert(fields[name], value, path)
        if isinstance(converted, Message):
            getattr(message, name).CopyFrom(converted)
        else:
            _assign(message, name, converted, path)
    return packed


def _assign(message: Message, name: str, value: object, path: str) -> None:
    try:
        setattr(message, name, value)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"got {value!r}: {error}", field=path) from error


def _convert(field: FieldDescriptor, value: Any, path: str) -> Any:
    if field.enum_type is not None:
        return _enum_number(field.enum_type, value, path)
    if field.message_type is not None:
        return _message(field, value, path)
    if not isinstance(value, str):
        return value
    if field.type in _INTEGERS:
        return _number(int, value, path, "an integer")
    if field.type in _FLOATS:
        return _number(float, value, path, "a number")
    return _truth(value, path) if field.type == FieldDescriptor.TYPE_BOOL else value


def _message(field: FieldDescriptor, value: Any, path: str) -> Message:
    if isinstance(value, Message) and value.DESCRIPTOR is field.message_type:
        return value
    try:
        return to_tensor(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"got {type(value).__name__}; expected an array of numbers", field=path) from error


def _truth(text: str, path: str) -> bool:
    if text.lower() not in _TRUTHS:
        raise InvalidRequest(f"got {text!r}; expected true or false", field=path)
    return _TRUTHS[text.lower()]


def _number(kind: type[int] | type[float], text: str, path: str, expected: str) -> float:
    try:
        return kind(text)
    except ValueError:
        raise InvalidRequest(f"got {text!r}; expected {expected}", field=path) from None


def _enum_number(enum: EnumDescriptor, value: Any, path: str) -> int:
    """Accepts the number, the full name, or the short one: "line-search" for OPTIMIZER_LINE_SEARCH."""
    if isinstance(value, int):
        return value
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    wanted = str(value).upper().replace("-", "_")
    for candidate in (wanted, prefix + wanted):
        if candidate in enum.values_by_name:
            return int(enum.values_by_name[candidate].number)
    names = [v.name.removeprefix(prefix).lower().replace("_", "-") for v in enum.values if v.number]
    raise InvalidRequest(f"got {value!r}; expected one of: {', '.join(names)}", field=path)


def _custom(info: MethodInfo, parameters: Mapping[str, Any]) -> method_pb2.Method:
    known = {parameter.name: parameter for parameter in info.parameters}
    struct = struct_pb2.Struct()
    for name, value in parameters.items():
        path = f"spec.method.custom.parameters.{name}"
        if name not in known:
            raise _unknown_parameter(path, sorted(known))
        try:
            struct[name] = _convert_custom(known[name], value, path)
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"got {value!r}; expected {known[name].type}", field=path) from error
    return method_pb2.Method(custom=method_pb2.CustomMethod(name=info.name, parameters=struct))


def _convert_custom(parameter: ParameterInfo, value: Any, path: str) -> Any:
    if not isinstance(value, str) or parameter.type == "str":
        return value
    if parameter.type == "bool":
        return _truth(value, path)
    if parameter.type == "int":
        return _number(int, value, path, "an integer")
    return _number(float, value, path, "a number")


def _unknown_parameter(path: str, known: list[str]) -> InvalidRequest:
    there_are = f"there are: {', '.join(known)}" if known else "the method has none"
    return InvalidRequest(f"no parameter {path.rpartition('.')[2]!r}; {there_are}", field=path)

"""Converts messages of the API to dataclasses: each field by its name and annotation."""

import dataclasses
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
from google.protobuf import duration_pb2, timestamp_pb2
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from sagittal.client import events
from sagittal.client.errors import InternalError
from sagittal.client.events import Event, Unrecognised
from sagittal.client.images import to_array
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import tensor_pb2

T = TypeVar("T")

#: Dataclass of each field of `ExplanationEvent` that holds an event; the other fields are errors or answers.
KINDS: Mapping[str, type[Event]] = {
    field.name: kind
    for field in pb.ExplanationEvent.DESCRIPTOR.oneofs_by_name["event"].fields
    if field.message_type and (kind := getattr(events, field.message_type.name, None))
}


def parse_event(event: pb.ExplanationEvent) -> Event:
    """Returns an event as its dataclass; `failed` and `cancelled` are errors and not parsed here.

    Raises:
        InternalError: the event is invalid, such as a mask whose bytes do not match its shape.
    """
    kind = event.WhichOneof("event") or ""
    try:
        common = values_of(Event, event)
        return parse(KINDS[kind], getattr(event, kind), **common) if kind in KINDS else Unrecognised(**common)
    except InternalError as error:
        text = f"event {event.sequence} of job {event.job_id}: {error.message}"
        raise InternalError(text, job_id=event.job_id) from error


def parse(kind: type[T], message: Message, **given: Any) -> T:
    """Returns a message as a dataclass, with the `given` fields unchanged.

    Raises:
        InternalError: a field is invalid, such as a mask whose bytes do not match its shape.
    """
    return kind(**values_of(kind, message, *given), **given)


class Target(NamedTuple):
    """A field of a dataclass."""

    name: str
    source: str
    """The message's field."""
    kind: Any
    """Its type, without None."""
    optional: bool


@cache
def targets_of(kind: type) -> tuple[Target, ...]:
    """Returns the fields of a dataclass with their source fields."""
    found = []
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        annotated = hints[field.name]
        source = next((each.field for each in get_args(annotated) if isinstance(each, events.From)), field.name)
        hint = get_args(annotated)[0] if source != field.name else annotated
        kinds = [each for each in get_args(hint) if each is not type(None)]
        optional = type(None) in get_args(hint)
        found.append(Target(field.name, source, kinds[0] if optional else hint, optional))
    return tuple(found)


def values_of(kind: Any, message: Message, *given: str) -> dict[str, Any]:
    """Returns the fields of a dataclass that a message has, except the given ones."""
    fields: Mapping[str, Any] = message.DESCRIPTOR.fields_by_name
    return {
        target.name: _value(message, fields[target.source], target)
        for target in targets_of(kind)
        if target.name not in given and target.source in fields
    }


def _value(message: Message, field: FieldDescriptor, target: Target) -> Any:
    if target.optional and not message.HasField(field.name):
        return None
    value = getattr(message, field.name)
    if get_origin(target.kind) is Mapping:
        return dict(value)
    if not field.is_repeated:
        return _single(field, value, target.kind)
    if get_origin(target.kind) is np.ndarray:
        return np.array(value, np.float32)
    return tuple(_single(field, each, get_args(target.kind)[0]) for each in value)


def _single(field: FieldDescriptor, value: Any, kind: Any) -> Any:
    if field.enum_type:
        return enum_name(field.enum_type, value)
    if not field.message_type:
        return value
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return parse(kind, value)
    try:
        return _CONVERTERS[field.message_type.full_name](value)
    except (ValueError, OverflowError) as error:
        raise InternalError(f"{field.full_name} cannot be read: {error}") from error


def to_datetime(time: timestamp_pb2.Timestamp) -> datetime:
    """Returns a timestamp in UTC."""
    return time.ToDatetime(tzinfo=UTC)


def to_seconds(duration: duration_pb2.Duration) -> float:
    """Returns a duration in seconds."""
    return duration.seconds + duration.nanos / 1e9


def enum_name(enum: EnumDescriptor, value: int) -> str:
    """Returns an enum value as a lower-case name, such as "line-search"; empty if it is not specified."""
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    if value == 0:
        return ""
    known = enum.values_by_number.get(value)
    return known.name.removeprefix(prefix).lower().replace("_", "-") if known else str(value)


#: Messages without a dataclass of their own.
_CONVERTERS: Mapping[str, Callable[[Any], Any]] = {
    timestamp_pb2.Timestamp.DESCRIPTOR.full_name: to_datetime,
    duration_pb2.Duration.DESCRIPTOR.full_name: to_seconds,
    tensor_pb2.Tensor.DESCRIPTOR.full_name: to_array,
    pb.Mask.DESCRIPTOR.full_name: lambda mask: to_array(mask.saliency),
}

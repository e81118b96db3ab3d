"""Converts messages of the API to dataclasses: each field by its name and annotation."""

import dataclasses
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache, lru_cache, partial
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
from google.protobuf import duration_pb2, timestamp_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from sagittal.client import events
from sagittal.client.errors import InternalError
from sagittal.client.events import Event, Unrecognised
from sagittal.client.images import to_array
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import tensor_pb2

T = TypeVar("T")

#: A function that reads a message, or converts a value of one.
Read = Callable[[Any], Any]

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
    return {name: read(message) for name, read in readers_of(kind, message.DESCRIPTOR, given)}


@cache
def readers_of(kind: type, described: Descriptor, given: tuple[str, ...] = ()) -> tuple[tuple[str, Read], ...]:
    """Returns the fields of a dataclass that messages of a type have, with the functions that read them."""
    fields: Mapping[str, Any] = described.fields_by_name
    return tuple(
        (target.name, _reader(fields[target.source], target))
        for target in targets_of(kind)
        if target.name not in given and target.source in fields
    )


def _reader(field: FieldDescriptor, target: Target) -> Read:
    read = _present(field, target.kind)
    if not target.optional:
        return read
    return lambda message: read(message) if message.HasField(field.name) else None


def _present(field: FieldDescriptor, kind: Any) -> Read:
    """Returns the function that reads a field which is set or has a default."""
    value = attrgetter(field.name)
    if get_origin(kind) is Mapping:
        return lambda message: dict(value(message))
    if field.is_repeated and get_origin(kind) is np.ndarray:
        return lambda message: np.array(value(message), np.float32)
    convert = _converter(field, get_args(kind)[0] if field.is_repeated else kind)
    if convert is None:
        return (lambda message: tuple(value(message))) if field.is_repeated else value
    if field.is_repeated:
        return lambda message: tuple(map(convert, value(message)))
    return lambda message: convert(value(message))


def _converter(field: FieldDescriptor, kind: Any) -> Read | None:
    """Returns the function that converts one value of a field; None if it stays as it is."""
    if field.enum_type:
        return partial(enum_name, field.enum_type)
    if not field.message_type:
        return None
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return partial(parse, kind)
    known = _CONVERTERS[field.message_type.full_name]

    def convert(value: Any) -> Any:
        try:
            return known(value)
        except (ValueError, OverflowError) as error:
            raise InternalError(f"{field.full_name} cannot be read: {error}") from error

    return convert


def to_datetime(time: timestamp_pb2.Timestamp) -> datetime:
    """Returns a timestamp in UTC."""
    return time.ToDatetime(tzinfo=UTC)


def to_seconds(duration: duration_pb2.Duration) -> float:
    """Returns a duration in seconds."""
    return duration.seconds + duration.nanos / 1e9


@lru_cache(maxsize=1024)
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

"""Converts explainer events to messages of the API; fields correspond by name."""

import json
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message
from torch import Tensor

from sagittal.core.tensors import tensor_of
from sagittal.engine.task import Usage
from sagittal.explain import events
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import tensor_pb2

#: Name of the event's field that holds a message of this type.
_KINDS: Mapping[str, str] = {
    field.message_type.name: field.name
    for field in pb.ExplanationEvent.DESCRIPTOR.oneofs_by_name["event"].fields
    if field.message_type
} | {"SaliencyMask": "mask"}


class Summary:
    """The content of the terminal event: the figures of the job, and the budget that truncated it."""

    def __init__(self) -> None:
        self._measured: dict[str, Any] = {}
        self._truncated_by = ""

    def note(self, event: events.Event) -> None:
        """Adds an event of the explainer."""
        match event:
            case events.Truncated():
                self._truncated_by = event.limit
            case events.Measurement():
                self._measured[event.name] = event.value

    def message(self, usage: Usage, parameters: Mapping[str, Any], **fields: Any) -> pb.Completed:
        """Returns the terminal event.

        Args:
            usage: Resources that the job used.
            parameters: Parameters of the method; values without a JSON form, such as tensors, are omitted.
            fields: Further fields of the message.
        """
        plain = {name: value for name, value in parameters.items() if isinstance(value, bool | int | float | str)}
        return pb.Completed(
            evaluations=usage.evaluations,
            gradient_evaluations=usage.gradient_evaluations,
            metric_evaluations=usage.metric_evaluations,
            cache_hits=usage.remembered,
            parameters_json=json.dumps(plain, sort_keys=True),
            truncated=bool(self._truncated_by),
            truncated_by=self._truncated_by,
            **self._measured,
            **fields,
        )


class EventMessages:
    """Converts the events of one job to messages, with the labels and the digest of its model."""

    def __init__(self, labels: Sequence[str], digest: str, preprocessing: object | None = None) -> None:
        """Takes the fields that explainers do not know.

        Args:
            labels: Labels by class index; empty for none.
            digest: Digest of the model.
            preprocessing: Conversion of images to the model's input, with the fields of the API's `Preprocessing`;
                None if the caller has done it.
        """
        self._evaluations = 0
        #: Fields that explainers do not know.
        self._added: Mapping[str, Callable[[Any], object]] = {
            "sagittal.v1.ClassScore.label": lambda found: labels[found.index] if found.index < len(labels) else "",
            "sagittal.v1.Certificate.model_digest": lambda _: digest,
            "sagittal.v1.Progress.evaluations": lambda _: self._evaluations,
            "sagittal.v1.Prediction.preprocessing": lambda _: preprocessing,
        }

    def message(self, event: events.Event, evaluations: int) -> pb.ExplanationEvent | None:
        """Returns the message of an event, or None for events that are not sent.

        Args:
            event: The event that an explainer yielded.
            evaluations: Model evaluations of the job so far.
        """
        kind = _KINDS.get(type(event).__name__)
        if kind is None:
            return None
        self._evaluations = evaluations
        message = pb.ExplanationEvent()
        self._fill(getattr(message, kind), event)
        return message

    def _fill(self, message: Message, found: object) -> None:
        """Sets every field of a message from the attributes of an object."""
        message.SetInParent()
        for field in message.DESCRIPTOR.fields:
            value = self._value(field, found)
            if value is not None:
                self._set(message, field, value)

    def _value(self, field: Any, found: Any) -> Any:
        if field.message_type is pb.PatchSet.DESCRIPTOR:
            return found  # its own `grid` and `patches` form the message
        added = self._added.get(field.full_name)
        return getattr(found, field.name) if added is None else added(found)

    def _set(self, message: Message, field: Any, value: Any) -> None:
        if isinstance(value, Tensor):
            getattr(message, field.name).CopyFrom(_half(value))
        elif isinstance(value, Mapping):
            getattr(message, field.name).update(value)
        elif field.is_repeated and field.message_type:
            for each in value:
                self._fill(getattr(message, field.name).add(), each)
        elif field.is_repeated:
            getattr(message, field.name).extend(value)
        elif field.message_type:
            self._fill(getattr(message, field.name), value)
        else:
            setattr(message, field.name, _number(field.enum_type, value) if field.enum_type else value)


def _number(enum: EnumDescriptor, value: Enum | str) -> int:
    """Returns the API's number of an enum value, by its name; an empty value is unspecified."""
    unspecified = enum.values[0].name
    name = value.name if isinstance(value, Enum) else value.upper()
    return int(enum.values_by_name[unspecified.removesuffix("UNSPECIFIED") + name if name else unspecified].number)


def _half(values: Tensor) -> tensor_pb2.Tensor:
    return tensor_of(values.detach().float().cpu().numpy(), tensor_pb2.DATA_TYPE_FLOAT16)

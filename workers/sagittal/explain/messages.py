"""What explainers report, as events of the API: each field by the name that it has on both sides."""

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

#: Fields of an event by the name of the message that they hold.
_KINDS: Mapping[str, str] = {
    field.message_type.name: field.name
    for field in pb.ExplanationEvent.DESCRIPTOR.oneofs_by_name["event"].fields
    if field.message_type
} | {"SaliencyMask": "mask"}


class Summary:
    """What the terminal event says of a job: its figures, and the budget that cut it short."""

    def __init__(self) -> None:
        self._measured: dict[str, Any] = {}
        self._truncated_by = ""

    def note(self, event: events.Event) -> None:
        """Keeps what an event adds to it."""
        match event:
            case events.Truncated():
                self._truncated_by = event.limit
            case events.Measurement():
                self._measured[event.name] = event.value

    def message(self, usage: Usage, parameters: Mapping[str, Any], **fields: Any) -> pb.Completed:
        """Returns the terminal event.

        Args:
            usage: What the job used.
            parameters: Of its method; those that JSON has no word for, such as tensors, are left out.
            fields: What else there is to say, by field of the message.
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
    """Turns events of one job into messages, with the labels and the digest of its model."""

    def __init__(self, labels: Sequence[str], digest: str, preprocessing: object | None = None) -> None:
        """Takes what explainers cannot know.

        Args:
            labels: By class index; empty for none.
            digest: Of the model.
            preprocessing: How images become the model's input, with the fields of the API's `Preprocessing`; None if
                the caller has done it.
        """
        self._evaluations = 0
        #: Fields that explainers cannot know.
        self._added: Mapping[str, Callable[[Any], object]] = {
            "sagittal.v1.ClassScore.label": lambda found: labels[found.index] if found.index < len(labels) else "",
            "sagittal.v1.Certificate.model_digest": lambda _: digest,
            "sagittal.v1.Progress.evaluations": lambda _: self._evaluations,
            "sagittal.v1.Prediction.preprocessing": lambda _: preprocessing,
        }

    def message(self, event: events.Event, evaluations: int) -> pb.ExplanationEvent | None:
        """Returns the message of an event, or None for those that are not sent.

        Args:
            event: What an explainer yielded.
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
        """Sets every field of a message from the attributes of what was found."""
        message.SetInParent()
        for field in message.DESCRIPTOR.fields:
            value = self._value(field, found)
            if value is not None:
                self._set(message, field, value)

    def _value(self, field: Any, found: Any) -> Any:
        if field.message_type is pb.PatchSet.DESCRIPTOR:
            return found  # whose own `grid` and `patches` they are
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
    """Returns the API's number of a value of the library, by its name; empty is unspecified."""
    unspecified = enum.values[0].name
    name = value.name if isinstance(value, Enum) else value.upper()
    return int(enum.values_by_name[unspecified.removesuffix("UNSPECIFIED") + name if name else unspecified].number)


def _half(values: Tensor) -> tensor_pb2.Tensor:
    return tensor_of(values.detach().float().cpu().numpy(), tensor_pb2.DATA_TYPE_FLOAT16)

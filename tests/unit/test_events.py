"""Every field of every event reaches the caller: from what explainers report, over the wire, to the SDK."""

import dataclasses
import itertools
import types
from collections.abc import Mapping
from enum import Enum
from typing import get_args, get_origin, get_type_hints

import numpy as np
import pytest
from google.protobuf import duration_pb2, timestamp_pb2
from torch import Tensor, full

from sagittal.client import Explanation, Preprocessing
from sagittal.client import events as sdk
from sagittal.client.gathering import parse_explanation
from sagittal.client.images import to_tensor
from sagittal.client.parsing import KINDS, parse_event, targets_of
from sagittal.engine import Usage
from sagittal.explain import events as explained
from sagittal.explain.messages import EventMessages, Summary
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import tensor_pb2

FIELDS = {field.name for field in pb.ExplanationEvent.DESCRIPTOR.oneofs_by_name["event"].fields}
#: No two alike, so that no difference between them is nothing.
NUMBERS = itertools.count(0.25, 0.25)
#: Events that the worker writes itself, of what it counted.
OF_THE_WORKER = {"accepted", "started", "completed", "failed", "cancelled", "answer"}
#: Events that become an error, or the answer of a unary RPC.
NO_EVENT_OF_THE_SDK = {"failed", "cancelled", "answer", "region_scores"}


def filled(kind: object) -> object:
    """A value of a type annotation in which nothing is empty."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        return filled(next(each for each in arguments if each is not type(None)))
    if origin is tuple:
        return (filled(arguments[0]),)
    if origin is Mapping:
        return {filled(arguments[0]): filled(arguments[1])}
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{field.name: filled(hints[field.name]) for field in dataclasses.fields(kind)})
    if isinstance(kind, type) and issubclass(kind, Enum):
        return list(kind)[-1]
    return {bool: True, int: 3, float: next(NUMBERS), str: "blur", Tensor: full((2, 2), 0.5)}[kind]


def fill(message) -> None:
    """Sets every field of a message to what is not its default."""
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if isinstance(value, tensor_pb2.Tensor):
            value.CopyFrom(to_tensor(np.full((2, 2), 0.5, np.float16)))
        elif isinstance(value, timestamp_pb2.Timestamp | duration_pb2.Duration):
            value.seconds = 5
        elif field.message_type and field.message_type.GetOptions().map_entry:
            value.update(
                {"name": "1.0" if field.message_type.fields_by_name["value"].type == field.TYPE_STRING else 0.5}
            )
        elif field.message_type:
            fill(value.add() if field.is_repeated else value)
        else:
            one = "text" if field.type == field.TYPE_STRING else True if field.type == field.TYPE_BOOL else 1
            value.append(one) if field.is_repeated else setattr(message, field.name, one)


def empty_fields(message, path: str) -> list[str]:
    """Paths of the fields of a message that are as if nobody had set them."""
    found = []
    for field in message.DESCRIPTOR.fields:
        value, name = getattr(message, field.name), f"{path}.{field.name}"
        if not (value if field.is_repeated else message.HasField(field.name) if field.message_type else value):
            found.append(name)
        elif field.message_type and not field.message_type.GetOptions().map_entry:
            for each in value if field.is_repeated else [value]:
                found += empty_fields(each, name)
    return found


def empty_attributes(value: object, path: str) -> list[str]:
    """Paths of attributes of a dataclass that hold nothing."""
    if isinstance(value, np.ndarray):
        return [] if value.any() else [path]
    if dataclasses.is_dataclass(value):
        pairs = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return [found for name, each in pairs for found in empty_attributes(each, f"{path}.{name}")]
    if isinstance(value, tuple) and value:
        return [found for each in value for found in empty_attributes(each, path)]
    return [] if value else [path]


def lost_fields(message, kind: type, path: str) -> list[str]:
    """Paths of the fields of a message that no attribute of a dataclass comes from."""
    targets = {target.source: target.kind for target in targets_of(kind)}
    found = []
    for field in message.DESCRIPTOR.fields:
        name = f"{path}.{field.name}"
        if field.name not in targets:
            found.append(name)
            continue
        inner = get_args(targets[field.name])[:1] if get_origin(targets[field.name]) is tuple else [targets[field.name]]
        if field.message_type and dataclasses.is_dataclass(inner[0]):
            value = getattr(message, field.name)
            found += lost_fields(value[0] if field.is_repeated else value, inner[0], name)
    return found


def reported() -> dict[str, object]:
    """One event of each kind that explainers report, by its field in the API."""
    wire = EventMessages(["a", "b", "c", "label"], "digest", filled(Preprocessing))
    found = {}
    for kind in get_args(explained.Event):
        message = wire.message(filled(kind), 7)
        if message is not None:
            found[message.WhichOneof("event")] = message
    return found


def test_an_explanation_of_every_event_is_equal_after_it_was_stored_and_read(tmp_path) -> None:
    names = sorted(FIELDS - NO_EVENT_OF_THE_SDK, key=lambda name: (name != "started", name == "completed"))
    events = [pb.ExplanationEvent(job_id="job", sequence=number) for number in range(1, len(names) + 1)]
    for event, name in zip(events, names, strict=True):
        fill(getattr(event, name))
        if name == "mask":
            event.mask.final = True
        if name == "completed":
            event.completed.parameters_json = '{"size": 1}'
    state = pb.JOB_STATE_COMPLETED
    whole = parse_explanation(pb.Explanation(job_id="job", state=state, model="lamp", events=events))
    assert [name for name in Explanation.__dataclass_fields__ if not getattr(whole, name)] == ["error", "image"]
    found = Explanation.load(whole.save(tmp_path / "one"))
    assert found == whole
    assert found.to_dict() == whole.to_dict()


def test_explainers_or_the_worker_report_every_event_of_the_api() -> None:
    assert set(reported()) | OF_THE_WORKER == FIELDS


@pytest.mark.parametrize("name", sorted(FIELDS - OF_THE_WORKER))
def test_the_worker_sends_every_field_of_what_explainers_report(name) -> None:
    assert empty_fields(getattr(reported()[name], name), name) == []


@pytest.mark.parametrize("name", sorted(FIELDS - NO_EVENT_OF_THE_SDK))
def test_the_sdk_keeps_every_field_of_every_event(name) -> None:
    message = pb.ExplanationEvent(job_id="job", sequence=2, request_id="key")
    message.time.seconds = 9
    fill(getattr(message, name))
    event = parse_event(message)
    assert type(event) is KINDS[name] is not sdk.Unrecognised
    assert empty_attributes(event, name) == []
    assert lost_fields(getattr(message, name), KINDS[name], name) == []


def test_a_measurement_arrives_by_its_name_and_a_spent_budget_with_it() -> None:
    summary = Summary()
    for event in (
        explained.Measurement("insertion", 0.5),
        explained.Measurement("pointing_game_hit", False),
        explained.Truncated("deadline"),
        explained.Progress(1.0),
    ):
        summary.note(event)
    message = summary.message(Usage(evaluations=7, remembered=2), {"steps": 3, "mask": full((2,), 0.5)}, seed=9)
    completed = parse_event(pb.ExplanationEvent(completed=message))
    assert (completed.insertion, completed.deletion, completed.pointing_game_hit) == (0.5, None, False)
    assert (completed.truncated, completed.truncated_by) == (True, "deadline")
    assert (completed.evaluations, completed.cache_hits, completed.seed) == (7, 2, 9)
    assert completed.parameters_json == '{"steps": 3}'


@pytest.mark.parametrize("name", sorted(FIELDS - OF_THE_WORKER - NO_EVENT_OF_THE_SDK))
def test_what_explainers_report_arrives_whole(name) -> None:
    message = reported()[name]
    message.job_id, message.sequence, message.request_id = "job", 2, "key"
    message.time.seconds = 9
    assert empty_attributes(parse_event(message), name) == []

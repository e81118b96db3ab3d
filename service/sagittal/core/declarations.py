"""Model entries as messages and back: what crosses the API and what the registry keeps of a registration."""

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format
from pydantic import ValidationError

from sagittal.core.entries import Layers, ModelEntry, Output, Preprocessing
from sagittal.core.errors import InvalidRequest
from sagittal.core.parameters import shortest
from sagittal.core.text import shown
from sagittal.v1 import model_pb2

OUTPUTS: Mapping[Output, "model_pb2.OutputKind.ValueType"] = {
    "logits": model_pb2.OUTPUT_KIND_LOGITS,
    "probabilities": model_pb2.OUTPUT_KIND_PROBABILITIES,
    "multi-label-logits": model_pb2.OUTPUT_KIND_MULTI_LABEL_LOGITS,
    "multi-label-probabilities": model_pb2.OUTPUT_KIND_MULTI_LABEL_PROBABILITIES,
}

LOADS: Mapping[str, "model_pb2.LoadPolicy.ValueType"] = {
    "preload": model_pb2.LOAD_POLICY_PRELOAD,
    "on-demand": model_pb2.LOAD_POLICY_ON_DEMAND,
}

DECLARED = frozenset(
    {
        "name", "version", "source", "preprocessing", "labels", "labels_from", "output", "layers", "device",
        "weights_digest", "tags", "load_policy",
    }
)  # fmt: skip
"""Fields of `Model` that a registration says; `latest` is asked for with it and kept elsewhere."""

_API_NAMES = {"load": "load_policy"}
"""Fields of an entry that the API calls otherwise."""


def declaration_of(entry: ModelEntry) -> model_pb2.Model:
    """Returns an entry as the registry keeps it: nothing but what was declared."""
    by_name = isinstance(entry.labels, str)
    return model_pb2.Model(
        name=entry.name,
        version=entry.version,
        source=_source(entry.source),
        preprocessing=preprocessing_message(entry.preprocessing),
        labels=() if by_name else entry.labels,
        labels_from=str(entry.labels) if by_name else "",
        output=OUTPUTS[entry.output],
        layers=model_pb2.Layers(**entry.layers.model_dump()),
        device=model_pb2.DeviceWishes(**entry.device.model_dump()),
        weights_digest=entry.weights_digest,
        tags=entry.tags,
        load_policy=LOADS[entry.load],
    )


def preprocessing_message(preprocessing: Preprocessing) -> model_pb2.Preprocessing:
    """Returns how an image becomes the model's input as a message; a preset goes by its name."""
    shown = preprocessing.model_dump()
    if preprocessing.preset:
        shown = {name: shown[name] for name in ("preset", "layout", "channel_order")}
    return model_pb2.Preprocessing(**shown)


def entry_of(model: model_pb2.Model, *, field: str = "model") -> ModelEntry:
    """Returns the entry that a message declares.

    Args:
        model: As it came from a caller, or from the registry.
        field: Path of the message in the request, for errors.

    Raises:
        InvalidRequest: a field is wrong.
    """
    _check_enum(model_pb2.OutputKind.DESCRIPTOR, model.output, f"{field}.output")
    _check_enum(model_pb2.LoadPolicy.DESCRIPTOR, model.load_policy, f"{field}.load_policy")
    said = {
        "name": model.name,
        "version": model.version or "1",
        "source": {**_settings(model.source, f"{field}.source.settings"), "kind": model.source.kind},
        "preprocessing": _preprocessing(model.preprocessing),
        "labels": model.labels_from or list(model.labels),
        "output": _name_of(OUTPUTS, model.output, "logits"),
        "layers": Layers(spatial=model.layers.spatial, features=model.layers.features),
        "device": _given(model.device),
        "weights_digest": model.weights_digest,
        "tags": dict(model.tags),
        "load": _name_of(LOADS, model.load_policy, "preload"),
        "latest": model.latest,
    }
    try:
        return ModelEntry.model_validate(said)
    except ValidationError as error:
        raise _invalid(error, field) from error


def _invalid(error: ValidationError, field: str) -> InvalidRequest:
    first = error.errors()[0]
    place, said = first["loc"], first["msg"].removeprefix("Value error, ")
    if place[-1] == "[key]":  # a key that is wrong is no name of a field
        place, said = place[:-2], f"the key {shown(place[-2])}: {said}"
    names = (_API_NAMES.get(str(part), str(part)) for part in place if part not in ("str", "list[str]"))
    path = ".".join((field, *names))
    return InvalidRequest(f"{path}: {said}", field=path)


def _check_enum(enum: Any, number: int, field: str) -> None:
    if number not in enum.values_by_number:
        names = ", ".join(value.name for value in enum.values if value.number)
        raise InvalidRequest(f"{field} is {number}; give one of {names}", field=field)


def _name_of(table: Mapping[Any, int], number: int, otherwise: str) -> str:
    return next((str(name) for name, value in table.items() if value == number), otherwise)


def _given(message: model_pb2.Preprocessing | model_pb2.DeviceWishes) -> dict[str, Any]:
    """Returns the fields that are set."""
    return {field.name: value for field, value in message.ListFields()}


def _preprocessing(message: model_pb2.Preprocessing) -> dict[str, Any]:
    given = _given(message)
    if message.preset:  # what it means shows beside it in GetModel, and comes back with a changed model
        return {name: given[name] for name in ("preset", "layout", "channel_order") if name in given}
    for name in ("mean", "std"):
        if name in given:
            given[name] = tuple(shortest(value) for value in given[name])
    return given


def _source(source: Mapping[str, Any]) -> model_pb2.ModelSource:
    message = model_pb2.ModelSource(kind=str(source["kind"]))
    json_format.ParseDict({name: value for name, value in source.items() if name != "kind"}, message.settings)
    return message


def _settings(source: model_pb2.ModelSource, field: str) -> dict[str, Any]:
    try:
        settings = json_format.MessageToDict(source.settings)
    except ValueError as error:  # NaN and infinity, which JSON does not have
        raise InvalidRequest(f"{field}: {error}; give finite numbers", field=field) from error
    return {name: _plain(value) for name, value in settings.items()}


def _plain(value: Any) -> Any:
    """Returns whole numbers as integers: a Struct has floats alone."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value

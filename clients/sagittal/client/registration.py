"""Converts a `[[models]]` table to the messages that register a model; the service validates it."""

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import json_format

from sagittal.client.errors import InvalidRequest
from sagittal.client.requests import check_kind, check_several
from sagittal.v1 import model_pb2
from sagittal.v1 import model_service_pb2 as models_pb

ModelTable = Mapping[str, Any]
"""A `[[models]]` table of a model file: name, version, source, preprocessing, labels and so on."""

OUTPUTS = ("logits", "probabilities", "multi-label-logits", "multi-label-probabilities")

LOADS = ("preload", "on-demand")

_FIELDS = {"load": "load_policy"}
"""Keys of a table that have another name in the API."""


def model_message(table: ModelTable) -> model_pb2.Model:
    """Returns the message of a table. Raises InvalidRequest for a key that the API does not know."""
    said = {_FIELDS.get(name, name): value for name, value in _table(table, "").items()}
    if isinstance(said.get("labels"), str):
        said["labels_from"] = said.pop("labels")
    if "source" in said:
        source = _table(said["source"], "source")
        settings = {name: value for name, value in source.items() if name != "kind"}
        said["source"] = {"kind": source.get("kind", ""), "settings": settings}
    _name_enum(said, "output", "OUTPUT_KIND_", OUTPUTS)
    _name_enum(said, "load_policy", "LOAD_POLICY_", LOADS)
    try:
        return json_format.ParseDict(said, model_pb2.Model())
    except json_format.ParseError as error:
        raise InvalidRequest(f"{error}; give the keys of a [[models]] table in a model file", field="model") from error


def update_request(table: ModelTable, fields: Sequence[str]) -> models_pb.UpdateModelRequest:
    """Returns the request that changes the named fields of a model; all fields if none are named."""
    model = model_message(table)
    request = models_pb.UpdateModelRequest(model=model)
    for name in check_several(fields, "fields", "names such as 'latest'"):
        check_kind(name, str, "fields", "names such as 'latest'")
        by_name = name == "labels" and bool(model.labels_from)
        request.update_mask.paths.append("labels_from" if by_name else _FIELDS.get(name, name))
    return request


def _name_enum(said: dict[str, Any], field: str, prefix: str, admitted: Sequence[str]) -> None:
    """Replaces the name of a value in model files by the API's name."""
    if field not in said:
        return
    if said[field] not in admitted:
        raise InvalidRequest(f"{field} is {said[field]!r}; give one of {', '.join(admitted)}", field=f"model.{field}")
    said[field] = prefix + str(said[field]).upper().replace("-", "_")


def _table(value: Any, field: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        name = f"model.{field}" if field else "model"
        raise InvalidRequest(f"{name} is {value!r}; give a table such as {{ kind = ... }}", field=name)
    return value

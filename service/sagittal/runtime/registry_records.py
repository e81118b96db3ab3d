"""What every registry does with models before it keeps them and after it reads them, whatever it keeps them in."""

from collections.abc import Mapping, Sequence
from typing import cast

from sagittal.core.errors import FailedPrecondition, ModelExists, SagittalError, UnknownModel
from sagittal.core.text import shown
from sagittal.runtime.registry import Registration, Wish
from sagittal.v1 import model_pb2

ORIGINS: Mapping[str, "model_pb2.ModelOrigin.ValueType"] = {
    "file": model_pb2.MODEL_ORIGIN_FILE,
    "api": model_pb2.MODEL_ORIGIN_API,
}


def announced_state(worker: str, state: model_pb2.WorkerModel) -> model_pb2.WorkerModel:
    """Returns the state under the worker's name, whether or not it was written into it."""
    named = model_pb2.WorkerModel()
    named.CopyFrom(state)
    named.worker = worker
    return named


def stored_model(model: model_pb2.Model) -> model_pb2.Model:
    """Returns the model without what the registry itself knows."""
    stored = model_pb2.Model()
    stored.CopyFrom(model)
    for field in ("workers", "latest", "create_time", "revision", "origin"):
        stored.ClearField(field)
    return stored


def merged(declared: model_pb2.Model | None, found: model_pb2.Model | None) -> model_pb2.Model:
    """Returns both halves of a model as one; what nobody declared is as its worker published it.

    Preprocessing and labels are found out too: a preset stands for one, a file holds the others.
    """
    model = model_pb2.Model()
    model.CopyFrom(declared or found or model)
    if declared is None or found is None:
        return model
    model.ClearField("labels")
    if found.HasField("preprocessing"):
        model.ClearField("preprocessing")
    model.MergeFrom(
        model_pb2.Model(
            digest=found.digest,
            classes=found.classes,
            labels=found.labels,
            preprocessing=found.preprocessing if found.HasField("preprocessing") else None,
            capabilities=found.capabilities if found.HasField("capabilities") else None,
            methods=found.methods,
            checks=found.checks,
        )
    )
    return model


def registration(model: model_pb2.Model, declared: model_pb2.Model | None, wish: str) -> Registration:
    """Returns a registration with a wish as it is kept, `load:12`."""
    asked, _, turn = wish.partition(":")
    return Registration(model=model, declaration=declared, wish=cast("Wish", asked), turn=int(turn or 0))


def unknown_model(name: str, version: str, existing: Sequence[str]) -> UnknownModel:
    """Returns the error for a model that is not there; `existing` are those that are, as NAME@VERSION."""
    asked = f"{shown(name)}, version {shown(version)}" if version else shown(name)
    known = ", ".join(sorted(existing)) or "none: has a worker been started?"
    return UnknownModel(f"no model {asked}; registered are: {known}", field="spec.model")


def refusal(verdict: str, name: str, version: str) -> SagittalError:
    """Returns the error for a change that the registry did not make."""
    what = f"{shown(name)}, version {shown(version)},"
    if verdict == "exists":
        text = f"{what} is registered with another content; change it with UpdateModel, or register another version"
        return ModelExists(text, field="model.version")
    if verdict == "changed":
        text = f"{what} was changed by someone else meanwhile; read it with GetModel and try again"
        return FailedPrecondition(text, field="model")
    if verdict == "latest":
        text = f"{what} is the latest; make another version the latest with UpdateModel first"
        return FailedPrecondition(text, field="version")
    return unknown_model(name, version, ())

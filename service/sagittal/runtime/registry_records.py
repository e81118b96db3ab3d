"""What every registry does with models before it keeps them, whatever it keeps them in."""

from collections.abc import Sequence

from sagittal.core.errors import UnknownModel
from sagittal.v1 import model_pb2


def announced_state(worker: str, state: model_pb2.WorkerModel) -> model_pb2.WorkerModel:
    """Returns the state under the worker's name, whether or not it was written into it."""
    named = model_pb2.WorkerModel()
    named.CopyFrom(state)
    named.worker = worker
    return named


def stored_model(model: model_pb2.Model) -> model_pb2.Model:
    """Returns the model without what the registry itself knows: workers, latest, time."""
    stored = model_pb2.Model()
    stored.CopyFrom(model)
    for field in ("workers", "latest", "create_time"):
        stored.ClearField(field)
    return stored


def unknown_model(name: str, version: str, existing: Sequence[str]) -> UnknownModel:
    """Returns the error for a model that is not there; `existing` are those that are, as NAME@VERSION."""
    asked = f"{name!r}, version {version!r}" if version else repr(name)
    known = ", ".join(sorted(existing)) or "none: has a worker been started?"
    return UnknownModel(f"no model {asked}; registered are: {known}", field="spec.model")

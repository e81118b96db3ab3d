"""The models as the service sees them: a short-lived cache of the registry."""

import time
from collections.abc import Mapping, Sequence

from sagittal.core.errors import InvalidRequest, ModelFailed, UnknownModel
from sagittal.registry.protocol import CanaryRecord, ModelRegistry
from sagittal.v1 import model_pb2


class Catalogue:
    """Returns models, with at most one registry lookup per model in `refresh` seconds."""

    def __init__(self, registry: ModelRegistry, refresh: float) -> None:
        self._registry = registry
        self._refresh = refresh
        self._known: dict[tuple[str, str], tuple[float, model_pb2.Model]] = {}
        self._tried: tuple[float, Mapping[str, CanaryRecord]] = (0.0, {})

    async def models(self) -> Sequence[model_pb2.Model]:
        """Returns every model, by name and version."""
        return [await self.with_canary(model) for model in await self._registry.models()]

    async def with_canary(self, model: model_pb2.Model) -> model_pb2.Model:
        """Returns the model with its canary if it is on trial; a copy then."""
        record = (await self._canaries()).get(model.name)
        if record is None or record.version != model.version:
            return model
        tried = model_pb2.Model()
        tried.CopyFrom(model)
        tried.canary.CopyFrom(record.canary)
        return tried

    async def on_trial(self, latest: model_pb2.Model) -> model_pb2.Model | None:
        """Returns the version, with its canary, that may replace the latest in a share of the explanations."""
        record = (await self._canaries()).get(latest.name)
        if record is None or record.canary.rolled_back or record.version == latest.version:
            return None
        try:
            tried = await self.model(latest.name, record.version, field="")
        except UnknownModel:
            return None
        return await self.with_canary(tried) if ready_workers(tried) else None

    async def _canaries(self) -> Mapping[str, CanaryRecord]:
        until, canaries = self._tried
        if until < time.monotonic():
            canaries = await self._registry.canaries()
            self._tried = (time.monotonic() + self._refresh, canaries)
        return canaries

    async def model(self, name: str, version: str, *, field: str) -> model_pb2.Model:
        """Returns one model, which must not be modified; an empty version means the latest.

        Args:
            name: The caller's value.
            version: The caller's value.
            field: Path of the name in the request, for errors.

        Raises:
            InvalidRequest: the name is empty.
            UnknownModel: the model does not exist.
        """
        if not name:
            raise InvalidRequest(f"{field} is not set; give the name of a model, as ListModels lists it", field=field)
        known = self._known.get((name, version))
        if known is not None and known[0] > time.monotonic():
            return known[1]
        try:
            model = await self._registry.model(name, version)
        except UnknownModel as error:
            self._known.pop((name, version), None)
            raise UnknownModel(error.message, field=await self._at_fault(name, version, field)) from error
        self._known[name, version] = (time.monotonic() + self._refresh, model)
        return model

    def forget(self, name: str) -> None:
        """Removes a model from the cache, because this replica changed it."""
        for key in [key for key in self._known if key[0] == name]:
            del self._known[key]
        self._tried = (0.0, {})

    async def _at_fault(self, name: str, version: str, field: str) -> str:
        """Returns the field at fault: the version if the model has others, else the name."""
        if not version or all(model.name != name for model in await self._registry.models()):
            return field
        parent, _, last = field.rpartition(".")
        blamed = "version" if last == "name" else f"{last}_version"
        return f"{parent}.{blamed}" if parent else blamed


def check_loadable(model: model_pb2.Model, field: str) -> None:
    """Raises ModelFailed if every worker that serves the model failed to load it, because a job would wait in vain."""
    failed = [worker for worker in model.workers if worker.state == model_pb2.MODEL_STATE_FAILED]
    if failed and len(failed) == len(model.workers):
        text = (
            f"{model.name} cannot be loaded: {failed[0].message}; see GetModel, and call LoadModel after the cause is "
            "corrected"
        )
        raise ModelFailed(text, field=field)


def ready_workers(model: model_pb2.Model) -> int:
    """Returns the number of workers that have the model ready."""
    return sum(1 for worker in model.workers if worker.state == model_pb2.MODEL_STATE_READY)

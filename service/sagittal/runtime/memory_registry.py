"""The model registry in one process, for tests and for trying things."""

import time
from collections.abc import Callable, Sequence

from sagittal.runtime.registry_records import announced_state, stored_model, unknown_model
from sagittal.v1 import model_pb2


class _Entries:
    """What both sides share."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.models: dict[tuple[str, str], model_pb2.Model] = {}
        self.latest: dict[str, str] = {}
        self.workers: dict[str, tuple[float, dict[tuple[str, str], model_pb2.WorkerModel]]] = {}

    def publish(self, model: model_pb2.Model) -> None:
        key = (model.name, model.version)
        stored = stored_model(model)
        if key in self.models:
            stored.create_time.CopyFrom(self.models[key].create_time)
        else:
            stored.create_time.GetCurrentTime()
        self.models[key] = stored
        self.latest.setdefault(model.name, model.version)

    def read(self, key: tuple[str, str]) -> model_pb2.Model:
        model = model_pb2.Model()
        model.CopyFrom(self.models[key])
        model.latest = self.latest[model.name] == model.version
        now = self.clock()
        states = (states for ends, states in self.workers.values() if ends > now)
        model.workers.extend(sorted((each[key] for each in states if key in each), key=lambda state: state.worker))
        return model


class MemoryModelRegistry:
    """A `ModelRegistry` over entries in this process."""

    def __init__(self, entries: _Entries) -> None:
        self._entries = entries

    async def models(self) -> Sequence[model_pb2.Model]:
        """Returns every registered model, by name and version."""
        return [self._entries.read(key) for key in sorted(self._entries.models)]

    async def model(self, name: str, version: str = "") -> model_pb2.Model:
        """Returns one model; an empty version means the latest."""
        key = (name, version or self._entries.latest.get(name, ""))
        if key not in self._entries.models:
            raise unknown_model(name, version, ["@".join(each) for each in self._entries.models])
        return self._entries.read(key)

    async def register(self, model: model_pb2.Model) -> None:
        """Registers a version of a model, or replaces it."""
        self._entries.publish(model)

    async def close(self) -> None:
        """Does nothing: the entries go with the process."""


class MemoryWorkerRegistry:
    """A `WorkerRegistry` over entries in this process."""

    def __init__(self, entries: _Entries) -> None:
        self._entries = entries

    def publish(self, model: model_pb2.Model) -> None:
        """Registers a model as this worker loaded it."""
        self._entries.publish(model)

    def announce(self, worker: str, models: Sequence[tuple[str, str, model_pb2.WorkerModel]], *, ttl: float) -> None:
        """Says how this worker stands to models, for `ttl` seconds."""
        states = {(name, version): announced_state(worker, state) for name, version, state in models}
        self._entries.workers[worker] = (self._entries.clock() + ttl, states)

    def withdraw(self, worker: str) -> None:
        """Forgets this worker."""
        self._entries.workers.pop(worker, None)

    def close(self) -> None:
        """Does nothing: the entries go with the process."""


class MemoryRegistry:
    """Both sides of one registry in this process: `models` for the service, `workers` for workers."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        entries = _Entries(clock)
        self.models = MemoryModelRegistry(entries)
        self.workers = MemoryWorkerRegistry(entries)

"""The model registry on Redis: models for good, workers for as long as they repeat themselves."""

import time
from collections.abc import Sequence

from sagittal.runtime.redis_connection import (
    AsyncRunner,
    SyncRunner,
    close_async,
    close_sync,
    connect_async,
    connect_sync,
)
from sagittal.runtime.redis_scripts import load_script, model_key, root_key
from sagittal.runtime.registry_records import announced_state, stored_model, unknown_model
from sagittal.runtime.settings import QueueSettings
from sagittal.v1 import model_pb2


class RedisModelRegistry:
    """A `ModelRegistry` on Redis."""

    def __init__(self, settings: QueueSettings) -> None:
        self._redis = AsyncRunner(connect_async(settings), settings, root_key(settings))

    async def models(self) -> Sequence[model_pb2.Model]:
        """Returns every registered model, by name and version."""
        entries = await self._redis.script(load_script("registry_read"), "all", "", "")
        return sorted((_parse(entry) for entry in entries), key=lambda model: (model.name, model.version))

    async def model(self, name: str, version: str = "") -> model_pb2.Model:
        """Returns one model; an empty version means the latest."""
        found = await self._redis.script(load_script("registry_read"), "one", name, version)
        if found and isinstance(found[0], list):
            return _parse(found[0])
        raise unknown_model(name, version, [key.decode() for key in found])

    async def register(self, model: model_pb2.Model) -> None:
        """Registers a version of a model, or replaces it."""
        await self._redis.script(load_script("registry_publish"), *_publication(model))

    async def close(self) -> None:
        """Closes all connections."""
        await close_async(self._redis.client)


class RedisWorkerRegistry:
    """A `WorkerRegistry` on Redis."""

    def __init__(self, settings: QueueSettings) -> None:
        self._redis = SyncRunner(connect_sync(settings), settings, root_key(settings))

    def publish(self, model: model_pb2.Model) -> None:
        """Registers a model as this worker loaded it."""
        self._redis.script(load_script("registry_publish"), *_publication(model))

    def announce(self, worker: str, models: Sequence[tuple[str, str, model_pb2.WorkerModel]], *, ttl: float) -> None:
        """Says how this worker stands to models, for `ttl` seconds."""
        states = [
            value
            for name, version, state in models
            for value in (model_key(name, version), announced_state(worker, state).SerializeToString())
        ]
        self._redis.script(load_script("registry_announce"), worker, ttl, *states)

    def withdraw(self, worker: str) -> None:
        """Forgets this worker."""
        self._redis.script(load_script("registry_withdraw"), worker)

    def close(self) -> None:
        """Closes all connections."""
        close_sync(self._redis.client)


def _publication(model: model_pb2.Model) -> tuple[str, str, bytes, str]:
    return model.name, model.version, stored_model(model).SerializeToString(), str(time.time_ns())


def _parse(entry: Sequence[bytes]) -> model_pb2.Model:
    _, serialized, created, latest, *workers = entry
    model = model_pb2.Model.FromString(serialized)
    model.latest = bool(latest)
    model.create_time.FromNanoseconds(int(created))
    model.workers.extend(
        sorted((model_pb2.WorkerModel.FromString(each) for each in workers), key=lambda each: each.worker)
    )
    return model

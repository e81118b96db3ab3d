"""The model registry on Redis: models for good, workers for as long as they repeat themselves."""

import secrets
import time
from collections.abc import Sequence
from typing import cast

from sagittal.runtime.queue_metrics import UNOBSERVED, QueueObserver
from sagittal.runtime.redis_connection import (
    AsyncRunner,
    SyncRunner,
    close_async,
    close_sync,
    connect_async,
    connect_sync,
)
from sagittal.runtime.redis_scripts import load_script, model_key, root_key
from sagittal.runtime.registry import Registration, Wish
from sagittal.runtime.registry_records import (
    ORIGINS,
    announced_state,
    merged,
    refusal,
    registration,
    stored_model,
    unknown_model,
)
from sagittal.runtime.settings import QueueSettings
from sagittal.v1 import model_pb2


class RedisModelRegistry:
    """A `ModelRegistry` on Redis."""

    def __init__(self, settings: QueueSettings, observer: QueueObserver = UNOBSERVED) -> None:
        self._root = root_key(settings)
        self._redis = AsyncRunner(connect_async(settings), settings, self._root, observer)

    async def models(self) -> Sequence[model_pb2.Model]:
        """Returns every registered model, by name and version."""
        entries = await self._redis.script(load_script("registry_read"), "all", "", "")
        return [each.model for each in _parse_all(entries)]

    async def model(self, name: str, version: str = "") -> model_pb2.Model:
        """Returns one model; an empty version means the latest."""
        found = await self._redis.script(load_script("registry_read"), "one", name, version)
        if found and isinstance(found[0], list):
            return _parse(found[0]).model
        raise unknown_model(name, version, [key.decode() for key in found])

    async def epoch(self) -> str:
        """Returns a random value that lives as long as the registry's data."""
        key = f"{self._root}epoch"

        async def settle() -> str:
            await self._redis.client.set(key, secrets.token_hex(8), nx=True)
            return cast("bytes", await self._redis.client.get(key) or b"").decode()

        return await self._redis.run(settle, name="epoch")

    async def declare(self, declaration: model_pb2.Model, *, latest: bool = False) -> bool:
        """Registers a version from a model file; False if the API has registered another content."""
        arguments = _declaration(declaration, "file", latest=latest, revision="")
        return bool((await self._redis.script(load_script("registry_declare"), *arguments))[0] == b"done")

    async def register(self, declaration: model_pb2.Model, *, latest: bool = False) -> None:
        """Registers a version of a model. Raises ModelExists."""
        await self._declare(declaration, "register", latest=latest, revision="")

    async def update(self, declaration: model_pb2.Model, *, revision: int | None = None, latest: bool = False) -> None:
        """Replaces a declaration. Raises UnknownModel, FailedPrecondition."""
        await self._declare(declaration, "update", latest=latest, revision="" if revision is None else str(revision))

    async def unregister(self, name: str, version: str) -> None:
        """Removes a version. Raises UnknownModel, FailedPrecondition."""
        verdict = (await self._redis.script(load_script("registry_remove"), name, version)).decode()
        if verdict == "unknown":
            await self.model(name, version)  # says which there are
        if verdict != "done":
            raise refusal(verdict, name, version)

    async def wish(self, name: str, version: str, wish: Wish) -> None:
        """Asks workers to load or unload a model. Raises UnknownModel."""
        if not await self._redis.script(load_script("registry_wish"), name, version, wish):
            await self.model(name, version)  # says which there are

    async def close(self) -> None:
        """Closes all connections."""
        await close_async(self._redis.client)

    async def _declare(self, declaration: model_pb2.Model, how: str, *, latest: bool, revision: str) -> None:
        arguments = _declaration(declaration, how, latest=latest, revision=revision)
        verdict = (await self._redis.script(load_script("registry_declare"), *arguments))[0].decode()
        if verdict == "unknown":
            await self.model(declaration.name, declaration.version)  # says which there are
        if verdict != "done":
            raise refusal(verdict, declaration.name, declaration.version)


class RedisWorkerRegistry:
    """A `WorkerRegistry` on Redis."""

    def __init__(self, settings: QueueSettings, observer: QueueObserver = UNOBSERVED) -> None:
        self._root = root_key(settings)
        self._redis = SyncRunner(connect_sync(settings), settings, self._root, observer)

    def declare(self, declaration: model_pb2.Model, *, latest: bool = False) -> bool:
        """Registers a version from a model file; False where the API has registered another content."""
        arguments = _declaration(declaration, "file", latest=latest, revision="")
        return bool(self._redis.script(load_script("registry_declare"), *arguments)[0] == b"done")

    def changes(self) -> int:
        """Returns a number that grows whenever a declaration or a wish changes."""
        return int(self._redis.run(lambda: self._redis.client.get(f"{self._root}changes")) or 0)

    def registrations(self) -> Sequence[Registration]:
        """Returns every registered model, by name and version."""
        return _parse_all(self._redis.script(load_script("registry_read"), "all", "", ""))

    def publish(self, model: model_pb2.Model) -> bool:
        """Says what this worker found of a model's revision; False where that is no longer the registered one."""
        arguments = (
            model.name,
            model.version,
            stored_model(model).SerializeToString(),
            str(time.time_ns()),
            str(model.revision),
        )
        return bool(self._redis.script(load_script("registry_publish"), *arguments))

    def announce(self, worker: str, models: Sequence[tuple[str, str, model_pb2.WorkerModel]], *, ttl: float) -> None:
        """Says how this worker stands to models, for `ttl` seconds."""
        states = [
            value
            for name, version, state in models
            for value in (
                model_key(name, version),
                announced_state(worker, state).SerializeToString(),
                "" if state.state == model_pb2.MODEL_STATE_FAILED else "1",
            )
        ]
        self._redis.script(load_script("registry_announce"), worker, ttl, *states)

    def withdraw(self, worker: str) -> None:
        """Forgets this worker."""
        self._redis.script(load_script("registry_withdraw"), worker)

    def close(self) -> None:
        """Closes all connections."""
        close_sync(self._redis.client)


def _declaration(
    declaration: model_pb2.Model, how: str, *, latest: bool, revision: str
) -> tuple[str, str, bytes, str, str, str, str]:
    serialized = stored_model(declaration).SerializeToString(deterministic=True)
    moment = str(time.time_ns())
    return declaration.name, declaration.version, serialized, moment, how, "1" if latest else "", revision


def _parse_all(entries: Sequence[Sequence[bytes]]) -> Sequence[Registration]:
    return sorted(map(_parse, entries), key=lambda each: (each.model.name, each.model.version))


def _parse(entry: Sequence[bytes]) -> Registration:
    _, found, created, latest, declared, revision, origin, wish, *workers = entry
    declaration = model_pb2.Model.FromString(declared) if declared else None
    model = merged(declaration, model_pb2.Model.FromString(found) if found else None)
    model.latest = bool(latest)
    model.revision = int(revision or 0)
    model.origin = ORIGINS.get(origin.decode(), model_pb2.MODEL_ORIGIN_UNSPECIFIED)
    model.create_time.FromNanoseconds(int(created or 0))
    model.workers.extend(
        sorted((model_pb2.WorkerModel.FromString(each) for each in workers), key=lambda each: each.worker)
    )
    return registration(model, declaration, wish.decode())

"""The model registry on Redis: models for good, workers for as long as they repeat themselves."""

import secrets
import time
from collections.abc import Sequence
from typing import cast

from google.protobuf.message import DecodeError

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
        return [each.model for each in sorted(await self._read("all", "", ""), key=_name_and_version)]

    async def model(self, name: str, version: str = "") -> model_pb2.Model:
        """Returns one model; an empty version means the latest."""
        if found := await self._read("one", name, version):
            return found[0].model
        known = await self._redis.script(load_script("registry_read"), "all", "", "")
        raise unknown_model(name, version, [entry[0].decode(errors="replace") for entry in known])

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

    async def _read(self, *arguments: str) -> Sequence[Registration]:
        """Returns registrations; those that are damaged are set aside, and what is left of them is read again."""
        found, damaged = _parse_all(await self._redis.script(load_script("registry_read"), *arguments))
        for each in damaged:
            await self._redis.script(load_script("registry_quarantine"), *each)
        if damaged:
            found, _ = _parse_all(await self._redis.script(load_script("registry_read"), *arguments))
        return found

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
        return int(self._redis.script(load_script("registry_changes")))

    def registrations(self) -> Sequence[Registration]:
        """Returns every registered model, by name and version."""
        found, damaged = _parse_all(self._redis.script(load_script("registry_read"), "all", "", ""))
        for each in damaged:
            self._redis.script(load_script("registry_quarantine"), *each)
        return sorted(found, key=_name_and_version)

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


def _name_and_version(each: Registration) -> tuple[str, str]:
    return each.model.name, each.model.version


#: A damaged record of a model: its hash, its field, and what is wrong, as the script `registry_quarantine` takes them.
Damage = tuple[str, bytes, str]


def _parse_all(entries: Sequence[Sequence[bytes] | bytes]) -> tuple[list[Registration], list[Damage]]:
    """Returns the registrations that can be read, and what is damaged; names of models are neither."""
    found: list[Registration] = []
    damaged: list[Damage] = []
    for entry in entries:
        if isinstance(entry, bytes):
            continue
        damage = _damage(entry)
        if damage is None:
            found.append(_parse(entry))
        else:
            damaged.append(damage)
    return found, damaged


def _damage(entry: Sequence[bytes]) -> Damage | None:
    """Returns what of a model cannot be parsed; None where all can."""
    key, found, _, _, declared, _, _, _, *workers = entry
    parts = [("declared", declared), ("models", found), *(("worker", each) for each in workers)]
    for name, serialized in parts:
        kind = model_pb2.WorkerModel if name == "worker" else model_pb2.Model
        try:
            kind.FromString(serialized)
        except DecodeError:
            return name, key, f"is no serialized {kind.DESCRIPTOR.name}"
    return None


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

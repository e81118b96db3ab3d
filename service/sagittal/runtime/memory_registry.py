"""The model registry in one process, for tests and for trying things."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf import timestamp_pb2

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
from sagittal.v1 import model_pb2

Key = tuple[str, str]


@dataclass(slots=True, kw_only=True, eq=False)
class _Entry:
    """What is kept of a version of a model."""

    created: timestamp_pb2.Timestamp
    declared: model_pb2.Model | None = None
    found: model_pb2.Model | None = None
    revision: int = 0
    origin: str = ""
    wish: str = ""


class _Entries:
    """What both sides share."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.models: dict[Key, _Entry] = {}
        self.latest: dict[str, str] = {}
        self.workers: dict[str, tuple[float, dict[Key, model_pb2.WorkerModel]]] = {}
        self.changes = 0
        self.revision = 0

    def entry(self, key: Key) -> _Entry:
        if key not in self.models:
            self.models[key] = _Entry(created=timestamp_pb2.Timestamp())
            self.models[key].created.GetCurrentTime()
        return self.models[key]

    def declare(self, model: model_pb2.Model, how: str, *, latest: bool, revision: int | None = None) -> str:
        key, stored = (model.name, model.version), stored_model(model)
        known = self.models.get(key)
        same = known is not None and known.declared == stored
        if (verdict := _verdict(known, how, revision)) and (not same or verdict == "unknown"):
            return verdict
        if not same:
            self._replace(self.entry(key), stored, how)
        if latest and not (how == "file" and same):
            self.latest[model.name] = model.version
        self.latest.setdefault(model.name, model.version)
        return "done"

    def _replace(self, entry: _Entry, declared: model_pb2.Model, how: str) -> None:
        self.revision, self.changes = self.revision + 1, self.changes + 1
        entry.declared, entry.found, entry.wish = declared, None, ""
        entry.revision, entry.origin = self.revision, "file" if how == "file" else "api"

    def remove(self, key: Key) -> str:
        if key not in self.models:
            return "unknown"
        if self.latest[key[0]] == key[1]:
            if sum(name == key[0] for name, _ in self.models) > 1:
                return "latest"
            del self.latest[key[0]]
        del self.models[key]
        self.changes += 1
        return "done"

    def publish(self, model: model_pb2.Model) -> bool:
        key = (model.name, model.version)
        known = self.models.get(key)
        if model.revision != (known.revision if known else 0):
            return False
        self.entry(key).found = stored_model(model)
        self.latest.setdefault(model.name, model.version)
        return True

    def key(self, name: str, version: str) -> Key:
        """Returns the key of a model; an empty version means the latest. Raises UnknownModel."""
        key = (name, version or self.latest.get(name, ""))
        if key not in self.models:
            raise unknown_model(name, version, ["@".join(each) for each in self.models])
        return key

    def read(self, key: Key) -> Registration:
        entry = self.models[key]
        model = merged(entry.declared, entry.found)
        model.create_time.CopyFrom(entry.created)
        model.latest = self.latest[model.name] == model.version
        model.revision = entry.revision
        model.origin = ORIGINS.get(entry.origin, model_pb2.MODEL_ORIGIN_UNSPECIFIED)
        now = self.clock()
        states = (states for ends, states in self.workers.values() if ends > now)
        model.workers.extend(sorted((each[key] for each in states if key in each), key=lambda state: state.worker))
        return registration(model, entry.declared, entry.wish)


def _verdict(known: _Entry | None, how: str, revision: int | None) -> str:
    """Says why a declaration that differs from the one before is not taken; empty where it is."""
    if how == "update" and known is None:
        return "unknown"
    if how == "update" and known is not None and revision not in (None, known.revision):
        return "changed"
    if how == "register" and known is not None:
        return "exists"
    return "kept" if how == "file" and known is not None and known.origin == "api" else ""


class MemoryModelRegistry:
    """A `ModelRegistry` over entries in this process."""

    def __init__(self, entries: _Entries) -> None:
        self._entries = entries

    async def models(self) -> Sequence[model_pb2.Model]:
        """Returns every registered model, by name and version."""
        return [self._entries.read(key).model for key in sorted(self._entries.models)]

    async def model(self, name: str, version: str = "") -> model_pb2.Model:
        """Returns one model; an empty version means the latest."""
        return self._entries.read(self._entries.key(name, version)).model

    async def register(self, declaration: model_pb2.Model, *, latest: bool = False) -> None:
        """Registers a version of a model. Raises ModelExists."""
        self._raise(
            self._entries.declare(declaration, "register", latest=latest), declaration.name, declaration.version
        )

    async def update(self, declaration: model_pb2.Model, *, revision: int | None = None, latest: bool = False) -> None:
        """Replaces a declaration. Raises UnknownModel, FailedPrecondition."""
        verdict = self._entries.declare(declaration, "update", latest=latest, revision=revision)
        self._raise(verdict, declaration.name, declaration.version)

    async def unregister(self, name: str, version: str) -> None:
        """Removes a version. Raises UnknownModel, FailedPrecondition."""
        self._raise(self._entries.remove((name, version)), name, version)

    async def wish(self, name: str, version: str, wish: Wish) -> None:
        """Asks workers to load or unload a model. Raises UnknownModel."""
        entry = self._entries.models[self._entries.key(name, version)]
        self._entries.changes += 1
        entry.wish = f"{wish}:{self._entries.changes}"

    async def close(self) -> None:
        """Does nothing: the entries go with the process."""

    def _raise(self, verdict: str, name: str, version: str) -> None:
        if verdict == "unknown":
            self._entries.key(name, version)  # says which there are
        if verdict != "done":
            raise refusal(verdict, name, version)


class MemoryWorkerRegistry:
    """A `WorkerRegistry` over entries in this process."""

    def __init__(self, entries: _Entries) -> None:
        self._entries = entries

    def declare(self, declaration: model_pb2.Model, *, latest: bool = False) -> bool:
        """Registers a version from a model file; False where the API has registered another content."""
        return self._entries.declare(declaration, "file", latest=latest) == "done"

    def changes(self) -> int:
        """Returns a number that grows whenever a declaration or a wish changes."""
        return self._entries.changes

    def registrations(self) -> Sequence[Registration]:
        """Returns every registered model, by name and version."""
        return [self._entries.read(key) for key in sorted(self._entries.models)]

    def publish(self, model: model_pb2.Model) -> bool:
        """Says what this worker found of a model's revision; False where that is no longer the registered one."""
        return self._entries.publish(model)

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

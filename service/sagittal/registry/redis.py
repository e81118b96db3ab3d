"""The model registry on Redis: models are kept until removed, workers for as long as they announce themselves."""

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import structlog
from google.protobuf.message import DecodeError

from sagittal.core.errors import FailedPrecondition, ModelExists, SagittalError, Unavailable, UnknownModel
from sagittal.core.text import shown
from sagittal.queue.connection import (
    WORKER_ATTEMPTS,
    AsyncRunner,
    SyncRunner,
    close_async,
    close_sync,
    connect_async,
    connect_sync,
)
from sagittal.queue.metrics import UNOBSERVED, QueueObserver
from sagittal.queue.scripts import load_script, model_key, root_key
from sagittal.queue.settings import QueueSettings
from sagittal.registry.protocol import CanaryRecord, Outcomes, Registration, Wish
from sagittal.v1 import model_pb2

log = structlog.get_logger(__name__)

ORIGINS: Mapping[str, "model_pb2.ModelOrigin.ValueType"] = {
    "file": model_pb2.MODEL_ORIGIN_FILE,
    "api": model_pb2.MODEL_ORIGIN_API,
}


def announced_state(worker: str, state: model_pb2.WorkerModel) -> model_pb2.WorkerModel:
    """Returns a copy of the state with the worker's name in it."""
    named = model_pb2.WorkerModel()
    named.CopyFrom(state)
    named.worker = worker
    return named


def stored_model(model: model_pb2.Model) -> model_pb2.Model:
    """Returns a copy of the model without the fields that the registry manages."""
    stored = model_pb2.Model()
    stored.CopyFrom(model)
    for field in ("workers", "latest", "create_time", "revision", "origin", "canary"):
        stored.ClearField(field)
    return stored


def merged(declared: model_pb2.Model | None, found: model_pb2.Model | None) -> model_pb2.Model:
    """Returns declaration and findings as one model; a model without a declaration is as its worker published it.

    Preprocessing and labels are findings as well, because a preset or a file may stand for them in the declaration.
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
    """Returns a registration; `wish` is in its stored form, such as `load:12`."""
    asked, _, turn = wish.partition(":")
    return Registration(model=model, declaration=declared, wish=cast("Wish", asked), turn=int(turn or 0))


def unknown_model(name: str, version: str, existing: Sequence[str]) -> UnknownModel:
    """Returns the error for a model that does not exist; `existing` lists those that do, as NAME@VERSION."""
    asked = f"{shown(name)}, version {shown(version)}" if version else shown(name)
    known = ", ".join(sorted(existing)) or "none; start a worker, or register one with RegisterModel"
    return UnknownModel(f"no model {asked}; registered models: {known}", field="spec.model")


def refusal(verdict: str, name: str, version: str) -> SagittalError:
    """Returns the error for a change that the registry refused."""
    what = f"{shown(name)}, version {shown(version)},"
    if verdict == "exists":
        text = f"{what} is registered with different content; change it with UpdateModel, or register another version"
        return ModelExists(text, field="model.version")
    if verdict == "changed":
        text = f"{what} was changed by another caller; read it with GetModel and try again"
        return FailedPrecondition(text, field="model")
    if verdict == "latest":
        text = f"{what} is the latest version; make another one the latest with UpdateModel first"
        return FailedPrecondition(text, field="version")
    return unknown_model(name, version, ())


class RedisModelRegistry:
    """A `ModelRegistry` on Redis."""

    def __init__(self, settings: QueueSettings, observer: QueueObserver = UNOBSERVED) -> None:
        settings = settings.shards()[0]
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
        """Returns a random value that is stored with the registry's data."""
        key = f"{self._root}epoch"

        async def settle() -> str:
            await self._redis.client.set(key, secrets.token_hex(8), nx=True)
            return cast("bytes", await self._redis.client.get(key) or b"").decode()

        return await self._redis.run(settle, name="epoch")

    async def declare(self, declaration: model_pb2.Model, *, latest: bool = False) -> bool:
        """Registers a version from a model file; returns False if the API registered other content."""
        arguments = _declaration(declaration, "file", latest=latest, revision="")
        return bool((await self._redis.script(load_script("registry_declare"), *arguments))[0] == b"done")

    async def register(self, declaration: model_pb2.Model, *, latest: bool = False) -> None:
        """Registers a model version. Raises ModelExists."""
        await self._declare(declaration, "register", latest=latest, revision="")

    async def update(self, declaration: model_pb2.Model, *, revision: int | None = None, latest: bool = False) -> None:
        """Replaces a declaration. Raises UnknownModel, FailedPrecondition."""
        await self._declare(declaration, "update", latest=latest, revision="" if revision is None else str(revision))

    async def unregister(self, name: str, version: str) -> None:
        """Removes a version. Raises UnknownModel, FailedPrecondition."""
        verdict = (await self._redis.script(load_script("registry_remove"), name, version)).decode()
        if verdict == "unknown":
            await self.model(name, version)  # raises UnknownModel with the existing ones
        if verdict != "done":
            raise refusal(verdict, name, version)

    async def wish(self, name: str, version: str, wish: Wish) -> None:
        """Asks workers to load or unload a model. Raises UnknownModel."""
        if not await self._redis.script(load_script("registry_wish"), name, version, wish):
            await self.model(name, version)  # raises UnknownModel with the existing ones

    async def canaries(self) -> Mapping[str, CanaryRecord]:
        """Returns the canary of each model that has one, by name; unreadable ones are left out, and logged."""
        return _parse_canaries(await self._redis.script(load_script("registry_canaries")))

    async def set_canary(self, name: str, version: str, canary: model_pb2.Canary | None) -> None:
        """Starts or ends a canary. Raises UnknownModel, FailedPrecondition."""
        given = canary or model_pb2.Canary()
        settings = (given.share, given.max_failed, given.min_faithfulness, given.min_jobs, str(time.time_ns()))
        verdict = (await self._redis.script(load_script("registry_canary"), name, version, *settings)).decode()
        if verdict == "unknown":
            await self.model(name, version)  # raises UnknownModel with the existing ones
        if verdict == "latest":
            text = f"{shown(name)}, version {shown(version)}, is the latest version, which needs no canary"
            raise FailedPrecondition(f"{text}; name another version", field="version")

    async def close(self) -> None:
        """Closes all connections."""
        await close_async(self._redis.client)

    async def _read(self, *arguments: str) -> Sequence[Registration]:
        """Returns registrations; damaged ones are moved aside and the rest is read again."""
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
            await self.model(declaration.name, declaration.version)  # raises UnknownModel with the existing ones
        if verdict != "done":
            raise refusal(verdict, declaration.name, declaration.version)


class RedisWorkerRegistry:
    """A `WorkerRegistry` on Redis."""

    def __init__(self, settings: QueueSettings, observer: QueueObserver = UNOBSERVED) -> None:
        self._servers = [
            SyncRunner(connect_sync(each), each, root_key(each), observer, attempts=1 if number else WORKER_ATTEMPTS)
            for number, each in enumerate(settings.shards())
        ]
        self._redis = self._servers[0]

    def declare(self, declaration: model_pb2.Model, *, latest: bool = False) -> bool:
        """Registers a version from a model file; returns False if the API registered other content."""
        arguments = _declaration(declaration, "file", latest=latest, revision="")
        return bool(self._redis.script(load_script("registry_declare"), *arguments)[0] == b"done")

    def changes(self) -> int:
        """Returns a number that increases with each change of a declaration or a wish."""
        return int(self._redis.script(load_script("registry_changes")))

    def registrations(self) -> Sequence[Registration]:
        """Returns every registered model, by name and version."""
        found, damaged = _parse_all(self._redis.script(load_script("registry_read"), "all", "", ""))
        for each in damaged:
            self._redis.script(load_script("registry_quarantine"), *each)
        return sorted(found, key=_name_and_version)

    def publish(self, model: model_pb2.Model) -> bool:
        """Publishes this worker's findings about a model's revision; returns False if it is not the registered one."""
        arguments = (
            model.name,
            model.version,
            stored_model(model).SerializeToString(),
            str(time.time_ns()),
            str(model.revision),
        )
        return bool(self._redis.script(load_script("registry_publish"), *arguments))

    def announce(self, worker: str, models: Sequence[tuple[str, str, model_pb2.WorkerModel]], *, ttl: float) -> None:
        """Announces the state of models on this worker for `ttl` seconds."""
        states = [
            value
            for name, version, state in models
            for value in (
                model_key(name, version),
                announced_state(worker, state).SerializeToString(),
                "" if state.state == model_pb2.MODEL_STATE_FAILED else "1",
            )
        ]
        self._tell_all("registry_announce", worker, ttl, *states)

    def report(self, worker: str, moment: int, outcomes: Outcomes) -> str:
        """Counts ended jobs for a canary; returns why this report rolled it back, otherwise an empty text."""
        counts = (outcomes.completed, outcomes.failed, outcomes.scored, outcomes.insertion)
        arguments = (worker, str(moment), outcomes.name, outcomes.version, *counts)
        return cast("bytes", self._redis.script(load_script("registry_outcomes"), *arguments)).decode()

    def withdraw(self, worker: str) -> None:
        """Removes this worker."""
        self._tell_all("registry_withdraw", worker)

    def close(self) -> None:
        """Closes all connections."""
        for server in self._servers:
            close_sync(server.client)

    def _tell_all(self, script: str, *arguments: bytes | str | float) -> None:
        """Runs a script on the first server, and on the others that answer: each has limits for models not served."""
        self._redis.script(load_script(script), *arguments)
        for server in self._servers[1:]:
            with suppress(Unavailable):
                server.script(load_script(script), *arguments)


def _parse_canaries(stored: Sequence[bytes]) -> Mapping[str, CanaryRecord]:
    found = {}
    for name, text in zip(stored[::2], stored[1::2], strict=True):
        try:
            found[name.decode()] = _canary(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            log.error("canary-unreadable", model=name.decode(errors="replace"), error=str(error), doing="ignoring it")
    return found


def _canary(stored: Mapping[str, Any]) -> CanaryRecord:
    canary = model_pb2.Canary(
        share=stored["share"],
        max_failed=stored["max_failed"],
        min_faithfulness=stored["min_faithfulness"],
        min_jobs=int(stored["min_jobs"]),
        rolled_back=stored["reason"],
    )
    canary.start_time.FromNanoseconds(int(stored["time"]))
    for role, shown_as in (("canary", canary.outcomes), ("latest", canary.latest_outcomes)):
        if counts := stored.get(role):
            mean = counts["insertion"] / counts["scored"] if counts["scored"] else 0.0
            shown_as.MergeFrom(
                model_pb2.CanaryOutcomes(
                    completed=int(counts["completed"]), failed=int(counts["failed"]), insertion_auc=mean
                )
            )
    return CanaryRecord(version=stored["version"], canary=canary)


def _declaration(
    declaration: model_pb2.Model, how: str, *, latest: bool, revision: str
) -> tuple[str, str, bytes, str, str, str, str]:
    serialized = stored_model(declaration).SerializeToString(deterministic=True)
    moment = str(time.time_ns())
    return declaration.name, declaration.version, serialized, moment, how, "1" if latest else "", revision


def _name_and_version(each: Registration) -> tuple[str, str]:
    return each.model.name, each.model.version


#: A damaged record of a model: hash, field and fault, as the script `registry_quarantine` takes them.
Damage = tuple[str, bytes, str]


def _parse_all(entries: Sequence[Sequence[bytes] | bytes]) -> tuple[list[Registration], list[Damage]]:
    """Returns the readable registrations and the damaged records; skips entries that are only names."""
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
    """Returns the damaged record of a model; None if all can be parsed."""
    key, found, _, _, declared, _, _, _, *workers = entry
    parts = [("declared", declared), ("models", found), *(("worker", each) for each in workers)]
    for name, serialized in parts:
        kind = model_pb2.WorkerModel if name == "worker" else model_pb2.Model
        try:
            kind.FromString(serialized)
        except DecodeError:
            return name, key, f"is not a serialized {kind.DESCRIPTOR.name}"
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

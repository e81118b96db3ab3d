"""The model to explain: registers the predictor at Sagittal, and asks workers to load it until one has."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from sagittal.client import AsyncClient, Model, ModelExists, NotFound, SagittalError
from sagittal.client.requests import split_model
from sagittal.core.models import IMAGENET, InvalidModelFile, read_document, read_labels
from sagittal.kserve.settings import KServeSettings

#: Interval of checks whether the model is ready, in seconds.
LOOK_SECONDS = 0.5

#: Time between two requests that workers load the model again, in seconds.
AGAIN_SECONDS = 3.0

#: Version of a registered predictor, if the model file has none.
VERSION = "1"

#: Images of a call to the predictor, if the model file has no other number: predictions wait for no more of them.
IMAGES = 1

#: Settings of `source` that a model file may have; the others name the predictor.
TENSOR_SETTINGS = frozenset({"version", "input", "output", "datatype", "layout", "scale", "max_batch"})

_log = structlog.get_logger(__name__)


def model_table(settings: KServeSettings) -> Mapping[str, Any] | None:
    """Returns the `[[models]]` table of the predictor; None if Sagittal has the model already.

    Raises:
        InvalidModelFile: the model file cannot be read, or does not have one table without a predictor.
    """
    if settings.sagittal_model:
        return None
    table = dict(_read(settings.model_file)) if settings.model_file else {}
    if settings.model_file and isinstance(labels := table.get("labels"), str) and labels != IMAGENET:
        table["labels"] = _labels(settings.model_file, labels)
    source: dict[str, Any] = dict(table.get("source", {}))
    if wrong := sorted(source.keys() - TENSOR_SETTINGS - {"kind"}):
        known = ", ".join(sorted(TENSOR_SETTINGS))
        raise InvalidModelFile(f"{settings.model_file}: source.{wrong[0]} is set by the explainer; give only {known}")
    source.setdefault("max_batch", IMAGES)
    source |= {
        "kind": "remote",
        "server": settings.sagittal_server,
        "host": settings.predictor_address,
        "model": settings.model_name,
    }
    return {"version": VERSION, **table, "name": registered_name(settings), "source": source}


def registered_name(settings: KServeSettings) -> str:
    """Returns the name of the registered predictor: in a fleet, other namespaces may have the same."""
    if settings.sagittal_address and settings.namespace:
        return f"{settings.model_name}.{settings.namespace}"
    return settings.model_name


def _read(path: Path) -> Mapping[str, Any]:
    tables = read_document(path).get("models", [{}])
    if not isinstance(tables, list) or len(tables) != 1 or not isinstance(tables[0], dict):
        raise InvalidModelFile(f"{path}: give one [[models]] table, that of the predictor")
    return tables[0]


def _labels(beside: Path, name: str) -> list[str]:
    try:
        return read_labels(str(beside.parent / name))
    except (OSError, ValueError) as error:
        raise InvalidModelFile(f"{beside}: labels: {name} cannot be read: {error}") from error


def is_ready(model: Model) -> bool:
    """Returns whether a worker has the model ready, or one had it, so that jobs may wait until a worker loads it."""
    if model.ready_workers:
        return True
    return bool(model.digest) and not (model.workers and len(model.failures) == len(model.workers))


class Loading:
    """Registers a model, and knows whether workers can run its jobs."""

    def __init__(self, client: AsyncClient, table: Mapping[str, Any] | None, model: str = "") -> None:
        """Stores the arguments; `keep` does the work.

        Args:
            client: Connection to Sagittal.
            table: The model to register; None for one that is registered.
            model: Name of that model, "name" or "name@version".
        """
        self._client = client
        self._table = table
        self.model = model if table is None else f"{table['name']}@{table['version']}"
        self.reason = "the model is not loaded yet"
        """Why the model is not ready."""
        self._ready = asyncio.Event()
        self._registered = table is None
        self._asked = float("-inf")

    @property
    def ready(self) -> bool:
        """Whether a worker has the model ready."""
        return self._ready.is_set()

    async def wait_until_ready(self) -> None:
        """Returns when a worker has the model ready."""
        await self._ready.wait()

    async def keep(self) -> None:
        """Registers the model and keeps it loaded, until the task is cancelled."""
        while True:
            try:
                await self.look()
            except SagittalError as error:
                self._note(str(error))
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Checks the model once; registers it, or asks workers to load it, if that is needed. Raises SagittalError."""
        if not self._registered:
            await self._register()
        name, version = split_model(self.model, "")
        try:
            model = await self._client.model(name, version=version)
        except NotFound:
            self._registered = self._table is None  # the registry lost it
            raise
        if is_ready(model):
            self._note("")
            return
        self._note(model.failures[0] if model.failures else "no worker has loaded the model yet")
        now = asyncio.get_running_loop().time()
        if model.failures and now - self._asked >= AGAIN_SECONDS:
            self._asked = now
            await self._client.load_model(name, version=model.version)

    async def reload(self) -> None:
        """Asks workers to load the model again for the next job, because the predictor may have a new version."""
        now = asyncio.get_running_loop().time()
        if now - self._asked < AGAIN_SECONDS:
            return
        self._asked = now
        _log.warning("model-reloading", model=self.model)
        name, version = split_model(self.model, "")
        await self._client.unload_model(name, version=version)

    async def _register(self) -> None:
        assert self._table is not None  # noqa: S101 - only a table is registered
        try:
            await self._client.register_model(self._table)
        except ModelExists:
            await self._client.update_model(self._table)
        self._registered = True

    def _note(self, reason: str) -> None:
        """Stores why the model is not ready; empty if it is. Logs changes."""
        if reason == self.reason and not self.ready:
            return
        if not reason and not self.ready:
            _log.info("model-ready", model=self.model)
            self._ready.set()
        elif reason:
            _log.warning("model-not-ready", model=self.model, reason=reason)
            self._ready.clear()
        self.reason = reason

"""The models of a worker: loaded in the background, published when ready, announced for as long as the worker lives."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from sagittal.core.errors import Unavailable
from sagittal.engine import Engine
from sagittal.models.entry import ModelEntry, read_entries
from sagittal.models.loading import LoadedModel, load
from sagittal.models.sources import ModelUnavailable
from sagittal.runtime.registry import WorkerRegistry
from sagittal.v1 import model_pb2
from sagittal.worker.catalogue import describe_model
from sagittal.worker.metrics import WorkerMetrics

log = structlog.get_logger(__name__)

#: Announcements after which a silent worker is forgotten.
FORGOTTEN_AFTER = 5

#: Pause before publishing again when the queue is away, in seconds.
PUBLISH_PAUSE = 1.0


@dataclass(slots=True, kw_only=True, eq=False)
class Hosted:
    """A model that this worker serves or tries to."""

    entry: ModelEntry
    state: int = model_pb2.MODEL_STATE_UNLOADED
    message: str = ""
    """Why it could not be loaded; else empty."""
    loaded: LoadedModel | None = None
    described: model_pb2.Model | None = None
    engine: Engine | None = None


class HostedModels:
    """The models of this worker by (name, version)."""

    def __init__(
        self, path: Path, registry: WorkerRegistry, metrics: WorkerMetrics, *, worker: str, device: torch.device
    ) -> None:
        """Reads the model file. Raises InvalidModelFile."""
        self._hosted = {entry.key: Hosted(entry=entry) for entry in read_entries(path)}
        self._registry = registry
        self._metrics = metrics
        self._worker = worker
        self._device = device

    def ready(self) -> Sequence[Hosted]:
        """Returns the models that can run jobs."""
        return [hosted for hosted in self._hosted.values() if hosted.state == model_pb2.MODEL_STATE_READY]

    def get(self, key: tuple[str, str]) -> Hosted:
        """Returns a model by name and version."""
        return self._hosted[key]

    @property
    def all_failed(self) -> bool:
        """Whether no model can be served, now or later."""
        return all(hosted.state == model_pb2.MODEL_STATE_FAILED for hosted in self._hosted.values())

    def load_all(self, *, batch_size: int, stopped: threading.Event) -> None:
        """Loads every model, one after the other, and publishes each as soon as it is ready."""
        for hosted in self._hosted.values():
            if stopped.is_set():
                return
            self._load(hosted, batch_size)
            if hosted.described is not None:
                self._publish(hosted.described, stopped)
                hosted.state = model_pb2.MODEL_STATE_READY
                self.announce(ttl=None)

    def announce(self, *, ttl: float | None) -> None:
        """Tells the registry how this worker stands to its models. Raises Unavailable only with a `ttl`."""
        states = [(*hosted.entry.key, self._announcement(hosted)) for hosted in self._hosted.values()]
        try:
            self._registry.announce(self._worker, states, ttl=ttl or 10.0)
        except Unavailable:
            if ttl is not None:
                raise

    def withdraw(self) -> None:
        """Tells the registry that this worker takes no more jobs; where it cannot, silence will."""
        try:
            self._registry.withdraw(self._worker)
        except Unavailable as away:
            log.warning("queue-away", doing="withdraw", error=away.message)

    def _announcement(self, hosted: Hosted) -> model_pb2.WorkerModel:
        state = model_pb2.WorkerModel(worker=self._worker, message=hosted.message, device=str(self._device))
        state.state = hosted.state  # type: ignore[assignment]
        return state

    def _load(self, hosted: Hosted, batch_size: int) -> None:
        entry = hosted.entry
        hosted.state = model_pb2.MODEL_STATE_LOADING
        self.announce(ttl=None)
        log.info("model-loading", model=entry.name, version=entry.version, device=str(self._device))
        try:
            loaded = load(entry, self._device, batch_size=batch_size)
        except ModelUnavailable as unavailable:
            self._failed(hosted, str(unavailable))
            return
        except Exception as error:
            log.error("model-crashed", model=entry.name, version=entry.version, exc_info=error)
            self._failed(hosted, f"{type(error).__name__}: {error}")
            return
        hosted.loaded, hosted.described = loaded, describe_model(loaded)
        hosted.engine = Engine(loaded.evaluator, batch_size=loaded.found.batch_size)
        self._report(loaded)

    def _failed(self, hosted: Hosted, message: str) -> None:
        hosted.state, hosted.message = model_pb2.MODEL_STATE_FAILED, message
        log.error("model-failed", model=hosted.entry.name, version=hosted.entry.version, error=message)
        self._metrics.loaded.labels(*hosted.entry.key).set(0)
        self.announce(ttl=None)

    def _report(self, loaded: LoadedModel) -> None:
        for step in loaded.found.steps:
            log.info(
                "model-optimised" if step.applied else "optimisation_skipped",
                model=loaded.entry.name,
                step=step.name,
                detail=step.detail,
                largest_difference=step.largest_difference,
            )
        log.info(
            "model-ready",
            model=loaded.entry.name,
            version=loaded.entry.version,
            digest=loaded.digest,
            seconds=round(loaded.load_seconds, 2),
            batch_size=loaded.found.batch_size,
        )
        self._metrics.loaded.labels(*loaded.entry.key).set(1)
        self._metrics.load_seconds.labels(*loaded.entry.key).set(loaded.load_seconds)

    def _publish(self, described: model_pb2.Model, stopped: threading.Event) -> None:
        """Publishes until the registry has it."""
        while True:
            try:
                self._registry.publish(described)
            except Unavailable as away:
                log.warning("queue-away", error=away.message, doing="publishing a model")
                if stopped.wait(PUBLISH_PAUSE):
                    return
            else:
                return

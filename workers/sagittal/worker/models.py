"""The models of a worker: loaded in the background, published when ready, announced for as long as the worker lives.

Where memory is bounded, the model that was used least recently makes room, never one with running jobs. It stays
published, and is loaded again when a job for it waits.
"""

import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from sagittal.core.errors import Unavailable
from sagittal.engine import Engine
from sagittal.models.entry import ModelEntry, read_entries
from sagittal.models.loading import LoadedModel, load
from sagittal.models.sources import EVERYTHING, Access, ModelUnavailable
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
    memory_bytes: int = 0
    """Of its weights, as found when it was last loaded; 0 before."""
    batch_size: int = 0
    """Found when it was first loaded, halved where memory ran out; 0 before."""
    used: float = 0.0
    """Time of `time.monotonic()` when it last got a job."""
    pins: int = 0
    """Jobs that are being handed to its engine."""

    @property
    def idle(self) -> bool:
        """Whether it is loaded and has no job."""
        return self.engine is not None and not self.pins and not self.engine.running

    @property
    def on_demand(self) -> bool:
        """Whether it was unloaded to make room and can be loaded again."""
        return self.described is not None and self.state == model_pb2.MODEL_STATE_UNLOADED


class HostedModels:
    """The models of this worker by (name, version)."""

    def __init__(
        self,
        path: Path,
        registry: WorkerRegistry,
        metrics: WorkerMetrics,
        *,
        worker: str,
        device: torch.device,
        memory_mib: int = 0,
        access: Access = EVERYTHING,
    ) -> None:
        """Reads the model file. Raises InvalidModelFile.

        Args:
            path: The model file.
            registry: Where models are published and announced.
            metrics: Where loading is counted.
            worker: Name of this worker.
            device: Where models run.
            memory_mib: Most memory of all loaded models' weights; 0 for no bound.
            access: What models may be loaded from.
        """
        self._hosted = {entry.key: Hosted(entry=entry) for entry in read_entries(path)}
        self._registry = registry
        self._metrics = metrics
        self._worker = worker
        self._device = device
        self._bound = memory_mib * 2**20
        self._access = access
        self._lock = threading.RLock()

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

    def offered(self) -> Sequence[tuple[str, str]]:
        """Returns the models whose jobs may be leased: those that are ready, and those that there is room to load."""
        with self._lock:
            return [
                hosted.entry.key
                for hosted in self._hosted.values()
                if hosted.state == model_pb2.MODEL_STATE_READY or (hosted.on_demand and self._has_room(hosted))
            ]

    @contextmanager
    def pinned(self, hosted: Hosted) -> Iterator[bool]:
        """Keeps a model loaded while a job is handed to it; False where it is not loaded."""
        with self._lock:
            ready = hosted.state == model_pb2.MODEL_STATE_READY
            hosted.pins += ready
            hosted.used = time.monotonic()
        try:
            yield ready
        finally:
            with self._lock:
                hosted.pins -= ready

    def load_all(self, *, batch_size: int, stopped: threading.Event) -> None:
        """Loads every model, one after the other, and publishes each as soon as it is ready."""
        for hosted in self._hosted.values():
            if stopped.is_set():
                return
            self.load(hosted, batch_size=batch_size, stopped=stopped)

    def load(self, hosted: Hosted, *, batch_size: int, stopped: threading.Event) -> None:
        """Loads a model, others making room where memory is bounded; the first time, it is published too."""
        self._make_room(lambda: self._has_space(hosted.memory_bytes), spared=hosted)
        before = hosted.described
        self._load(hosted, hosted.batch_size or batch_size)
        if hosted.loaded is None or hosted.described is None:
            return
        if before is None or before.digest != hosted.described.digest:
            self._publish(hosted.described, stopped)
        with self._lock:
            hosted.state, hosted.used = model_pb2.MODEL_STATE_READY, time.monotonic()
            self._make_room(self._within_bound, spared=hosted)
            if not self._within_bound() and len(self.ready()) > 1:
                self._unload(hosted)
        self.announce(ttl=None)

    def _make_room(self, enough: Callable[[], bool], *, spared: Hosted) -> None:
        """Unloads idle models, the least recently used first, until there is room enough or none is left."""
        with self._lock:
            idle = [hosted for hosted in self.ready() if hosted.idle and hosted is not spared]
            for hosted in sorted(idle, key=lambda one: one.used):
                if enough():
                    return
                self._unload(hosted)

    def _unload(self, hosted: Hosted) -> None:
        if hosted.engine is not None:
            hosted.batch_size = hosted.engine.batch_size
        hosted.state, hosted.loaded, hosted.engine = model_pb2.MODEL_STATE_UNLOADED, None, None
        gc.collect()  # traced modules refer to themselves
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        log.info("model-unloaded", model=hosted.entry.name, version=hosted.entry.version, bytes=hosted.memory_bytes)
        self._metrics.loaded.labels(*hosted.entry.key).set(0)
        self._metrics.model_memory.labels(*hosted.entry.key).set(0)
        self.announce(ttl=None)

    def _has_room(self, wanted: Hosted) -> bool:
        """Whether a model fits, or fits once the idle ones are gone, or would be the only one."""
        busy = [hosted for hosted in self.ready() if not hosted.idle]
        taken = sum(hosted.memory_bytes for hosted in busy)
        return not busy or not self._bound or taken + wanted.memory_bytes <= self._bound

    def _has_space(self, wanted: int) -> bool:
        return not self._bound or sum(hosted.memory_bytes for hosted in self.ready()) + wanted <= self._bound

    def _within_bound(self) -> bool:
        return self._has_space(0)

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
            loaded = load(entry, self._device, batch_size=batch_size, access=self._access)
        except ModelUnavailable as unavailable:
            self._failed(hosted, str(unavailable))
            return
        except Exception as error:
            log.error("model-crashed", model=entry.name, version=entry.version, exc_info=error)
            self._failed(hosted, f"{type(error).__name__}: {error}")
            return
        hosted.loaded, hosted.described = loaded, describe_model(loaded)
        hosted.engine = Engine(loaded.evaluator, batch_size=loaded.found.batch_size, unit=loaded.evaluator.unit)
        hosted.memory_bytes = loaded.memory_bytes
        self._report(loaded)

    def _failed(self, hosted: Hosted, message: str) -> None:
        hosted.state, hosted.message = model_pb2.MODEL_STATE_FAILED, message
        self._metrics.loads.labels(*hosted.entry.key, "failed").inc()
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
        self._metrics.loads.labels(*loaded.entry.key, "ready").inc()
        self._metrics.model_memory.labels(*loaded.entry.key).set(loaded.memory_bytes)

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

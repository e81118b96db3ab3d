"""Reconciles the models of this worker with the registry, one action at a time.

Each turn reads the registry and performs `HostedModel.next_action` for each model: models are rehearsed, loaded in the
background, published when they are ready, unloaded and released. If memory is limited, the least recently used model is
unloaded to make room, but never one with running jobs. It stays published, and is loaded again when a job for it waits.
A model whose registration changes drains: it takes no more jobs, and is released when the last one has ended.
"""

import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
import torch

from sagittal.core.errors import Unavailable
from sagittal.core.models import read_entries
from sagittal.models.sources import EVERYTHING, Access
from sagittal.registry.protocol import WorkerRegistry
from sagittal.worker.hosting.loading import Loader
from sagittal.worker.hosting.model import (
    AWAITED,
    DRAINING,
    FAILED,
    LOADING,
    QUARANTINED,
    READY,
    REHEARSING,
    WAITING,
    Action,
    Context,
    Desired,
    Goal,
    HostedModel,
    ModelState,
    footprint,
)
from sagittal.worker.hosting.registry import AWAY_PAUSE, Selection, ServedModels
from sagittal.worker.hosting.rehearsals import Verdict
from sagittal.worker.metrics import DIED, WorkerMetrics
from sagittal.worker.vitals import Watched

log = structlog.get_logger(__name__)

#: Number of missed announcements after which a worker is removed.
FORGOTTEN_AFTER = 5

#: Interval of checks of the models, in seconds.
LOOK = 1.0

#: Longest time between two reads of the registry, in seconds; notifications of changes cause others.
READ = 15.0

#: Interval of checks while models are rehearsed, in seconds.
REHEARSAL_LOOK = 0.1

#: Time after which a rehearsal no longer delays that of another model, in seconds.
LONG_REHEARSAL = 10.0

#: Pause after a rehearsal that died, in seconds; it doubles with each death.
REST = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadLimits:
    """Limits of loading a model."""

    seconds: float = 600.0
    """Maximum time, in seconds."""
    attempts: int = 3
    """Maximum number of process deaths before the version is quarantined."""


class Reconciler:
    """The models of this worker by (name, version)."""

    def __init__(
        self,
        path: Path | None,
        registry: WorkerRegistry,
        metrics: WorkerMetrics,
        *,
        worker: str,
        device: torch.device,
        memory_mib: int = 0,
        memo_mib: int = 0,
        access: Access = EVERYTHING,
        selection: Selection | None = None,
        limits: LoadLimits = LoadLimits(),
        watched: Watched | None = None,
    ) -> None:
        """Reads the model file. Raises InvalidModelFile.

        Args:
            path: The model file; None for none.
            registry: Registry of models, descriptions and announcements.
            metrics: Metrics of loading.
            worker: Name of this worker.
            device: Device of the models.
            memory_mib: Maximum memory of all loaded models' weights and the largest batch; 0 for no limit.
            memo_mib: Memory for the scores that jobs on the same image share, for each model; 0 for none.
            access: Sources that models may be loaded from.
            selection: Registered models to serve.
            limits: Limits of loading a model.
            watched: State shared with the watching parent; None if there is no parent.
        """
        entries = read_entries(path) if path is not None else []
        self._registry = ServedModels(entries, registry, selection or Selection(), worker=worker, device=device)
        self._loader = Loader(metrics, device, access, memo_mib * 2**20)
        self._metrics = metrics
        self._device = device
        self._bound = memory_mib * 2**20
        self._limits = limits
        watched = watched or Watched()
        self._vitals, self._rehearsals = watched.vitals, watched.rehearsals
        self.undisturbed = threading.Event()
        """Set while a job must run alone: no model is loaded meanwhile."""
        self._hosted: dict[tuple[str, str], HostedModel] = {}
        self._draining: list[HostedModel] = []
        self._loading: HostedModel | None = None
        self._rehearsed: dict[str, HostedModel] = {}
        self._lock = threading.RLock()
        self._woken = threading.Event()
        self._next_read = 0.0

    # Queries of the threads that lease and run jobs.

    def ready(self) -> Sequence[HostedModel]:
        """Returns the models that can run jobs."""
        return self._in_state(READY)

    def running(self) -> Sequence[HostedModel]:
        """Returns the models that may have jobs: ready and draining ones."""
        with self._lock:
            return [*self.ready(), *self._draining]

    def get(self, key: tuple[str, str]) -> HostedModel | None:
        """Returns a model by name and version; None if it is no longer served."""
        return self._hosted.get(key)

    @property
    def loading(self) -> bool:
        """Whether this process loads a model now."""
        return bool(self._vitals.load.doing)

    def offered(self) -> Sequence[tuple[str, str]]:
        """Returns the models whose jobs may be leased.

        They are ready, or there is room to load them, or no worker can load them, so that their jobs must fail.
        """
        with self._lock:
            return [hosted.key for hosted in self._hosted.values() if self._takes_jobs(hosted)]

    def _takes_jobs(self, hosted: HostedModel) -> bool:
        return hosted.hopeless or hosted.state is READY or (hosted.on_demand and self._has_room(hosted))

    @contextmanager
    def pinned(self, hosted: HostedModel) -> Iterator[bool]:
        """Keeps a model loaded while a job is submitted to it; yields False if it is not loaded."""
        with self._lock:
            ready = hosted.state is READY
            hosted.pins += ready
            hosted.used, hosted.demand = time.monotonic(), None
        try:
            yield ready
        finally:
            with self._lock:
                hosted.pins -= ready

    def want(self, hosted: HostedModel, *, within: Context = nullcontext) -> None:
        """Requests that the reconciling thread loads a model for a job, within a context."""
        with self._lock:
            hosted.want(within)
        self._woken.set()

    def wake(self) -> None:
        """Wakes the reconciling thread."""
        self._woken.set()

    def announce(self, *, ttl: float | None) -> None:
        """Announces the states of this worker's models. Raises Unavailable only with a `ttl`, in seconds."""
        with self._lock:
            states = [self._registry.state(hosted, loading=self._loading) for hosted in self._hosted.values()]
        self._registry.announce(states, ttl=ttl)

    def withdraw(self) -> None:
        """Announces that this worker takes no more jobs; if that fails, its announcement expires."""
        self._registry.withdraw()

    # The loop of the reconciling thread.

    def follow(self, *, batch_size: int, stopped: threading.Event) -> None:
        """Takes turns until stopped; waits in between if nothing is to be loaded."""
        complained, woken = False, True
        while not stopped.is_set():
            if not self.turn(batch_size=batch_size, stopped=stopped, read=woken):
                if self._all_failed and not complained:
                    log.error(
                        "no-model-to-serve", remedy="see the errors above; the worker stays to say so in GetModel"
                    )
                complained = self._all_failed
                woken = self._woken.wait(REHEARSAL_LOOK if self._in_state(REHEARSING) else LOOK)
                self._woken.clear()

    def load_all(self, *, batch_size: int, stopped: threading.Event) -> None:
        """Takes turns until nothing is left to load."""
        while self.turn(batch_size=batch_size, stopped=stopped):
            if stopped.is_set():
                return

    def turn(self, *, batch_size: int, stopped: threading.Event, read: bool = True) -> bool:
        """Reads the registry, performs the next action of each model, and loads at most one; returns whether it did.

        Args:
            batch_size: Batch size of the engines.
            stopped: Ends waits.
            read: Whether the registry may have changed; otherwise it is read at intervals only.
        """
        try:
            if read or time.monotonic() >= self._next_read:
                self._look()
        except Unavailable as away:
            log.warning("queue-away", doing="reading the registry", error=away.message)
            stopped.wait(AWAY_PAUSE)
            return False
        for verdict in self._rehearsals.verdicts():
            self._judge(verdict)
        with self._lock:
            models = [*self._hosted.values(), *self._draining]
        to_load = [one for one in models if self._act(one, batch_size, stopped) is Action.LOAD]
        if not to_load or self.undisturbed.is_set():
            return False
        self.load(to_load[0], batch_size=batch_size, stopped=stopped)
        return True

    def _act(self, hosted: HostedModel, batch_size: int, stopped: threading.Event) -> Action:
        """Performs the next action of a model, except loading, and returns it."""
        with self._lock:  # no job may arrive between the check that a model is idle and its unloading
            action = hosted.next_action(
                deaths=self._rehearsals.deaths(hosted.registration),
                attempts=self._limits.attempts,
                rehearse=self._rehearsals.needed(hosted.registration, known=hosted.described is not None),
            )
            if action is Action.RELEASE:
                self._release(hosted)
            elif action is Action.UNLOAD:
                self._unload(hosted)
        if action is Action.PUBLISH:
            self._registry.publish(hosted, stopped)
        elif self.undisturbed.is_set():
            return action
        elif action is Action.QUARANTINE:
            self._quarantine(hosted, "loading it killed the worker's process, or hung there")
        elif action is Action.REHEARSE:
            self._rehearse(hosted, batch_size)
        return action

    def _look(self) -> None:
        """Applies changes of the registry. While a model cannot be served, it reads the states of other workers too."""
        self._next_read = 0.0  # again immediately if this fails
        urgent = any(one.message for one in list(self._hosted.values()))
        desired = self._registry.desired(urgent=urgent)
        self._next_read = time.monotonic() + (0.0 if urgent else READ)
        if desired is None:
            return
        with self._lock:
            before = self._hosted
            self._hosted = {each.entry.key: self._follow(before.get(each.entry.key), each) for each in desired}
            gone = [hosted for key, hosted in before.items() if self._hosted.get(key) is not hosted]
        for hosted in gone:
            self._retire(hosted)
        if before.keys() != self._hosted.keys() or gone:
            self.announce(ttl=None)

    def _follow(self, hosted: HostedModel | None, desired: Desired) -> HostedModel:
        """Returns the model of a registration: the same one if the declaration is unchanged, otherwise a new one."""
        if hosted is None or hosted.desired.declaration != desired.declaration:
            return HostedModel.of(desired)
        hosted.follow(desired)
        return hosted

    @property
    def _all_failed(self) -> bool:
        """Returns whether there are models, and none can be served, now or later."""
        with self._lock:
            failed = [hosted.failed for hosted in self._hosted.values()]
        return bool(failed) and all(failed)

    def _in_state(self, state: ModelState) -> Sequence[HostedModel]:
        with self._lock:
            return [hosted for hosted in self._hosted.values() if hosted.state is state]

    # The actions.

    def load(self, hosted: HostedModel, *, batch_size: int, stopped: threading.Event) -> None:
        """Loads a model, and unloads others if memory is limited; the first time, it also publishes the description."""
        self._make_room(lambda: self._fit([*self.running(), hosted]), spared=hosted)
        within = hosted.demand.within if hosted.demand is not None else nullcontext
        with within(), self._vitals.load.during(hosted.registration, seconds=self._limits.seconds):
            self._load(hosted, hosted.batch_size or hosted.entry.device.batch_size or batch_size)
        self._rehearsals.forget(hosted.registration)
        if hosted.loaded is None:
            return
        if not hosted.published:
            self._registry.publish(hosted, stopped)
        with self._lock:
            if self._hosted.get(hosted.key) is not hosted:
                hosted.release()  # its registration changed while it was loaded
                self._show(hosted)
                return
            self._become(hosted, READY)
            self._make_room(lambda: self._fit(self.running()), spared=hosted)
            fits = self._fit(self.running()) or len(self.ready()) == 1
            if not fits or hosted.goal is not Goal.LOADED:
                self._unload(hosted)
        self.announce(ttl=None)

    def _load(self, hosted: HostedModel, batch_size: int) -> None:
        self._become(hosted, LOADING)
        self._loading = hosted
        self.announce(ttl=None)
        message = self._loader.load(hosted, batch_size=batch_size)
        self._loading = None
        if message:
            self._become(hosted, FAILED, message)
            self.announce(ttl=None)

    def _rehearse(self, hosted: HostedModel, batch_size: int) -> None:
        """Starts a rehearsal of a model, unless another one is running and has not run for long."""
        if any(time.monotonic() - one.since <= LONG_REHEARSAL for one in self._in_state(REHEARSING)):
            return
        self._become(hosted, REHEARSING)
        size = hosted.batch_size or hosted.entry.device.batch_size or batch_size
        self._rehearsed[hosted.registration] = hosted
        self._rehearsals.begin(hosted.registration, hosted.entry, from_file=hosted.desired.from_file, batch_size=size)
        self.announce(ttl=None)

    def _judge(self, verdict: Verdict) -> None:
        """Applies the verdict on a rehearsal: the model may be loaded, is tried again, or is quarantined."""
        hosted = self._rehearsed.pop(verdict.registration, None)
        if hosted is None or hosted.state is not REHEARSING:
            return  # its registration changed meanwhile
        if not verdict.cause:
            self._become(hosted, WAITING)
            return
        self._metrics.loads.labels(*hosted.key, DIED).inc()
        if verdict.deaths >= self._limits.attempts:
            self._quarantine(hosted, verdict.cause)
            return
        hosted.retry_at = time.monotonic() + REST * 2 ** (verdict.deaths - 1)
        self._become(
            hosted,
            WAITING,
            f"loading it in a separate process failed {verdict.deaths} of {self._limits.attempts} times: "
            f"{verdict.cause}; it will be tried again",
        )
        self.announce(ttl=None)

    def _quarantine(self, hosted: HostedModel, cause: str) -> None:
        attempts = self._limits.attempts
        self._metrics.loads.labels(*hosted.key, QUARANTINED.value).inc()
        log.error("model-quarantined", model=hosted.key[0], version=hosted.key[1], attempts=attempts, cause=cause)
        self._become(
            hosted,
            QUARANTINED,
            f"quarantined: loading it failed {attempts} times, the last time because {cause}; correct it with "
            "UpdateModel, or try again with LoadModel",
        )
        self.announce(ttl=None)

    def _retire(self, hosted: HostedModel) -> None:
        """Takes a model out of service; its running jobs continue."""
        with self._lock:
            self._become(hosted, DRAINING)
            if hosted.memory is not None:
                self._draining.append(hosted)
        log.info("model-retired", model=hosted.key[0], version=hosted.key[1], revision=hosted.desired.revision)

    def _release(self, hosted: HostedModel) -> None:
        self._draining.remove(hosted)
        hosted.release()
        self._collect()

    def _unload(self, hosted: HostedModel) -> None:
        self._become(hosted, WAITING)
        hosted.release()
        self._collect()
        log.info("model-unloaded", model=hosted.key[0], version=hosted.key[1], bytes=hosted.weights_bytes)
        self.announce(ttl=None)

    def _become(self, hosted: HostedModel, state: ModelState, message: str = "") -> None:
        """Changes a model's state, and updates the metrics."""
        hosted.become(state, message)
        if state is READY:
            hosted.used = time.monotonic()
            if hosted.demand is not None:
                hosted.demand = replace(hosted.demand, until=hosted.used + AWAITED, within=nullcontext)
        self._show(hosted)

    def _show(self, hosted: HostedModel) -> None:
        """Updates the metric of loaded models, and removes the series of models that are no longer registered."""
        if hosted.key not in self._hosted:
            self._metrics.forget(*hosted.key)
            return
        ready = hosted.state is READY
        if ready and hosted.described is not None:
            self._metrics.expect(hosted.entry.name, (method.name for method in hosted.described.methods))
        self._metrics.loaded.labels(*hosted.key).set(ready)
        self._metrics.model_memory.labels(*hosted.key).set(hosted.weights_bytes if ready else 0)

    def _collect(self) -> None:
        gc.collect()  # traced modules have reference cycles
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    # Room in memory.

    def _make_room(self, enough: Callable[[], bool], *, spared: HostedModel) -> None:
        """Unloads idle models, the least recently used first, until there is enough room or none is left."""
        with self._lock:
            spare = [hosted for hosted in self.ready() if hosted.spare and hosted is not spared]
            for hosted in sorted(spare, key=lambda one: one.used):
                if enough():
                    return
                self._unload(hosted)

    def _has_room(self, wanted: HostedModel) -> bool:
        """Returns whether a model fits, fits after unloading the spare ones, or would be the only one."""
        busy = [hosted for hosted in self.running() if not hosted.spare]
        busy += [hosted for hosted in self._hosted.values() if hosted.coming and hosted is not wanted]
        return not busy or self._fit([*busy, wanted])

    def _fit(self, models: Sequence[HostedModel]) -> bool:
        """Returns whether models fit into the memory together."""
        return not self._bound or footprint(models) <= self._bound

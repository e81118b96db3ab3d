"""The models of a worker: those that the registry says, loaded in the background, published when they are ready.

Where memory is bounded, the model that was used least recently makes room, never one with running jobs. It stays
published, and is loaded again when a job for it waits. A model whose registration changes is retired: it takes no more
jobs, and goes when the last one has ended.
"""

import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from sagittal.core.errors import Unavailable
from sagittal.core.models import read_entries
from sagittal.models.sources import EVERYTHING, Access
from sagittal.registry.protocol import WorkerRegistry
from sagittal.worker.hosting.hosted_model import Context, Hosted, footprint
from sagittal.worker.hosting.loading import Loader, Verdict
from sagittal.worker.hosting.registry import AWAY_PAUSE, Announcements, Roster, Selection
from sagittal.worker.hosting.states import DRAINING, FAILED, LOADING, QUARANTINED, READY, REHEARSING, WAITING
from sagittal.worker.metrics import DIED, WorkerMetrics
from sagittal.worker.processes import Watched

log = structlog.get_logger(__name__)

#: Announcements after which a silent worker is forgotten.
FORGOTTEN_AFTER = 5

#: Time between two looks whether the registry has changed, in seconds.
LOOK = 1.0

#: Time between two looks while models are rehearsed, in seconds.
REHEARSAL_LOOK = 0.1

#: Time after which a rehearsal no longer holds up that of another model, in seconds.
LONG_REHEARSAL = 10.0

#: Pause after a rehearsal that died, in seconds; it doubles with each.
REST = 1.0

#: Time that a model which was loaded for a job waits for it, in seconds; another worker may have taken it.
AWAITED = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadLimits:
    """What loading a model may cost."""

    seconds: float = 600.0
    """Time that it may take."""
    attempts: int = 3
    """Times that it may kill its process before the version is quarantined."""


class HostedModels:
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
            registry: Where models are registered, published and announced.
            metrics: Where loading is counted.
            worker: Name of this worker.
            device: Where models run.
            memory_mib: Most memory of all loaded models' weights and the largest batch; 0 for no bound.
            memo_mib: Memory for the scores that jobs on the same picture share, for each model; 0 for none.
            access: What models may be loaded from.
            selection: Which registered models to serve.
            limits: What loading a model may cost.
            watched: What this process shares with the parent that watches it; None if none does.
        """
        entries = read_entries(path) if path is not None else []
        self._roster = Roster(entries, registry, selection or Selection())
        self._announcements = Announcements(registry, worker=worker, device=device)
        self._loader = Loader(metrics, device, access, memo_mib * 2**20)
        self._metrics = metrics
        self._device = device
        self._bound = memory_mib * 2**20
        self._limits = limits
        watched = watched or Watched()
        self._vitals, self._rehearsals = watched.vitals, watched.rehearsals
        self.undisturbed = threading.Event()
        """Set while a job must run alone: no model is loaded beside it."""
        self._hosted: dict[tuple[str, str], Hosted] = {}
        self._retired: list[Hosted] = []
        self._lock = threading.RLock()
        self._woken = threading.Event()

    def ready(self) -> Sequence[Hosted]:
        """Returns the models that can run jobs."""
        with self._lock:
            return [hosted for hosted in self._hosted.values() if hosted.state is READY]

    def running(self) -> Sequence[Hosted]:
        """Returns the models that may have work: those that are ready, and the retired ones."""
        with self._lock:
            return [*self.ready(), *self._retired]

    def get(self, key: tuple[str, str]) -> Hosted | None:
        """Returns a model by name and version; None where it is no longer served."""
        return self._hosted.get(key)

    @property
    def all_failed(self) -> bool:
        """Whether there are models, and none can be served, now or later."""
        with self._lock:
            states = [hosted.state for hosted in self._hosted.values()]
        return bool(states) and all(state in (FAILED, QUARANTINED) for state in states)

    def offered(self) -> Sequence[tuple[str, str]]:
        """Returns the models whose jobs may be leased.

        They are ready, or there is room to load them, or nobody can load them, so that their jobs must be failed.
        """
        with self._lock:
            return [hosted.key for hosted in self._hosted.values() if self._takes_jobs(hosted)]

    def _takes_jobs(self, hosted: Hosted) -> bool:
        if hosted.state in (FAILED, QUARANTINED):
            return hosted.hopeless
        return hosted.state is READY or (hosted.on_demand and self._has_room(hosted))

    @contextmanager
    def pinned(self, hosted: Hosted) -> Iterator[bool]:
        """Keeps a model loaded while a job is handed to it; False where it is not loaded."""
        with self._lock:
            ready = hosted.state is READY
            hosted.pins += ready
            hosted.used, hosted.awaited = time.monotonic(), 0.0
        try:
            yield ready
        finally:
            with self._lock:
                hosted.pins -= ready

    def want(self, hosted: Hosted, *, within: Context = nullcontext) -> None:
        """Asks for a model to be loaded for a job, by the thread that follows the registry, within a context."""
        with self._lock:
            hosted.within = within
            hosted.wanted, hosted.unwanted, hosted.awaited = True, False, time.monotonic() + AWAITED
        self._woken.set()

    def wake(self) -> None:
        """Makes the thread that follows the registry look around."""
        self._woken.set()

    def follow(self, *, batch_size: int, stopped: threading.Event) -> None:
        """Follows the registry until stopped: loads what it says, one model at a time, and lets go of the rest."""
        complained = False
        while not stopped.is_set():
            if not self.turn(batch_size=batch_size, stopped=stopped):
                if self.all_failed and not complained:
                    log.error(
                        "no-model-to-serve", remedy="see the errors above; the worker stays to say so in GetModel"
                    )
                complained = self.all_failed
                self._woken.wait(REHEARSAL_LOOK if self._rehearsing() else LOOK)
                self._woken.clear()

    def turn(self, *, batch_size: int, stopped: threading.Event) -> bool:
        """Looks at the registry once and loads one model that is due; whether there was one."""
        try:
            self._look()
        except Unavailable as away:
            log.warning("queue-away", doing="reading the registry", error=away.message)
            stopped.wait(AWAY_PAUSE)
            return False
        self._let_go()
        with self._lock:
            unpublished = [one for one in self.ready() if not one.published]
        for one in unpublished:
            self._announcements.publish(one, stopped)
        for verdict in self._rehearsals.verdicts():
            self._judge(verdict)
        hosted = None if self.undisturbed.is_set() else self._next_due(batch_size)
        if hosted is None:
            return False
        with self._saying_who_waits(hosted):
            self.load(hosted, batch_size=batch_size, stopped=stopped)
        return True

    @property
    def loading(self) -> bool:
        """Whether this process loads a model now."""
        return bool(self._vitals.load.doing)

    def _next_due(self, batch_size: int) -> Hosted | None:
        """Returns a model to load now; those that are to be rehearsed before are sent there."""
        with self._lock:
            due = [one for one in self._hosted.values() if one.due]
        for hosted in due:
            if self._rehearsals.deaths(hosted.registration) >= self._limits.attempts:
                self._quarantine(hosted, "loading it killed the worker's process, or hung there")
            elif not self._rehearsals.needed(hosted.registration, known=hosted.described is not None):
                return hosted
            elif all(time.monotonic() - one.rehearsed > LONG_REHEARSAL for one in self._rehearsing()):
                self._rehearse(hosted, batch_size)
        return None

    @contextmanager
    def _saying_who_waits(self, hosted: Hosted) -> Iterator[None]:
        """Lets those that are to be loaded too say that they wait for this one."""
        why = f"waits until {hosted.entry.name}, version {hosted.entry.version}, is loaded"
        with self._lock:
            waiting = [one for one in self._hosted.values() if one.due and one is not hosted and not one.message]
            for one in waiting:
                one.message = why
        try:
            yield
        finally:
            for one in waiting:
                one.message = "" if one.message == why else one.message

    def _rehearsing(self) -> Sequence[Hosted]:
        with self._lock:
            return [hosted for hosted in self._hosted.values() if hosted.rehearsal]

    def _rehearse(self, hosted: Hosted, batch_size: int) -> None:
        hosted.become(REHEARSING)
        hosted.rehearsal, hosted.rehearsed = hosted.registration, time.monotonic()
        size = hosted.batch_size or hosted.entry.device.batch_size or batch_size
        self._rehearsals.begin(hosted.registration, hosted.entry, from_file=hosted.from_file, batch_size=size)
        self.announce(ttl=None)

    def _judge(self, verdict: Verdict) -> None:
        """Follows the verdict on a rehearsal: the model may be loaded, tried again, or is quarantined."""
        hosted = next((one for one in self._rehearsing() if one.rehearsal == verdict.registration), None)
        if hosted is None:
            return  # its registration changed meanwhile
        hosted.rehearsal = ""
        if not verdict.cause:
            hosted.become(WAITING)
            return
        self._metrics.loads.labels(*hosted.key, DIED).inc()
        if verdict.deaths >= self._limits.attempts:
            self._quarantine(hosted, verdict.cause)
            return
        hosted.resting = time.monotonic() + REST * 2 ** (verdict.deaths - 1)
        hosted.become(
            WAITING,
            f"loading it in a process of its own failed {verdict.deaths} of {self._limits.attempts} times: "
            f"{verdict.cause}; it is tried again",
        )
        self.announce(ttl=None)

    def _quarantine(self, hosted: Hosted, cause: str) -> None:
        hosted.become(
            QUARANTINED,
            f"quarantined: loading it failed {self._limits.attempts} times, the last time because {cause}; mend it and "
            "change it with UpdateModel, or ask for another try with LoadModel",
        )
        self._metrics.loads.labels(*hosted.key, QUARANTINED.value).inc()
        name, version = hosted.key
        log.error("model-quarantined", model=name, version=version, attempts=self._limits.attempts, cause=cause)
        self._gone(hosted)
        self.announce(ttl=None)

    def load_all(self, *, batch_size: int, stopped: threading.Event) -> None:
        """Follows the registry until nothing is left to load."""
        while self.turn(batch_size=batch_size, stopped=stopped):
            if stopped.is_set():
                return

    def load(self, hosted: Hosted, *, batch_size: int, stopped: threading.Event) -> None:
        """Loads a model, others making room where memory is bounded; the first time, it is published too."""
        keep, hosted.wanted = hosted.wanted, False
        context, hosted.within = hosted.within, nullcontext
        self._make_room(lambda: self._fit([*self.running(), hosted]), spared=hosted)
        with context(), self._vitals.load.during(hosted.registration, seconds=self._limits.seconds):
            self._load(hosted, hosted.batch_size or hosted.entry.device.batch_size or batch_size)
        self._rehearsals.forget(hosted.registration)
        if hosted.loaded is None or hosted.described is None:
            return
        if not hosted.published:
            self._announcements.publish(hosted, stopped)
        with self._lock:
            if self._hosted.get(hosted.key) is not hosted:
                hosted.release()  # its registration changed while it was loaded
                if hosted.state is not DRAINING:
                    hosted.become(DRAINING)
                self._gone(hosted)
                return
            hosted.become(READY)
            hosted.used = time.monotonic()
            hosted.awaited = hosted.used + AWAITED if hosted.awaited else 0.0
            self._metrics.expect(hosted.entry.name, (method.name for method in hosted.described.methods))
            self._metrics.loaded.labels(*hosted.key).set(1)
            self._metrics.model_memory.labels(*hosted.key).set(hosted.weights_bytes)
            self._make_room(lambda: self._fit(self.running()), spared=hosted)
            if (not self._fit(self.running()) and len(self.ready()) > 1) or not (keep or hosted.wanted):
                self._unload(hosted)
        self.announce(ttl=None)

    def _look(self) -> None:
        """Takes over what changed in the registry."""
        registered = self._roster.changed(urgent=any(one.message for one in list(self._hosted.values())))
        if registered is None:
            return
        with self._lock:
            before = dict(self._hosted)
            self._hosted = dict(self._roster.merge(before, registered))
            gone = [hosted for key, hosted in before.items() if self._hosted.get(key) is not hosted]
        for hosted in gone:
            self._retire(hosted)
        if before.keys() != self._hosted.keys() or gone:
            self.announce(ttl=None)

    def _retire(self, hosted: Hosted) -> None:
        """Takes a model out of service; its running jobs go on."""
        with self._lock:
            hosted.become(DRAINING)
            if hosted.engine is not None:
                self._retired.append(hosted)
        log.info("model-retired", model=hosted.entry.name, version=hosted.entry.version, revision=hosted.revision)
        self._gone(hosted)

    def _let_go(self) -> None:
        """Unloads what is idle and no longer wanted, retired models too."""
        with self._lock:
            for hosted in self.ready():
                if hosted.unwanted and hosted.idle:
                    self._unload(hosted)
            ended = [hosted for hosted in self._retired if hosted.idle]
            self._retired = [hosted for hosted in self._retired if hosted not in ended]
            for hosted in ended:
                hosted.release()
        if ended:
            self._collect()

    def _make_room(self, enough: Callable[[], bool], *, spared: Hosted) -> None:
        """Unloads idle models, the least recently used first, until there is room enough or none is left."""
        with self._lock:
            spare = [hosted for hosted in self.ready() if hosted.spare and hosted is not spared]
            for hosted in sorted(spare, key=lambda one: one.used):
                if enough():
                    return
                self._unload(hosted)

    def _unload(self, hosted: Hosted) -> None:
        hosted.become(WAITING)
        hosted.release()
        self._collect()
        log.info("model-unloaded", model=hosted.entry.name, version=hosted.entry.version, bytes=hosted.weights_bytes)
        self._gone(hosted)
        self.announce(ttl=None)

    def _gone(self, hosted: Hosted) -> None:
        """Shows that a model is not loaded, and nothing of one that is no longer registered."""
        if hosted.key not in self._hosted:
            self._metrics.forget(*hosted.key)
            return
        self._metrics.loaded.labels(*hosted.key).set(0)
        self._metrics.model_memory.labels(*hosted.key).set(0)

    def _collect(self) -> None:
        gc.collect()  # traced modules refer to themselves
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _has_room(self, wanted: Hosted) -> bool:
        """Whether a model fits, or fits once the spare ones are gone, or would be the only one."""
        busy = [hosted for hosted in self.running() if not hosted.spare]
        busy += [hosted for hosted in self._hosted.values() if hosted.coming and hosted is not wanted]
        return not busy or self._fit([*busy, wanted])

    def _fit(self, models: Sequence[Hosted]) -> bool:
        """Whether models fit into the memory together."""
        return not self._bound or footprint(models) <= self._bound

    def announce(self, *, ttl: float | None) -> None:
        """Tells the registry how this worker stands to its models. Raises Unavailable only with a `ttl`, in seconds."""
        with self._lock:
            states = self._announcements.states(self._hosted.values())
        self._announcements.announce(states, ttl=ttl)

    def withdraw(self) -> None:
        """Tells the registry that this worker takes no more jobs; where it cannot, silence will."""
        self._announcements.withdraw()

    def _load(self, hosted: Hosted, batch_size: int) -> None:
        hosted.become(LOADING)
        self.announce(ttl=None)
        if message := self._loader.load(hosted, batch_size=batch_size):
            hosted.become(FAILED, message)
            self._gone(hosted)
            self.announce(ttl=None)

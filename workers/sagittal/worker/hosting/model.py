"""The life cycle of a model on a worker: its desired state, its state, and the next action.

The registry defines the desired state (`Desired`, `Goal`). The state (`ModelState`) changes only by the transitions
drawn here. `next_action` compares the two, and the reconciler performs the action.

                     registered, or known and not loaded
                                  |
         +-------------------> WAITING <-----------------------------+
         |                     |     |                               |
         | survived, or        |     | it was loaded before,         | unloaded: idle, and room is
         | died and is         |     | or survived its rehearsal     | needed or UnloadModel asked
         | tried again         v     v                               |
         +------------- REHEARSING  LOADING ----------------------> READY
                               |     |
             died too often    |     |  could not be loaded
                               v     v
        WAITING <-- QUARANTINED     FAILED --> WAITING                 LoadModel leads out of both
           |             ^
           +-------------+  loading it killed the worker's process too often

From each of them a changed or removed registration leads to DRAINING: no more jobs, then removed when all have ended.
A changed registration starts again, WAITING beside the old one.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum, auto

from sagittal.core.models import ModelEntry
from sagittal.engine import Engine
from sagittal.models.loaded import LoadedModel
from sagittal.registry.protocol import Wish
from sagittal.v1 import model_pb2

Context = Callable[[], AbstractContextManager[object]]

#: Time that a model loaded for a job waits for it, in seconds; another worker may have leased it.
AWAITED = 5.0


class ModelState(StrEnum):
    """State of a model on this worker."""

    WAITING = auto()
    """Not loaded; if others know the model, until it is needed."""
    REHEARSING = auto()
    """Loaded in a separate process, to test whether that process survives."""
    LOADING = auto()
    READY = auto()
    DRAINING = auto()
    """Its registration was changed or removed; its jobs continue."""
    FAILED = auto()
    """It could not be loaded."""
    QUARANTINED = auto()
    """Loading it killed its process too often."""


WAITING, REHEARSING, LOADING, READY, DRAINING, FAILED, QUARANTINED = ModelState

TRANSITIONS: Mapping[ModelState, frozenset[ModelState]] = {
    WAITING: frozenset({REHEARSING, LOADING, QUARANTINED, DRAINING}),
    REHEARSING: frozenset({WAITING, QUARANTINED, DRAINING}),
    LOADING: frozenset({READY, FAILED, DRAINING}),
    READY: frozenset({WAITING, DRAINING}),
    FAILED: frozenset({WAITING, DRAINING}),
    QUARANTINED: frozenset({WAITING, DRAINING}),
    DRAINING: frozenset(),
}
"""Allowed transitions from each state."""

SHOWN: Mapping[ModelState, "model_pb2.ModelState.ValueType"] = {
    WAITING: model_pb2.MODEL_STATE_UNLOADED,
    REHEARSING: model_pb2.MODEL_STATE_LOADING,
    LOADING: model_pb2.MODEL_STATE_LOADING,
    READY: model_pb2.MODEL_STATE_READY,
    DRAINING: model_pb2.MODEL_STATE_UNLOADED,
    FAILED: model_pb2.MODEL_STATE_FAILED,
    QUARANTINED: model_pb2.MODEL_STATE_FAILED,
}
"""Announced state for each state."""


class Goal(StrEnum):
    """Whether a model should be loaded."""

    AS_NEEDED = auto()
    """It is loaded for a job, and unloaded to make room for others."""
    LOADED = auto()
    UNLOADED = auto()
    """It is unloaded as soon as it is idle, and loaded again for a job."""


class Action(StrEnum):
    """The next action for a model."""

    NOTHING = auto()
    REHEARSE = auto()
    LOAD = auto()
    PUBLISH = auto()
    UNLOAD = auto()
    QUARANTINE = auto()
    RELEASE = auto()
    """Free the memory of a draining model."""


class ImpossibleTransition(Exception):
    """The transition is not allowed: a bug of this program."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Desired:
    """The registry's state of a model."""

    entry: ModelEntry
    declaration: model_pb2.Model = field(default_factory=model_pb2.Model)
    """The registered entry."""
    revision: int = 0
    """Revision of the registration."""
    from_file: bool = True
    """Whether a worker's model file registered it, and not the API."""
    refused: str = ""
    """Why this worker may not load it at all; otherwise empty."""
    wish: Wish = ""
    """The last request by LoadModel or UnloadModel."""
    turn: int = 0
    """Number of that request."""
    found: model_pb2.Model | None = None
    """Description by a worker that loaded this revision; None if none did yet."""
    failed_everywhere: bool = False
    """Whether every worker that serves it failed to load it."""

    @property
    def goal(self) -> Goal:
        """The goal of the last request, or of its entry if there was none."""
        if self.wish:
            return Goal.LOADED if self.wish == "load" else Goal.UNLOADED
        return Goal.LOADED if self.entry.load == "preload" else Goal.AS_NEEDED


@dataclass(frozen=True, slots=True, eq=False)
class InMemory:
    """A model in the device's memory."""

    loaded: LoadedModel
    engine: Engine


@dataclass(frozen=True, slots=True)
class Demand:
    """A job that a model is loaded for."""

    until: float
    """Value of `time.monotonic()` until which the model waits for the job."""
    within: Context = nullcontext
    """Returns the context in which the model is loaded."""


@dataclass(slots=True, kw_only=True, eq=False)
class HostedModel:
    """A registered model on this worker. A changed registration is a new one, beside it while its jobs run."""

    desired: Desired
    goal: Goal = Goal.AS_NEEDED
    state: ModelState = WAITING
    """Current state; `become` changes it."""
    message: str = ""
    """Reason of the state; empty if there is none."""
    since: float = field(default_factory=time.monotonic)
    """Value of `time.monotonic()` at the last transition."""
    retry_at: float = 0.0
    """Value of `time.monotonic()` before which it is not loaded again, because loading it killed a process."""
    described: model_pb2.Model | None = None
    """Its description, by this worker or by another one that loaded it before."""
    published: bool = False
    """Whether this worker's description is in the registry."""
    memory: InMemory | None = None
    batch_size: int = 0
    """Batch size of the first load, halved after out-of-memory; 0 before."""
    used: float = 0.0
    """Value of `time.monotonic()` at its last job."""
    pins: int = 0
    """Number of jobs that are being submitted to its engine."""
    demand: Demand | None = None
    """The job that it is loaded for, until that job arrives."""
    hopeless: bool = False
    """Whether no worker can load it, so that its jobs fail."""

    @classmethod
    def of(cls, desired: Desired) -> "HostedModel":
        """Returns the model of a new registration."""
        return cls(desired=desired, goal=desired.goal, described=desired.found)

    @property
    def entry(self) -> ModelEntry:
        """Its entry in the model file or the API."""
        return self.desired.entry

    @property
    def key(self) -> tuple[str, str]:
        """Name and version."""
        return self.entry.key

    @property
    def registration(self) -> str:
        """Key of the count of deaths while loading: UpdateModel and LoadModel start a new count."""
        return f"{self.entry.name}@{self.entry.version}, revision {self.desired.revision}, wish {self.desired.turn}"

    @property
    def loaded(self) -> LoadedModel | None:
        """The model on the device; None if it is not loaded."""
        return self.memory.loaded if self.memory else None

    @property
    def engine(self) -> Engine | None:
        """Its engine; None if it is not loaded."""
        return self.memory.engine if self.memory else None

    @property
    def weights_bytes(self) -> int:
        """Memory of its weights at the last load; 0 before."""
        return self.described.capabilities.weights_bytes if self.described else 0

    @property
    def activation_bytes(self) -> int:
        """Memory of its largest batch at the last load; 0 before."""
        return self.described.capabilities.activation_bytes if self.described else 0

    @property
    def failed(self) -> bool:
        """Whether it cannot be loaded here."""
        return self.state in (FAILED, QUARANTINED)

    @property
    def idle(self) -> bool:
        """Whether it is loaded and has no job."""
        return self.memory is not None and not self.pins and not self.memory.engine.running

    @property
    def spare(self) -> bool:
        """Whether it may be unloaded to make room: it is idle, and expects no job."""
        return self.idle and (self.demand is None or self.demand.until < time.monotonic())

    @property
    def due(self) -> bool:
        """Whether it should be loaded: it is requested, or its properties are still unknown."""
        wanted = self.goal is Goal.LOADED or self.described is None
        return self.state is WAITING and wanted and time.monotonic() >= self.retry_at

    @property
    def coming(self) -> bool:
        """Whether it is being loaded, or will be next."""
        return self.state in (REHEARSING, LOADING) or self.due

    @property
    def on_demand(self) -> bool:
        """Whether a job causes it to be loaded."""
        return self.state is WAITING and self.described is not None and self.goal is not Goal.LOADED

    def become(self, state: ModelState, message: str = "") -> None:
        """Changes its state. Raises ImpossibleTransition."""
        if state not in TRANSITIONS[self.state]:
            raise ImpossibleTransition(f"{self.registration} is {self.state} and cannot become {state}")
        self.state, self.message, self.since = state, message, time.monotonic()
        self.hopeless = False

    def follow(self, desired: Desired) -> None:
        """Updates it to the registry's current state of the same declaration."""
        before, self.desired = self.desired, desired
        if before.revision != desired.revision or desired.found is None:
            # The registry lost its data, and has only the declarations of model files, which this worker sent again.
            self.published = False
        if desired.turn > before.turn:
            self.goal, self.retry_at = desired.goal, 0.0
            if self.failed and self.goal is Goal.LOADED:
                self.become(WAITING)
        self.hopeless = self.failed and desired.failed_everywhere

    def want(self, within: Context) -> None:
        """Records a waiting job as the reason to load it."""
        self.goal, self.demand = Goal.LOADED, Demand(time.monotonic() + AWAITED, within)

    def release(self) -> None:
        """Releases all its memory."""
        if self.memory is not None:
            self.batch_size = self.memory.engine.batch_size
        self.memory, self.goal = None, Goal.AS_NEEDED

    def next_action(self, *, deaths: int, attempts: int, rehearse: bool) -> Action:
        """Returns the next action.

        Args:
            deaths: Number of processes that died while loading this registration.
            attempts: Maximum number of such deaths.
            rehearse: Whether it must be loaded in a separate process first.
        """
        if self.state is DRAINING:
            return Action.RELEASE if self.idle else Action.NOTHING
        if self.state is READY and self.goal is Goal.UNLOADED and self.idle:
            return Action.UNLOAD
        if self.state is READY and not self.published:
            return Action.PUBLISH
        if not self.due:
            return Action.NOTHING
        if deaths >= attempts:
            return Action.QUARANTINE
        return Action.REHEARSE if rehearse else Action.LOAD


def footprint(models: Iterable[HostedModel]) -> int:
    """Returns the memory of models together: all weights, and one batch, because one runs at a time."""
    models = list(models)
    return sum(one.weights_bytes for one in models) + max((one.activation_bytes for one in models), default=0)

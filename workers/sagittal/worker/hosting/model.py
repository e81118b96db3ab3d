"""A model's life on a worker: what is wanted of it, where it stands, and what is to be done about the difference.

The registry says what is wanted (`Desired`, `Goal`). Where the model stands (`ModelState`) changes by the transitions
drawn here and no others. `next_action` compares the two, and the reconciler does what it returns.

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

From each of them a changed or removed registration leads to DRAINING: no more jobs, and gone when the last has ended. A
changed registration begins anew, WAITING beside the old one.
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

#: Time that a model which was loaded for a job waits for it, in seconds; another worker may have taken it.
AWAITED = 5.0


class ModelState(StrEnum):
    """Where a model stands on this worker."""

    WAITING = auto()
    """Not loaded; until it is wanted, where others know it."""
    REHEARSING = auto()
    """Loaded in a process of its own, to see whether that survives."""
    LOADING = auto()
    READY = auto()
    DRAINING = auto()
    """Its registration changed or went; its jobs go on."""
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
"""What may follow each state."""

SHOWN: Mapping[ModelState, "model_pb2.ModelState.ValueType"] = {
    WAITING: model_pb2.MODEL_STATE_UNLOADED,
    REHEARSING: model_pb2.MODEL_STATE_LOADING,
    LOADING: model_pb2.MODEL_STATE_LOADING,
    READY: model_pb2.MODEL_STATE_READY,
    DRAINING: model_pb2.MODEL_STATE_UNLOADED,
    FAILED: model_pb2.MODEL_STATE_FAILED,
    QUARANTINED: model_pb2.MODEL_STATE_FAILED,
}
"""How each state is announced."""


class Goal(StrEnum):
    """Whether a model is to be loaded."""

    AS_NEEDED = auto()
    """A job makes it come; room for others makes it go."""
    LOADED = auto()
    UNLOADED = auto()
    """It goes as soon as it is idle; a job makes it come again."""


class Action(StrEnum):
    """What is to be done about a model now."""

    NOTHING = auto()
    REHEARSE = auto()
    LOAD = auto()
    PUBLISH = auto()
    UNLOAD = auto()
    QUARANTINE = auto()
    RELEASE = auto()
    """Free the memory of a model that drains."""


class ImpossibleTransition(Exception):
    """A model cannot come from one state to another: a mistake of this program."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Desired:
    """What the registry says of a model."""

    entry: ModelEntry
    declaration: model_pb2.Model = field(default_factory=model_pb2.Model)
    """What was registered."""
    revision: int = 0
    """Of the registration."""
    from_file: bool = True
    """Whether a worker's model file registered it, and not the API."""
    refused: str = ""
    """Why this worker may not load it at all; else empty."""
    wish: Wish = ""
    """What LoadModel or UnloadModel asked for last."""
    turn: int = 0
    """Of that wish."""
    found: model_pb2.Model | None = None
    """What a worker that loaded this revision found of it; None where none did yet."""
    failed_everywhere: bool = False
    """Whether every worker that serves it failed to load it."""

    @property
    def goal(self) -> Goal:
        """What the last wish makes of a model, or what its entry says where there was none."""
        if self.wish:
            return Goal.LOADED if self.wish == "load" else Goal.UNLOADED
        return Goal.LOADED if self.entry.load == "preload" else Goal.AS_NEEDED


@dataclass(frozen=True, slots=True, eq=False)
class InMemory:
    """A model on the device."""

    loaded: LoadedModel
    engine: Engine


@dataclass(frozen=True, slots=True)
class Demand:
    """A job that a model is loaded for."""

    until: float
    """Time of `time.monotonic()` up to which the job is waited for."""
    within: Context = nullcontext
    """Gives the context in which the model is to be loaded."""


@dataclass(slots=True, kw_only=True, eq=False)
class HostedModel:
    """A registered model on this worker. A changed registration is another one, beside it while its jobs run."""

    desired: Desired
    goal: Goal = Goal.AS_NEEDED
    state: ModelState = WAITING
    """Where it stands; `become` changes it."""
    message: str = ""
    """Why it stands there; empty where there is nothing to say."""
    since: float = field(default_factory=time.monotonic)
    """Time of `time.monotonic()` of the last transition."""
    retry_at: float = 0.0
    """Time of `time.monotonic()` before which it is not loaded again, since loading it killed a process."""
    described: model_pb2.Model | None = None
    """What is known of it, from this worker or from another one that loaded it before."""
    published: bool = False
    """Whether the registry has what this worker found."""
    memory: InMemory | None = None
    batch_size: int = 0
    """Found when it was first loaded, halved where memory ran out; 0 before."""
    used: float = 0.0
    """Time of `time.monotonic()` when it last got a job."""
    pins: int = 0
    """Jobs that are being handed to its engine."""
    demand: Demand | None = None
    """The job that it is loaded for, until that job comes."""
    hopeless: bool = False
    """Whether no worker can load it, so that its jobs are failed."""

    @classmethod
    def of(cls, desired: Desired) -> "HostedModel":
        """Returns the model of a registration that is new here."""
        return cls(desired=desired, goal=desired.goal, described=desired.found)

    @property
    def entry(self) -> ModelEntry:
        """What its model file or the API says of it."""
        return self.desired.entry

    @property
    def key(self) -> tuple[str, str]:
        """Name and version."""
        return self.entry.key

    @property
    def registration(self) -> str:
        """What deaths while it is loaded are counted by: UpdateModel and LoadModel begin anew."""
        return f"{self.entry.name}@{self.entry.version}, revision {self.desired.revision}, wish {self.desired.turn}"

    @property
    def loaded(self) -> LoadedModel | None:
        """The model on the device; None where it is not loaded."""
        return self.memory.loaded if self.memory else None

    @property
    def engine(self) -> Engine | None:
        """What evaluates it; None where it is not loaded."""
        return self.memory.engine if self.memory else None

    @property
    def weights_bytes(self) -> int:
        """Memory of its weights, as found when it was last loaded; 0 before."""
        return self.described.capabilities.weights_bytes if self.described else 0

    @property
    def activation_bytes(self) -> int:
        """Memory of its largest batch, as found when it was last loaded; 0 before."""
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
        """Whether it may make room: it is idle, and no job is about to come."""
        return self.idle and (self.demand is None or self.demand.until < time.monotonic())

    @property
    def due(self) -> bool:
        """Whether it is to be loaded: it is wanted, or nobody knows yet what it can do."""
        wanted = self.goal is Goal.LOADED or self.described is None
        return self.state is WAITING and wanted and time.monotonic() >= self.retry_at

    @property
    def coming(self) -> bool:
        """Whether it is being loaded, or is about to be."""
        return self.state in (REHEARSING, LOADING) or self.due

    @property
    def on_demand(self) -> bool:
        """Whether a job for it makes it come."""
        return self.state is WAITING and self.described is not None and self.goal is not Goal.LOADED

    def become(self, state: ModelState, message: str = "") -> None:
        """Brings it into another state. Raises ImpossibleTransition."""
        if state not in TRANSITIONS[self.state]:
            raise ImpossibleTransition(f"{self.registration} is {self.state} and cannot become {state}")
        self.state, self.message, self.since = state, message, time.monotonic()
        self.hopeless = False

    def follow(self, desired: Desired) -> None:
        """Takes over what the registry says of the same declaration now."""
        before, self.desired = self.desired, desired
        if before.revision != desired.revision or desired.found is None:
            # The registry lost its data, and knows of the file alone what this worker declared again.
            self.published = False
        if desired.turn > before.turn:
            self.goal, self.retry_at = desired.goal, 0.0
            if self.failed and self.goal is Goal.LOADED:
                self.become(WAITING)
        self.hopeless = self.failed and desired.failed_everywhere

    def want(self, within: Context) -> None:
        """Makes a job that waits for it the reason to load it."""
        self.goal, self.demand = Goal.LOADED, Demand(time.monotonic() + AWAITED, within)

    def release(self) -> None:
        """Forgets all that takes memory."""
        if self.memory is not None:
            self.batch_size = self.memory.engine.batch_size
        self.memory, self.goal = None, Goal.AS_NEEDED

    def next_action(self, *, deaths: int, attempts: int, rehearse: bool) -> Action:
        """Returns what is to be done about it now.

        Args:
            deaths: How often loading this registration killed its process.
            attempts: How often it may.
            rehearse: Whether it is to be loaded in a process of its own first.
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
    """Returns the memory that models take together: all weights, and one batch, since one runs at a time."""
    models = list(models)
    return sum(one.weights_bytes for one in models) + max((one.activation_bytes for one in models), default=0)

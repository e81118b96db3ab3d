"""A model that a worker serves, or tries to."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from sagittal.core.models import ModelEntry
from sagittal.engine import Engine
from sagittal.models.loaded import LoadedModel
from sagittal.v1 import model_pb2
from sagittal.worker.hosting.states import LOADING, REHEARSING, TRANSITIONS, WAITING, ImpossibleTransition, ModelState

Context = Callable[[], AbstractContextManager[object]]


@dataclass(slots=True, kw_only=True, eq=False)
class Hosted:
    """A registered model on this worker. A changed registration is another one, beside it while its jobs run."""

    entry: ModelEntry
    declaration: model_pb2.Model = field(default_factory=model_pb2.Model)
    """What was registered."""
    revision: int = 0
    """Of the registration."""
    from_file: bool = True
    """Whether a worker's model file registered it, and not the API."""
    refused: str = ""
    """Why this worker may not load it at all; else empty."""
    state: ModelState = WAITING
    """Where it stands; `become` changes it."""
    message: str = ""
    """Why it could not be loaded; else empty."""
    loaded: LoadedModel | None = None
    described: model_pb2.Model | None = None
    """What is known of it, from this worker or from another one that loaded it before."""
    engine: Engine | None = None
    weights_bytes: int = 0
    """Memory of its weights, as found when it was last loaded; 0 before."""
    activation_bytes: int = 0
    """Memory of its largest batch, as found when it was last loaded; 0 before."""
    batch_size: int = 0
    """Found when it was first loaded, halved where memory ran out; 0 before."""
    used: float = 0.0
    """Time of `time.monotonic()` when it last got a job."""
    pins: int = 0
    """Jobs that are being handed to its engine."""
    wanted: bool = False
    """Whether it is to be loaded as soon as may be."""
    unwanted: bool = False
    """Whether it is to be unloaded as soon as it is idle."""
    awaited: float = 0.0
    """Time of `time.monotonic()` up to which the job that it was loaded for is waited for; 0 where none is."""
    within: Context = nullcontext
    """Gives the context in which it is to be loaded next."""
    turn: int = 0
    """Of the last wish that was followed."""
    rehearsal: str = ""
    """The registration that is rehearsed; empty if none is."""
    rehearsed: float = 0.0
    """Time of `time.monotonic()` when its rehearsal began."""
    resting: float = 0.0
    """Time of `time.monotonic()` before which it is not loaded again, since loading it killed a process."""
    published: bool = False
    """Whether the registry has what this worker found."""
    hopeless: bool = False
    """Whether no worker can load it, so that its jobs are failed."""

    @property
    def key(self) -> tuple[str, str]:
        """Name and version."""
        return self.entry.key

    @property
    def registration(self) -> str:
        """What deaths while it is loaded are counted by: UpdateModel and LoadModel begin anew."""
        return f"{self.entry.name}@{self.entry.version}, revision {self.revision}, wish {self.turn}"

    @property
    def idle(self) -> bool:
        """Whether it is loaded and has no job."""
        return self.engine is not None and not self.pins and not self.engine.running

    @property
    def spare(self) -> bool:
        """Whether it may make room: it is idle, and no job is about to come."""
        return self.idle and self.awaited < time.monotonic()

    @property
    def coming(self) -> bool:
        """Whether it is being loaded, or is about to be."""
        return self.state in (REHEARSING, LOADING) or self.due

    @property
    def on_demand(self) -> bool:
        """Whether a job for it makes it come."""
        return self.described is not None and self.state is WAITING and not self.wanted

    @property
    def due(self) -> bool:
        """Whether it is to be loaded: it is wanted, or nobody knows yet what it can do."""
        wanted = self.wanted or self.described is None
        return self.state is WAITING and wanted and time.monotonic() >= self.resting

    def become(self, state: ModelState, message: str = "") -> None:
        """Brings it into another state. Raises ImpossibleTransition."""
        if state not in TRANSITIONS[self.state]:
            raise ImpossibleTransition(f"{self.registration} is {self.state} and cannot become {state}")
        self.state, self.message = state, message

    def release(self) -> None:
        """Forgets all that takes memory."""
        if self.engine is not None:
            self.batch_size = self.engine.batch_size
        self.loaded = self.engine = None
        self.unwanted = False


def footprint(models: Sequence[Hosted]) -> int:
    """Returns the memory that models take together: all weights, and one batch, since one runs at a time."""
    return sum(one.weights_bytes for one in models) + max((one.activation_bytes for one in models), default=0)

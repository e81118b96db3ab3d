"""What the registry says of the models that this worker is to serve, and what follows from it."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import structlog
import torch

from sagittal.core.errors import InvalidRequest, Unavailable
from sagittal.core.models import ModelEntry, declaration_of, entry_of
from sagittal.registry.protocol import Registration, WorkerRegistry
from sagittal.v1 import model_pb2
from sagittal.worker.hosting.hosted_model import Hosted, footprint
from sagittal.worker.hosting.states import FAILED, QUARANTINED, SHOWN, WAITING

# What a worker tells the registry: how it stands to its models, and what it found of them.


log = structlog.get_logger(__name__)

State = tuple[str, str, model_pb2.WorkerModel]
"""Name and version of a model, and how this worker stands to it."""

#: Time for which an announcement holds where none is given, in seconds.
HOLDS = 10.0

#: Pause before asking again when the queue is away, in seconds.
AWAY_PAUSE = 1.0


class Announcements:
    """Tells the registry of this worker's models. Safe from any thread."""

    def __init__(self, registry: WorkerRegistry, *, worker: str, device: torch.device) -> None:
        self._registry = registry
        self._worker = worker
        self._device = device

    def states(self, models: Iterable[Hosted]) -> Sequence[State]:
        """Returns how this worker stands to its models, to be told later: nothing waits for the registry meanwhile."""
        return [(*hosted.key, self._state(hosted)) for hosted in models]

    def announce(self, states: Sequence[State], *, ttl: float | None) -> None:
        """Tells how this worker stands to its models. Raises Unavailable only with a `ttl`, in seconds."""
        try:
            self._registry.announce(self._worker, states, ttl=ttl or HOLDS)
        except Unavailable:
            if ttl is not None:
                raise

    def _state(self, hosted: Hosted) -> model_pb2.WorkerModel:
        device = str(hosted.loaded.device if hosted.loaded else self._device)
        state = model_pb2.WorkerModel(worker=self._worker, message=hosted.message, device=device)
        state.state = SHOWN[hosted.state]
        state.revision = hosted.revision
        state.memory_bytes = footprint([hosted]) if hosted.loaded is not None else 0
        return state

    def withdraw(self) -> None:
        """Tells that this worker takes no more jobs; where it cannot, silence will."""
        try:
            self._registry.withdraw(self._worker)
        except Unavailable as away:
            log.warning("queue-away", doing="withdraw", error=away.message)

    def publish(self, hosted: Hosted, stopped: threading.Event) -> None:
        """Publishes what was found of a model until the registry has it, or no longer wants it."""
        described = hosted.described or model_pb2.Model()
        while not hosted.published:
            described.revision = hosted.revision
            try:
                hosted.published = self._registry.publish(described)
            except Unavailable as away:
                log.warning("queue-away", error=away.message, doing="publishing a model")
                if stopped.wait(AWAY_PAUSE):
                    return
            else:
                if not hosted.published:
                    log.info("registration-changed", model=hosted.entry.name, version=hosted.entry.version)
                return


# Which of the registered models a worker serves: by name, by tags, or those that concern it anyhow.


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A choice of models. An empty one is of those in the worker's own file and of those registered over the API."""

    names: tuple[str, ...] = ()
    """Patterns of `NAME` or `NAME@VERSION`, such as `resnet*`; one must fit."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags that a model must have."""

    def serves(self, model: model_pb2.Model, *, own: bool) -> bool:
        """Whether a registered model is served; `own` says that it is in this worker's file."""
        if not self.names and not self.tags:
            return own or model.origin == model_pb2.MODEL_ORIGIN_API
        return self._named(model) and all(model.tags.get(tag) == value for tag, value in self.tags.items())

    def _named(self, model: model_pb2.Model) -> bool:
        spellings = (model.name, f"{model.name}@{model.version}")
        return not self.names or any(fnmatchcase(name, pattern) for pattern in self.names for name in spellings)


Key = tuple[str, str]


class Roster:
    """Registers the models of the worker's file, and follows what the registry says from then on."""

    def __init__(self, entries: Sequence[ModelEntry], registry: WorkerRegistry, selection: Selection) -> None:
        self._entries = entries
        self._own = {entry.key: place for place, entry in enumerate(entries)}
        self._registry = registry
        self._selection = selection
        self._seen = -1

    def changed(self, *, urgent: bool = False) -> Sequence[Registration] | None:
        """Returns the registrations to serve, the file's first, where something changed since the last call, else None.

        A registry that lost its data is told of the file again. Raises Unavailable.

        Args:
            urgent: Asks in any case, for how other workers stand.
        """
        changes = self._registry.changes()
        if changes < self._seen:
            log.error(
                "registry-emptied",
                reason="Redis no longer has the registry that it had",
                doing="registering the models of this worker's file again",
                remedy="register models that came over the API again",
            )
        if changes < self._seen or self._seen < 0:
            self._declare()
            changes = self._registry.changes()
        elif changes == self._seen and not urgent:
            return None
        registered = [each for each in self._registry.registrations() if self._serves(each)]
        self._seen = changes
        return sorted(registered, key=lambda each: self._own.get(_key(each), len(self._own)))

    def merge(self, hosted: Mapping[Key, Hosted], registered: Iterable[Registration]) -> Mapping[Key, Hosted]:
        """Returns what to host: the models as they are where their registration is the same, new ones elsewhere."""
        wanted: dict[Key, Hosted] = {}
        for registration in registered:
            key = _key(registration)
            known = hosted.get(key)
            if known is None or known.declaration != registration.declaration:
                known = self._hosted(registration)
            elif known.revision != registration.model.revision or not registration.model.digest:
                # The registry lost its data, and knows of the file alone what this worker declared again.
                known.revision, known.published = registration.model.revision, False
            _follow(known, registration)
            wanted[key] = known
        return wanted

    def _declare(self) -> None:
        for entry in self._entries:
            if not self._registry.declare(declaration_of(entry), latest=entry.latest):
                log.warning(
                    "file-overruled",
                    model=entry.name,
                    version=entry.version,
                    reason="it was changed over the API, which holds over files",
                )

    def _serves(self, registration: Registration) -> bool:
        if registration.declaration is None:
            return False
        return self._selection.serves(registration.model, own=_key(registration) in self._own)

    def _hosted(self, registration: Registration) -> Hosted:
        declaration = registration.declaration or model_pb2.Model()
        entry, refused = _entry(declaration)
        found = registration.model
        return Hosted(
            entry=entry,
            declaration=declaration,
            revision=found.revision,
            from_file=found.origin == model_pb2.MODEL_ORIGIN_FILE,
            refused=refused,
            described=found if found.digest else None,
            weights_bytes=found.capabilities.weights_bytes,
            activation_bytes=found.capabilities.activation_bytes,
            wanted=entry.load == "preload" and registration.wish != "unload",
        )


def _key(registration: Registration) -> Key:
    return registration.model.name, registration.model.version


def _entry(declaration: model_pb2.Model) -> tuple[ModelEntry, str]:
    """Returns the entry of a declaration, and why it cannot be used: a newer service may take what is unknown here."""
    try:
        return entry_of(declaration), ""
    except InvalidRequest as error:
        bare = ModelEntry(name=declaration.name, version=declaration.version, source={"kind": "unknown"})
        return bare, f"this worker's version does not understand the registration: {error.message}"


def _follow(hosted: Hosted, registration: Registration) -> None:
    """Follows a wish that is new, and sees whether any worker can load the model."""
    states = [worker.state for worker in registration.model.workers]
    failed = hosted.state in (FAILED, QUARANTINED)
    hosted.hopeless = failed and all(state == model_pb2.MODEL_STATE_FAILED for state in states)
    if registration.turn <= hosted.turn:
        return
    hosted.turn = registration.turn
    hosted.wanted, hosted.unwanted = registration.wish == "load", registration.wish == "unload"
    if failed and hosted.wanted:
        hosted.become(WAITING)
        hosted.hopeless = False
    hosted.resting = 0.0

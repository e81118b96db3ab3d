"""A worker's communication with the registry: models to serve, their descriptions, and their states."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import structlog
import torch

from sagittal.core.errors import InvalidRequest, Unavailable
from sagittal.core.models import ModelEntry, declaration_of, entry_of
from sagittal.registry.protocol import Registration, WorkerRegistry
from sagittal.v1 import model_pb2
from sagittal.worker.hosting.model import SHOWN, Desired, HostedModel, footprint

log = structlog.get_logger(__name__)

State = tuple[str, str, model_pb2.WorkerModel]
"""Name and version of a model, and its state on this worker."""

#: Default time for which an announcement is valid, in seconds.
HOLDS = 15.0

#: Pause before the next attempt while the queue is unavailable, in seconds.
AWAY_PAUSE = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Selection of the registered models that a worker serves.

    An empty one selects the models of the worker's own file and those registered over the API.
    """

    names: tuple[str, ...] = ()
    """Patterns of `NAME` or `NAME@VERSION`, such as `resnet*`; one must match."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags that a model must have."""

    def serves(self, model: model_pb2.Model, *, own: bool) -> bool:
        """Returns whether a registered model is served; `own` states whether it is in this worker's file."""
        if not self.names and not self.tags:
            return own or model.origin == model_pb2.MODEL_ORIGIN_API
        return self._named(model) and all(model.tags.get(tag) == value for tag, value in self.tags.items())

    def _named(self, model: model_pb2.Model) -> bool:
        spellings = (model.name, f"{model.name}@{model.version}")
        return not self.names or any(fnmatchcase(name, pattern) for pattern in self.names for name in spellings)


class ServedModels:
    """This worker's part of the registry: the models that it serves. Thread-safe, except `desired`."""

    def __init__(
        self,
        entries: Sequence[ModelEntry],
        registry: WorkerRegistry,
        selection: Selection,
        *,
        worker: str,
        device: torch.device,
    ) -> None:
        self._entries = entries
        self._own = {entry.key: place for place, entry in enumerate(entries)}
        self._registry = registry
        self._selection = selection
        self._worker = worker
        self._device = device
        self._seen = -1

    def desired(self, *, urgent: bool = False) -> Sequence[Desired] | None:
        """Returns the models to serve, the file's first, if anything changed since the last call, otherwise None.

        A registry that lost its data receives the declarations of the file again. Raises Unavailable.

        Args:
            urgent: Reads in any case, for the states of other workers.
        """
        changes = self._registry.changes()
        if changes < self._seen:
            log.error(
                "registry-emptied",
                reason="Redis lost the registry's data",
                doing="registering the models of this worker's file again",
                remedy="register models that were registered over the API again",
            )
        if changes < self._seen or self._seen < 0:
            self._declare()
            changes = self._registry.changes()
        elif changes == self._seen and not urgent:
            return None
        registered = [desired for each in self._registry.registrations() if (desired := self._desired(each))]
        self._seen = changes
        return sorted(registered, key=lambda each: self._own.get(each.entry.key, len(self._own)))

    def state(self, hosted: HostedModel, *, loading: HostedModel | None) -> State:
        """Returns the state of a model on this worker; `loading` is the model that it loads now."""
        message = hosted.message
        if not message and loading is not None and hosted.due:
            message = f"waits until {loading.entry.name}, version {loading.entry.version}, is loaded"
        state = model_pb2.WorkerModel(
            worker=self._worker,
            state=SHOWN[hosted.state],
            message=message,
            device=str(hosted.loaded.device if hosted.loaded else self._device),
            revision=hosted.desired.revision,
            memory_bytes=footprint([hosted]) if hosted.loaded else 0,
        )
        return *hosted.key, state

    def announce(self, states: Sequence[State], *, ttl: float | None) -> None:
        """Announces the states of this worker's models. Raises Unavailable only with a `ttl`, in seconds."""
        try:
            self._registry.announce(self._worker, states, ttl=ttl or HOLDS)
        except Unavailable:
            if ttl is not None:
                raise

    def withdraw(self) -> None:
        """Announces that this worker takes no more jobs; if that fails, its announcement expires."""
        try:
            self._registry.withdraw(self._worker)
        except Unavailable as away:
            log.warning("queue-away", doing="withdraw", error=away.message)

    def publish(self, hosted: HostedModel, stopped: threading.Event) -> None:
        """Publishes the description of a model until the registry has it, or no longer needs it."""
        described = hosted.described or model_pb2.Model()
        while not hosted.published:
            described.revision = hosted.desired.revision
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

    def _declare(self) -> None:
        for entry in self._entries:
            if not self._registry.declare(declaration_of(entry), latest=entry.latest):
                log.warning(
                    "file-overruled",
                    model=entry.name,
                    version=entry.version,
                    reason="it was changed over the API, which takes precedence over files",
                )

    def _desired(self, registration: Registration) -> Desired | None:
        """Returns the desired state in a registration; None for a model that this worker does not serve."""
        model, declaration = registration.model, registration.declaration
        own = (model.name, model.version) in self._own
        if declaration is None or not self._selection.serves(model, own=own):
            return None
        entry, refused = _entry(declaration)
        return Desired(
            entry=entry,
            declaration=declaration,
            revision=model.revision,
            from_file=model.origin == model_pb2.MODEL_ORIGIN_FILE,
            refused=refused,
            wish=registration.wish,
            turn=registration.turn,
            found=model if model.digest else None,
            failed_everywhere=all(worker.state == model_pb2.MODEL_STATE_FAILED for worker in model.workers),
        )


def _entry(declaration: model_pb2.Model) -> tuple[ModelEntry, str]:
    """Returns the entry of a declaration, and why it is unusable: a newer service may accept unknown settings."""
    try:
        return entry_of(declaration), ""
    except InvalidRequest as error:
        bare = ModelEntry(name=declaration.name, version=declaration.version, source={"kind": "unknown"})
        return bare, f"this worker's version does not support the registration: {error.message}"

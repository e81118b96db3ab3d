"""What the registry says of the models that this worker is to serve, and what follows from it."""

from collections.abc import Iterable, Mapping, Sequence

import structlog

from sagittal.core.declarations import declaration_of, entry_of
from sagittal.core.entries import ModelEntry
from sagittal.core.errors import InvalidRequest
from sagittal.runtime.registry import Registration, WorkerRegistry
from sagittal.v1 import model_pb2
from sagittal.worker.hosted import Hosted
from sagittal.worker.model_states import FAILED, QUARANTINED, WAITING
from sagittal.worker.selection import Selection

log = structlog.get_logger(__name__)

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

"""What a worker tells the registry: how it stands to its models, and what it found of them."""

import threading
from collections.abc import Iterable, Sequence

import structlog
import torch

from sagittal.core.errors import Unavailable
from sagittal.runtime.registry import WorkerRegistry
from sagittal.v1 import model_pb2
from sagittal.worker.hosted import Hosted, footprint
from sagittal.worker.model_states import SHOWN

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

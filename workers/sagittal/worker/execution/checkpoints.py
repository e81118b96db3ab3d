"""Checkpoints of running jobs: the newest is kept, one is stored every few seconds, another attempt goes on from it.

As bytes they are safetensors, which can carry nothing but numbers. Beside the explainer's state they say what the
search has used, so that budgets and sums go on too, and what model and software they are of: others start afresh.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, field, replace
from importlib import metadata

import structlog
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sagittal.core.jobs import Lease
from sagittal.engine.task import Usage
from sagittal.explain import events
from sagittal.explain.problem import prefixed, within
from sagittal.models.loaded import LoadedModel

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Restored:
    """What an earlier attempt left; nothing where there was none."""

    state: Mapping[str, Tensor] = field(default_factory=dict)
    """As the explainer gave it, on the model's device."""
    usage: Usage = field(default_factory=Usage)
    """What that attempt's search had used by then."""
    seconds: float = 0.0
    """How long it had run, attempts before it included."""


def pack(restored: Restored, loaded: LoadedModel) -> bytes:
    """Returns what an attempt leaves as bytes."""
    counts, seconds = torch.tensor(astuple(restored.usage)), torch.tensor(restored.seconds, dtype=torch.float64)
    tensors = prefixed("state", restored.state) | {"usage": counts, "seconds": seconds, "origin": _origin(loaded)}
    # cloned, since safetensors refuses tensors that share memory
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})


def unpack(lease: Lease, loaded: LoadedModel) -> Restored:
    """Returns what an earlier attempt at a job left, nothing where it is of another model or release."""
    if lease.checkpoint is None:
        return Restored()
    try:
        tensors = load(lease.checkpoint)
        if not torch.equal(tensors["origin"], _origin(loaded)):
            log.warning("checkpoint-of-another-model", job_id=lease.job.job_id, doing="starting afresh")
            return Restored()
        usage, seconds = Usage(*tensors["usage"].tolist()), float(tensors["seconds"])
    except (SafetensorError, KeyError) as error:
        log.warning("checkpoint-unreadable", job_id=lease.job.job_id, error=str(error), doing="starting afresh")
        return Restored()
    log.info("job-resumed", job_id=lease.job.job_id, evaluations=usage.evaluations, bytes=len(lease.checkpoint))
    state = {name: tensor.to(loaded.device) for name, tensor in within(tensors, "state").items()}
    return Restored(state=state, usage=usage, seconds=seconds)


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, store: Callable[[bytes], None], loaded: LoadedModel, *, seconds: float) -> None:
        """Stores nothing yet.

        Args:
            store: Takes a checkpoint's bytes to the queue.
            loaded: The model that the run is on.
            seconds: Least time between two that are stored.
        """
        self._store = store
        self._loaded = loaded
        self._seconds = seconds
        self._started = self._stored = time.monotonic()
        self._usage, self._begun, self._preparation = Usage(), Usage(), Usage()
        self._newest: Restored | None = None

    def begin(self, usage: Usage, earlier: float) -> None:
        """Goes on from an earlier attempt.

        Args:
            usage: Of the run's task, which grows with it; it begins with what earlier attempts used.
            earlier: How long those ran, in seconds.
        """
        self._usage, self._begun = usage, replace(usage)
        self._started -= earlier

    @property
    def seconds(self) -> float:
        """How long the job has run: earlier attempts, each until its last checkpoint, and this one."""
        return time.monotonic() - self._started

    def note(self, event: events.Event) -> None:
        """Keeps a checkpoint, and stores it when it is time."""
        match event:
            case events.Prediction():
                self._preparation = _difference(self._usage, self._begun)
            case events.Checkpoint():
                # an attempt that goes on prepares anew, so that this is not counted twice
                usage = _difference(self._usage, self._preparation)
                self._newest = Restored(state=event.state, usage=usage, seconds=self.seconds)
                if time.monotonic() - self._stored >= self._seconds:
                    self.store_newest()

    def store_newest(self) -> None:
        """Stores the newest checkpoint, if there is one that is not stored yet."""
        if self._newest is not None:
            self._stored = time.monotonic()
            self._store(pack(self._newest, self._loaded))
            self._newest = None


def _difference(usage: Usage, less: Usage) -> Usage:
    return Usage(*(one - other for one, other in zip(astuple(usage), astuple(less), strict=True)))


def _origin(loaded: LoadedModel) -> Tensor:
    """Returns what a checkpoint is of, as a digest: uint8 of shape (32,)."""
    text = f"{loaded.digest} {metadata.version('sagittal')}"
    return torch.frombuffer(bytearray(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8)

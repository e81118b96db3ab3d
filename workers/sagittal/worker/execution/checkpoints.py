"""Checkpoints of running jobs: one is stored every few seconds, and another attempt resumes from it.

The format is safetensors, which can contain only numbers. In addition to the explainer's state, a checkpoint has the
usage of the search, so that budgets and totals continue, and the digest of its model and software: other models and
releases start from the beginning.
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
    """State of an earlier attempt; empty if there was none."""

    state: Mapping[str, Tensor] = field(default_factory=dict)
    """The explainer's state, on the model's device."""
    usage: Usage = field(default_factory=Usage)
    """Usage of that attempt's search."""
    seconds: float = 0.0
    """Its run time in seconds, including earlier attempts."""


def pack(restored: Restored, loaded: LoadedModel) -> bytes:
    """Returns the state of an attempt as bytes."""
    counts, seconds = torch.tensor(astuple(restored.usage)), torch.tensor(restored.seconds, dtype=torch.float64)
    tensors = prefixed("state", restored.state) | {"usage": counts, "seconds": seconds, "origin": _origin(loaded)}
    # cloned, because safetensors refuses tensors that share memory
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})


def unpack(lease: Lease, loaded: LoadedModel) -> Restored:
    """Returns the state of an earlier attempt at a job; empty if it belongs to another model or release."""
    if lease.checkpoint is None:
        return Restored()
    try:
        tensors = load(lease.checkpoint)
        if not torch.equal(tensors["origin"], _origin(loaded)):
            log.warning("checkpoint-of-another-model", job_id=lease.job.job_id, doing="starting from the beginning")
            return Restored()
        usage, seconds = Usage(*tensors["usage"].tolist()), float(tensors["seconds"])
    except (SafetensorError, KeyError) as error:
        log.warning(
            "checkpoint-unreadable", job_id=lease.job.job_id, error=str(error), doing="starting from the beginning"
        )
        return Restored()
    log.info("job-resumed", job_id=lease.job.job_id, evaluations=usage.evaluations, bytes=len(lease.checkpoint))
    state = {name: tensor.to(loaded.device) for name, tensor in within(tensors, "state").items()}
    return Restored(state=state, usage=usage, seconds=seconds)


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, store: Callable[[bytes], None], loaded: LoadedModel, *, seconds: float) -> None:
        """Constructs an empty collection.

        Args:
            store: Sends a checkpoint's bytes to the queue.
            loaded: The model of the run.
            seconds: Minimum time between two stored checkpoints.
        """
        self._store = store
        self._loaded = loaded
        self._seconds = seconds
        self._started = self._stored = time.monotonic()
        self._usage, self._begun, self._preparation = Usage(), Usage(), Usage()
        self._newest: Restored | None = None

    def begin(self, usage: Usage, earlier: float) -> None:
        """Resumes the accounting of an earlier attempt.

        Args:
            usage: Usage of the run's task, which grows with it; it starts with that of earlier attempts.
            earlier: Run time of earlier attempts, in seconds.
        """
        self._usage, self._begun = usage, replace(usage)
        self._started -= earlier

    @property
    def seconds(self) -> float:
        """Run time of the job: earlier attempts, each until its last checkpoint, and this one."""
        return time.monotonic() - self._started

    def note(self, event: events.Event) -> None:
        """Keeps a checkpoint, and stores it when it is due."""
        match event:
            case events.Prediction():
                self._preparation = _difference(self._usage, self._begun)
            case events.Checkpoint():
                # an attempt that resumes prepares again, so that this must not count twice
                usage = _difference(self._usage, self._preparation)
                self._newest = Restored(state=event.state, usage=usage, seconds=self.seconds)
                if time.monotonic() - self._stored >= self._seconds:
                    self.store_newest()

    def store_newest(self) -> None:
        """Stores the newest checkpoint, if it is not stored yet."""
        if self._newest is not None:
            self._stored = time.monotonic()
            self._store(pack(self._newest, self._loaded))
            self._newest = None


def _difference(usage: Usage, less: Usage) -> Usage:
    return Usage(*(one - other for one, other in zip(astuple(usage), astuple(less), strict=True)))


def _origin(loaded: LoadedModel) -> Tensor:
    """Returns a digest of the checkpoint's model and software: uint8 of shape (32,)."""
    text = f"{loaded.digest} {metadata.version('sagittal')}"
    return torch.frombuffer(bytearray(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8)

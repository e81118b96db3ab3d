"""A pass of a batch through a model, and the single copy by which the host reads its scores."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from sagittal.engine.composition import Part
from sagittal.engine.requests import Scores

TOP = -1
"""Target of a row that is scored for its top class."""


@dataclass(frozen=True, slots=True)
class Mode:
    """How a batch runs."""

    gradient: bool
    """Whether the gradient of each target score with respect to its input is computed."""
    reduced: bool
    """Whether the model runs in reduced precision."""


@dataclass(frozen=True, slots=True, eq=False)
class Passed:
    """Results of a pass, on the device."""

    probabilities: Tensor
    """Float32 of shape (n, classes)."""
    targets: Tensor
    """Float32 of shape (n,): probability of each row's target."""
    of_inputs: Tensor | None
    """Gradient of each target score with respect to its input, of the inputs' shape; None without gradient."""


Pass = Callable[[Tensor, Tensor, Mode], Passed]
"""Scores inputs (n, 3, height, width) for targets (n,), int64, each a class or `TOP`."""


class Slot(Protocol):
    """Memory for the inputs of a batch, and the pass that reads it."""

    @property
    def inputs(self) -> Tensor:
        """Float32 of shape (n, 3, height, width)."""
        ...

    @property
    def targets(self) -> Tensor:
        """Int64 of shape (n,): each a class or `TOP`."""
        ...

    def run(self) -> Passed:
        """Runs the pass; its results are valid until the next pass in the same memory."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class NewSlot:
    """Memory that is allocated for one batch."""

    inputs: Tensor
    targets: Tensor
    mode: Mode
    score: Pass

    def run(self) -> Passed:
        """Runs the pass."""
        return self.score(self.inputs, self.targets, self.mode)


@dataclass(slots=True, eq=False)
class Clock:
    """Measures a batch on its device: between two events on CUDA, which needs no synchronisation, and else by time."""

    device: torch.device
    _began: float = field(default_factory=time.perf_counter)
    _seconds: float = 0.0
    _events: tuple["torch.cuda.Event", "torch.cuda.Event"] | None = None

    def __post_init__(self) -> None:
        if self.device.type == "cuda":
            self._events = _event(), _event()
            self._events[0].record()

    def stop(self) -> None:
        """Marks the end of the batch, on the device."""
        if self._events is not None:
            self._events[1].record()
        else:
            self._seconds = time.perf_counter() - self._began

    def wait(self) -> float:
        """Waits for the end of the batch; returns its time in seconds."""
        if self._events is None:
            return self._seconds
        self._events[1].synchronize()
        return float(self._events[0].elapsed_time(self._events[1])) / 1e3


def _event() -> "torch.cuda.Event":
    # Threads that wait for it sleep.
    return torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]


@dataclass(slots=True, eq=False)
class Launched:
    """A batch that runs on the device. The host reads all its scores in one copy, when the batch has ended."""

    parts: Sequence[Part]
    gradients: Sequence[Tensor | None]
    """Gradient of each part with respect to its masks, on the device."""
    packed: Tensor
    """Float32 on the host, valid once the clock has stopped; see `pack`."""
    classes: int
    """Number of probabilities of each row in it; 0 if no part asks for them."""
    clock: Clock
    seconds: float = 0.0
    """Time of the batch on the device, known after `read`."""

    def read(self) -> list[Scores]:
        """Waits for the batch; returns the scores of each part."""
        self.seconds = self.clock.wait()
        rows = sum(part.rows for part in self.parts)
        targets, top_scores, top_classes = self.packed[: 3 * rows].view(3, rows).unbind(0)
        sums = self.packed[3 * rows : 3 * rows + len(self.parts)]
        probabilities = self.packed[3 * rows + len(self.parts) :].view(rows, self.classes)
        scores, row = [], 0
        for index, (part, gradient) in enumerate(zip(self.parts, self.gradients, strict=True)):
            own = slice(row, row + part.rows)
            every = probabilities[own] if part.request.probabilities else None
            finite = bool(torch.isfinite(targets[own]).all()) and bool(torch.isfinite(sums[index]))
            scores.append(Scores(targets[own], top_classes[own].long(), top_scores[own], gradient, every, finite))
            row += part.rows
        return scores


def pack(passed: Passed, rows: int, gradients: Sequence[Tensor | None], *, probabilities: bool) -> Tensor:
    """Returns everything that the host reads of a batch, as one tensor: float32 of shape (k,).

    These are the target scores, top scores and top classes of the rows, the sum of each part's gradient, which is
    finite if all its values are, and the probabilities if a part asks for them. Classes are exact up to 2^24.
    """
    top_scores, top_classes = passed.probabilities[:rows].max(-1)
    zero = passed.targets.new_zeros(())
    sums = [zero if gradient is None else gradient.sum() for gradient in gradients]
    read = [passed.targets[:rows], top_scores, top_classes.to(torch.float32), torch.stack(sums)]
    if probabilities:
        read.append(passed.probabilities[:rows].flatten())
    return torch.cat(read)


def to_host(packed: Tensor) -> Tensor:
    """Returns a tensor on the host; from CUDA the copy continues after the return, until the stream reaches it."""
    if packed.device.type != "cuda":
        return packed
    host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
    return host.copy_(packed, non_blocking=True)

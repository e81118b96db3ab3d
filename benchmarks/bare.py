"""The bare model, the baseline of the engine's measurements: alone, and between the engine's batches."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sagittal.engine import TorchEvaluator
from sagittal.engine.composition import Part
from sagittal.engine.requests import Inspect, Scores
from sagittal.engine.timing import Variant

RAW_SIZES = (4, 8, 16, 32)
"""Batch sizes tried for the bare model."""

ROUNDS = 2
"""Number of trials of each; the fastest counts."""

Clock = Callable[[], float]


def clock_of(device: torch.device) -> Clock:
    """Returns a clock in seconds: of the computing thread on a CPU, of the synchronised wall clock on CUDA."""
    if device.type == "cpu":
        return time.thread_time

    def wall() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return wall


@dataclass(slots=True, eq=False)
class Bare:
    """The bare model: forward, and forward with backward, on prepared inputs."""

    variant: Variant
    image: Tensor
    clock: Clock
    best: dict[bool, int] = field(default_factory=dict)
    """Fastest batch size without and with gradient."""

    def seconds(self, rows: int, *, gradient: bool) -> float:
        """Returns the time per image in a batch of `rows`."""
        inputs = self.image.repeat(rows, 1, 1, 1)
        started = self.clock()
        if gradient:
            self.variant.backward(inputs)
        else:
            self.variant.forward(inputs)
        return (self.clock() - started) / rows

    def find_best(self) -> None:
        """Finds the batch sizes at which the bare model is fastest."""
        for gradient in (False, True):
            times: dict[int, list[float]] = defaultdict(list)
            for _ in range(ROUNDS):
                for rows in RAW_SIZES:
                    times[rows].append(self.seconds(rows, gradient=gradient))
            self.best[gradient] = min(RAW_SIZES, key=lambda rows: min(times[rows]))


@dataclass(slots=True, eq=False)
class Beside:
    """An evaluator that runs the bare model on as many rows in between, and keeps both times apart."""

    evaluator: TorchEvaluator
    bare: Bare
    supports_gradients: bool = True
    rows: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})
    raw: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    ahead: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})
    """Rows evaluated since the bare model ran; negative if it ran first."""
    steps: int = 0
    spent: float = 0.0
    """Seconds of the bare model, to be subtracted from the whole."""

    def evaluate(self, parts: Sequence[Part]) -> list[Scores]:
        """Evaluates, then runs the bare model if it is due."""
        scores = self.evaluator.evaluate(parts)
        gradient = parts[0].request.gradient
        self.steps += 1
        self.rows[gradient] += sum(part.rows for part in parts)
        self.ahead[gradient] += sum(part.rows for part in parts)
        if self.ahead[gradient] > 0:
            self._run_bare(gradient)
        return scores

    def _run_bare(self, gradient: bool) -> None:
        started = self.bare.clock()
        self.raw[gradient].append(self.bare.seconds(self.bare.best[gradient], gradient=gradient))
        self.ahead[gradient] -= self.bare.best[gradient]
        self.spent += self.bare.clock() - started

    def inspect(self, request: Inspect) -> object:
        """Runs a call with the model."""
        return self.evaluator.inspect(request)

    def ideal(self) -> float:
        """Returns the seconds that the bare model needs for the same evaluations."""
        return sum(self.rows[mode] * statistics.mean(times) for mode, times in self.raw.items() if times)

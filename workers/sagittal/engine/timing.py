"""Brief time measurements of a model at load, to choose between variants; not for publication."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ROUNDS = 5
"""Maximum number of repetitions of a comparison."""

PATIENCE = 1.5
"""Time after which a comparison is not repeated, in seconds."""

Clock = Callable[[], float]
"""Returns a time in seconds."""


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """A way to run a model."""

    module: nn.Module
    """Maps (n, 3, height, width) to (n, classes); with frozen parameters."""
    channels_last: bool = False
    gradient: bool = True
    """Whether explanations use gradients, so that the backward pass counts too."""
    autocast: torch.dtype | None = None
    """Reduced precision; None for full precision."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the outputs without a gradient."""
        with torch.inference_mode():
            return self._outputs(self._laid_out(inputs))

    def backward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the outputs, and the gradient of each image's largest output with respect to the image."""
        with torch.enable_grad():
            leaf = self._laid_out(inputs).detach().requires_grad_()
            outputs = self._outputs(leaf)
            (gradient,) = torch.autograd.grad(outputs.amax(-1).sum(), leaf)
            return outputs.detach(), gradient

    def _outputs(self, inputs: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return self.module(inputs)  # type: ignore[no-any-return]

    def _laid_out(self, inputs: Tensor) -> Tensor:
        return inputs.contiguous(memory_format=torch.channels_last) if self.channels_last else inputs


def pass_seconds(variant: Variant, inputs: Tensor) -> float:
    """Returns the wall-clock time of a forward pass, and of a pass with gradient if there is one."""
    return _pass(variant, inputs, time.perf_counter)


def computing_seconds(variant: Variant, inputs: Tensor) -> float:
    """Returns the same in processor time if the model runs on a CPU.

    Processor time is for comparisons: on a busy machine, wall-clock time includes time in which other processes run.
    """
    return _pass(variant, inputs, time.process_time if inputs.device.type == "cpu" else time.perf_counter)


def _pass(variant: Variant, inputs: Tensor, clock: Clock) -> float:
    seconds = _seconds(lambda: variant.forward(inputs), inputs.device, clock)
    return seconds + (_seconds(lambda: variant.backward(inputs), inputs.device, clock) if variant.gradient else 0.0)


def measure_speedup(before: Variant, after: Variant, inputs: Tensor) -> float:
    """Returns the speed of `after` relative to `before`. Both run alternately, so that a busy machine slows both."""
    for variant in (before, after):
        pass_seconds(variant, inputs)  # warms up: a compiled model compiles
    fastest = [math.inf, math.inf]
    started = time.perf_counter()
    for _ in range(ROUNDS):
        for index, variant in enumerate((before, after)):
            fastest[index] = min(fastest[index], computing_seconds(variant, inputs))
        if time.perf_counter() - started > PATIENCE:
            break
    return fastest[0] / fastest[1]


def _seconds(work: Callable[[], object], device: torch.device, clock: Clock) -> float:
    settle(device)
    started = clock()
    work()
    settle(device)
    return max(clock() - started, 1e-9)


def settle(device: torch.device) -> None:
    """Waits for everything that a CUDA device was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

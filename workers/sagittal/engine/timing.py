"""How long a model takes, measured briefly when it is loaded: to choose between two ways, not to publish."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ROUNDS = 3
"""Most repetitions of a comparison."""

PATIENCE = 0.5
"""Time after which a comparison is repeated no more, in seconds."""


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """A way to run a model."""

    module: nn.Module
    """Maps (n, 3, height, width) to (n, classes); parameters frozen."""
    channels_last: bool = False
    gradient: bool = True
    """Whether explanations ask for gradients, so that the backward pass counts too."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the outputs without a gradient."""
        with torch.inference_mode():
            return self.module(self._laid_out(inputs))  # type: ignore[no-any-return]

    def backward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the outputs, and the gradient of each image's largest one with respect to the image."""
        with torch.enable_grad():
            leaf = self._laid_out(inputs).detach().requires_grad_()
            outputs = self.module(leaf)
            (gradient,) = torch.autograd.grad(outputs.amax(-1).sum(), leaf)
            return outputs.detach(), gradient

    def _laid_out(self, inputs: Tensor) -> Tensor:
        return inputs.contiguous(memory_format=torch.channels_last) if self.channels_last else inputs


def pass_seconds(variant: Variant, inputs: Tensor) -> float:
    """Returns the time of one forward pass, and of one with gradient where the variant has them."""
    seconds = _seconds(lambda: variant.forward(inputs), inputs.device)
    return seconds + (_seconds(lambda: variant.backward(inputs), inputs.device) if variant.gradient else 0.0)


def measure_speedup(before: Variant, after: Variant, inputs: Tensor) -> float:
    """Returns how many times as fast `after` is, both run in turn so that a busy machine slows both."""
    for variant in (before, after):
        variant.forward(inputs)
    fastest = [math.inf, math.inf]
    started = time.perf_counter()
    for _ in range(ROUNDS):
        for index, variant in enumerate((before, after)):
            fastest[index] = min(fastest[index], pass_seconds(variant, inputs))
        if time.perf_counter() - started > PATIENCE:
            break
    return fastest[0] / fastest[1]


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    _settle(device)
    started = time.perf_counter()
    work()
    _settle(device)
    return max(time.perf_counter() - started, 1e-9)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

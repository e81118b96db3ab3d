"""Activations that clamp, which the kernel of the convolution before applies while its result is in cache.

All that such an activation needs for its gradient is its output, since it is flat exactly where that is at a bound.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


@dataclass(frozen=True, slots=True)
class Clamp:
    """An activation that clamps: its bounds, None for none."""

    lowest: float
    highest: float | None = None

    @property
    def kernel(self) -> tuple[str, list[float]]:
        """The kernel's name for it, and its numbers."""
        return ("relu", []) if self.highest is None else ("hardtanh", [self.lowest, self.highest])

    def backward(self, gradient: Tensor, output: Tensor, *, in_place: bool) -> Tensor:
        """Returns the gradient before the activation, from the gradient after it and its output."""
        if self.highest is None:
            backward, bounds = torch.ops.aten.threshold_backward, [self.lowest]
        else:
            backward, bounds = torch.ops.aten.hardtanh_backward, [self.lowest, self.highest]
        if in_place:
            return backward.grad_input(gradient, output, *bounds, grad_input=gradient)  # type: ignore[no-any-return]
        return backward(gradient, output, *bounds)  # type: ignore[no-any-return]


_MODULES: dict[type[nn.Module], Callable[[Any], Clamp]] = {
    nn.ReLU: lambda _: Clamp(0.0),
    nn.ReLU6: lambda _: Clamp(0.0, 6.0),
    nn.Hardtanh: lambda module: Clamp(module.min_val, module.max_val),
}

_FUNCTIONS: dict[object, Clamp] = {
    F.relu: Clamp(0.0),
    torch.relu: Clamp(0.0),
    F.relu6: Clamp(0.0, 6.0),
    "relu": Clamp(0.0),
    "relu_": Clamp(0.0),
}
"""Functions, and methods by name."""


def clamp_of(node: fx.Node, module: nn.Module | None) -> Clamp | None:
    """Returns what a node of a graph, and the module that it calls, clamps its only input to; None for others."""
    if module is not None:
        known = _MODULES.get(type(module))
        return None if known is None else known(module)
    return _FUNCTIONS.get(node.target) if node.op in ("call_function", "call_method") else None

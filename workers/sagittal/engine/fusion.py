"""A convolution and the activation after it as one kernel, which applies the one while the other's result is in cache.

The kernel is oneDNN's, the one that torch.compile calls on CPUs. It comes without a gradient; all that one needs is the
output, since these activations are flat exactly where it is at a bound.
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

    def backward(self, gradient: Tensor, output: Tensor) -> Tensor:
        """Returns the gradient before the activation, from the gradient after it and its output."""
        if self.highest is None:
            return torch.ops.aten.threshold_backward(gradient, output, self.lowest)  # type: ignore[no-any-return]
        bounds = (self.lowest, self.highest)
        return torch.ops.aten.hardtanh_backward(gradient, output, *bounds)  # type: ignore[no-any-return]


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


def clamp_of(node: fx.Node, modules: dict[str, nn.Module]) -> Clamp | None:
    """Returns what a node of a graph clamps its only input to; None where it does something else."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        known = _MODULES.get(type(module))
        return None if known is None else known(module)
    return _FUNCTIONS.get(node.target) if node.op in ("call_function", "call_method") else None


class ClampedConvolution(nn.Module):
    """A frozen convolution with a clamp on its output."""

    def __init__(self, convolution: nn.Conv2d, clamp: Clamp) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.geometry = _Geometry(
            list(convolution.stride),
            [int(side) for side in convolution.padding],
            list(convolution.dilation),
            convolution.groups,
        )
        self.clamp = clamp

    def forward(self, images: Tensor) -> Tensor:
        """Returns the clamped convolution of (n, channels, height, width)."""
        return _Clamped.apply(images, self.weight, self.bias, self.geometry, self.clamp)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class _Geometry:
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


class _Clamped(torch.autograd.Function):
    """The kernel, and its gradient by the input alone: the weights are frozen."""

    @staticmethod
    def forward(
        context: Any, images: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry, clamp: Clamp
    ) -> Tensor:
        where = (geometry.padding, geometry.stride, geometry.dilation, geometry.groups)
        output = torch.ops.mkldnn._convolution_pointwise(images, weight, bias, *where, *clamp.kernel, "")
        context.save_for_backward(images, weight, output)
        context.how = (geometry, clamp)
        return output  # type: ignore[no-any-return]

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, output = context.saved_tensors
        geometry, clamp = context.how
        before = clamp.backward(gradient, output)
        where = (geometry.stride, geometry.padding, geometry.dilation, False, [0, 0], geometry.groups)
        wanted = [True, False, False]
        by_images, _, _ = torch.ops.aten.convolution_backward(before, images, weight, None, *where, wanted)
        return by_images, None, None, None, None

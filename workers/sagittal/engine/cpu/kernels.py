"""Layers of models whose weights stay as they are, run straight by the kernels that CPUs have for them.

The kernels are oneDNN's, those that torch.compile calls. Weights are laid out once, as they want them, not at every
call, and what is added to the output and a clamp on it are part of the kernel. They come without a gradient; that by
the images is a convolution too, and runs on the same kernels. What torch has for it is slower: small batches on one
thread get another kernel for convolutions of single pixels, and an image's three channels cost as much as sixteen.

Linear layers are run so that a row's result depends as little as can be on the number of rows. Whether it does on this
machine is measured with the whole model; see `sagittal.models.row_equality`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


@dataclass(frozen=True, slots=True)
class Clamp:
    """An activation that clamps: its bounds, None for none.

    The kernel of the convolution before applies it while the result is in cache. For the gradient its output is enough,
    since it is flat exactly where the output is at a bound.
    """

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


FEW_CHANNELS = 16
"""Numbers that kernels compute at a time: of fewer channels, as images have, they compute as many all the same."""

WHOLE_COLUMNS = 16
"""Products have a multiple of this many columns, a cache line of numbers: kernels treat columns beyond whole vectors in
another way, and so round otherwise."""

_NO_ACTIVATION: tuple[str, list[float]] = ("none", [])


def freezable(module: nn.Module | None) -> nn.Conv2d | None:
    """Returns a module that is a convolution which a frozen one can take the place of; None for others."""
    if type(module) is not nn.Conv2d or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    single = module.weight.dtype == torch.float32
    return module if single and torch.backends.mkldnn.is_available() else None  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a convolution goes over images: rows and columns of each."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


class Kernel:
    """A convolution without a gradient, its weights laid out at the first call.

    Attributes:
        bytes: Memory that its weights take.
    """

    def __init__(self, weight: Tensor, geometry: Geometry) -> None:
        """Lays out nothing yet: the layout depends on the images."""
        self.bytes = weight.nbytes
        self._weight = weight
        self._where = (geometry.padding, geometry.stride, geometry.dilation, geometry.groups)
        self._laid_out = False

    def __call__(
        self, images: Tensor, bias: Tensor | None = None, activation: tuple[str, list[float]] = _NO_ACTIVATION
    ) -> Tensor:
        """Returns the convolution of (n, channels, height, width)."""
        self._lay_out(images)
        run = torch.ops.mkldnn._convolution_pointwise.default
        return run(images, self._weight, bias, *self._where, *activation, "")  # type: ignore[no-any-return]

    def plus(self, other: Tensor, images: Tensor, bias: Tensor | None, *, rectified: bool) -> Tensor:
        """Returns the convolution plus a tensor of its shape; what is below zero becomes zero where that is asked."""
        self._lay_out(images)
        run = torch.ops.mkldnn._convolution_pointwise.binary
        activation = "relu" if rectified else None
        return run(images, other, self._weight, bias, *self._where, "add", None, activation, [], "")  # type: ignore[no-any-return]

    def _lay_out(self, images: Tensor) -> None:
        if not self._laid_out:
            # Outside inference mode, since requests with gradient use it too.
            with torch.inference_mode(False), torch.no_grad():
                lay_out = torch.ops.mkldnn._reorder_convolution_weight
                self._weight = lay_out(self._weight.detach(), *self._where, list(images.shape))
                self._laid_out = True


class FrozenConvolution(nn.Module):
    """A convolution on a CPU whose weights do not change, with a clamp on its output or without.

    Attributes:
        adds: Whether another tensor is added before the clamp, which is at zero or none then.
    """

    def __init__(self, convolution: nn.Conv2d, clamp: Clamp | None = None, *, adds: bool = False) -> None:
        """Takes the weights of a convolution that is freezable."""
        super().__init__()
        self.adds = adds
        self.weight, self.bias = convolution.weight, convolution.bias
        self.geometry = Geometry(
            list(convolution.stride),
            [int(side) for side in convolution.padding],
            list(convolution.dilation),
            convolution.groups,
        )
        self.clamp = clamp
        self._kernel: Kernel | None = None
        self._back: Back | None = None

    def forward(self, images: Tensor, other: Tensor | None = None) -> Tensor:
        """Returns the clamped convolution of (n, channels, height, width), `other` added before where it adds."""
        return _in_turn(images, other, [self])

    def run(self, images: Tensor, other: Tensor | None) -> Tensor:
        """Returns the same, without a gradient."""
        if self._kernel is None:
            self._kernel = Kernel(self.weight, self.geometry)
        if self.adds and other is not None:
            return self._kernel.plus(other, images, self.bias, rectified=self.clamp is not None)
        return self._kernel(images, self.bias, _NO_ACTIVATION if self.clamp is None else self.clamp.kernel)

    def plain(self, images: Tensor, other: Tensor | None) -> Tensor:
        """Returns the same by torch's own functions."""
        where = (self.geometry.stride, self.geometry.padding, self.geometry.dilation, self.geometry.groups)
        output = F.conv2d(images, self.weight, self.bias, *where)
        output = output + other if self.adds and other is not None else output
        return output if self.clamp is None else output.clamp(self.clamp.lowest, self.clamp.highest)

    def before_clamp(self, gradient: Tensor, output: Tensor | None, *, owned: bool) -> Tensor:
        """Returns the gradient before the clamp, given that of the output.

        Args:
            gradient: Of the output's shape.
            output: As it was; a layer without a clamp needs none.
            owned: Whether nothing else sees the gradient, which may then be changed in place.
        """
        if self.clamp is None or output is None:
            return gradient
        return self.clamp.backward(gradient, output, in_place=owned)

    def back(self, gradient: Tensor, images: Tensor) -> Tensor:
        """Returns the gradient with respect to the images (n, channels, height, width), given that before the clamp."""
        if self._back is None:
            self._back = back_of(self.weight, self.geometry)
        return self._back(gradient, images)

    @property
    def laid_out_bytes(self) -> int:
        """Memory of weights beside its parameters, for the ways that it has been run so far."""
        return sum(kernel.bytes for kernel in (self._kernel, self._back and self._back.kernel) if kernel)

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a copy is made of: without weights that are laid out, which cannot be copied."""
        return {**self.__dict__, "_kernel": None, "_back": None}


class FrozenChain(nn.Module):
    """Frozen convolutions one after another: to what computes gradients they are one layer, which costs once.

    The last one may add another tensor.
    """

    def __init__(self, layers: Sequence[FrozenConvolution]) -> None:
        """Takes the layers in the order in which they run."""
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, images: Tensor, other: Tensor | None = None) -> Tensor:
        """Returns what the last layer makes of (n, channels, height, width), and of what it adds."""
        return _in_turn(images, other, [*self.layers])


def _in_turn(images: Tensor, other: Tensor | None, layers: Sequence[FrozenConvolution]) -> Tensor:
    """Returns what the last layer makes of images, and of what it adds."""
    compiling = torch.compiler.is_compiling()
    differentiable = images.requires_grad or (other is not None and other.requires_grad)
    if not compiling and differentiable and torch.is_grad_enabled():
        return _Differentiable.apply(images, other, layers)  # type: ignore[no-any-return]
    for layer in layers:
        # A compiler fuses and lays out by itself.
        images = layer.plain(images, other) if compiling else layer.run(images, other)
    return images


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, images: Tensor, other: Tensor | None, layers: Sequence[FrozenConvolution]) -> Tensor:
        passed = [images]
        for layer in layers:
            passed.append(layer.run(passed[-1], other))
        # Where no clamp needs it, what leaves may be changed by whoever takes it.
        context.save_for_backward(*passed[:-1], None if layers[-1].clamp is None else passed[-1])
        context.layers = layers
        return passed[-1]

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        passed, last = context.saved_tensors, len(context.layers) - 1
        of_sum = context.layers[last].before_clamp(gradient, passed[last + 1], owned=False)
        gradient = context.layers[last].back(of_sum, passed[last])
        for index in reversed(range(last)):
            layer = context.layers[index]
            # Nothing else sees the gradients between the layers.
            gradient = layer.back(layer.before_clamp(gradient, passed[index + 1], owned=True), passed[index])
        return gradient, of_sum if context.layers[last].adds else None, None


class SteadyLinear(nn.Module):
    """A linear layer on a CPU whose result for a row does not depend on the number of rows on most machines.

    Products choose their kernel by the number of rows, and kernels sum in different orders. They do less so where the
    rows are columns, in multiples of `WHOLE_COLUMNS`. For the gradient its weights are laid out the other way, once:
    few rows are soon multiplied, and fetching weights line by line takes most of their time.
    """

    def __init__(self, linear: nn.Linear) -> None:
        """Takes the weights of a linear layer."""
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self._turned: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Returns (n, outputs) of (n, inputs); other shapes go the usual way."""
        if features.ndim != 2 or torch.compiler.is_compiling():
            return F.linear(features, self.weight, self.bias)
        if features.requires_grad and torch.is_grad_enabled():
            return _DifferentiableRows.apply(features, self)  # type: ignore[no-any-return]
        return self.run(features)

    def run(self, features: Tensor) -> Tensor:
        """Returns the same for rows, without a gradient."""
        columns = _columns(features)
        product = self.weight @ columns if self.bias is None else torch.addmm(self.bias[:, None], self.weight, columns)
        return product[:, : len(features)].t().clone(memory_format=torch.contiguous_format)

    def back(self, gradient: Tensor) -> Tensor:
        """Returns the gradient with respect to the features, given that with respect to the outputs."""
        if self._turned is None:
            with torch.inference_mode(False), torch.no_grad():
                self._turned = self.weight.t().contiguous()
        return (self._turned @ _columns(gradient))[:, : len(gradient)].t()

    @property
    def laid_out_bytes(self) -> int:
        """Memory of weights beside its parameters, for the ways that it has been run so far."""
        return 0 if self._turned is None else self._turned.nbytes

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a copy is made of: without weights that are laid out."""
        return {**self.__dict__, "_turned": None}


def _columns(rows: Tensor) -> Tensor:
    """Returns rows as columns, with zeros for the columns that are missing to whole ones."""
    return F.pad(rows, (0, 0, 0, -len(rows) % WHOLE_COLUMNS)).t()


class _DifferentiableRows(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, features: Tensor, linear: SteadyLinear) -> Tensor:
        context.linear = linear
        return linear.run(features)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return context.linear.back(gradient), None


class Back:
    """From the gradient of a convolution's output to that of its images, by torch's own.

    Attributes:
        kernel: What runs instead of torch's own; None for nothing.
    """

    def __init__(self, weight: Tensor, geometry: Geometry) -> None:
        """Keeps both."""
        self.weight, self.geometry = weight, geometry
        self.kernel: Kernel | None = None

    def __call__(self, gradient: Tensor, images: Tensor) -> Tensor:
        """Returns the gradient of (n, channels, height, width)."""
        how = (self.geometry.stride, self.geometry.padding, self.geometry.dilation, False, [0, 0], self.geometry.groups)
        wanted = [True, False, False]
        of_images, _, _ = torch.ops.aten.convolution_backward(gradient, images, self.weight, None, *how, wanted)
        return of_images  # type: ignore[no-any-return]


class Turned(Back):
    """For a stride of 1: a convolution with the kernel turned round, from each output channel to each input's."""

    def __init__(self, weight: Tensor, geometry: Geometry) -> None:
        """Turns the kernel."""
        super().__init__(weight, geometry)
        outputs, inputs, *sides = weight.shape
        groups = geometry.groups
        turned = weight.reshape(groups, outputs // groups, inputs, *sides).transpose(1, 2).flip(-2, -1)
        back = Geometry([1, 1], _turned_padding(sides, geometry), geometry.dilation, groups)
        self.kernel: Kernel = Kernel(turned.reshape(groups * inputs, outputs // groups, *sides), back)

    def __call__(self, gradient: Tensor, images: Tensor) -> Tensor:
        """Returns the gradient of (n, channels, height, width)."""
        return self.kernel(gradient)


class Spread(Back):
    """For few channels and a stride: a convolution to all pixels of a step at once, as channels that are then spread.

    Pixel `i * stride + rest` of the padded images comes of outputs `i`, `i - 1`, ..., by the kernel's numbers at
    `rest`, `rest + stride`, ...
    """

    def __init__(self, weight: Tensor, geometry: Geometry) -> None:
        """Takes the kernel apart."""
        super().__init__(weight, geometry)
        outputs, inputs, *sides = weight.shape
        step = geometry.stride[0]
        rows, columns = (-(-side // step) for side in sides)
        whole = F.pad(weight, (0, columns * step - sides[1], 0, rows * step - sides[0]))
        apart = whole.reshape(outputs, inputs, rows, step, columns, step).permute(1, 3, 5, 0, 2, 4).flip(-2, -1)
        back = Geometry([1, 1], [rows - 1, columns - 1], [1, 1], 1)
        self.kernel: Kernel = Kernel(apart.reshape(inputs * step * step, outputs, rows, columns), back)

    def __call__(self, gradient: Tensor, images: Tensor) -> Tensor:
        """Returns the gradient of (n, channels, height, width)."""
        step, (above, left), (height, width) = self.geometry.stride[0], self.geometry.padding, images.shape[-2:]
        # As pixel_shuffle does, at a third of its time.
        steps = self.kernel(gradient)
        rows, _, *places = steps.shape
        apart = steps.reshape(rows, -1, step, step, *places).permute(0, 1, 4, 2, 5, 3)
        padded = apart.flatten(4, 5).flatten(2, 3)
        # Pixels that the last step did not reach have no part in the output.
        below, beside = above + height - padded.shape[-2], left + width - padded.shape[-1]
        if below > 0 or beside > 0:
            padded = F.pad(padded, (0, max(0, beside), 0, max(0, below)))
        return padded[..., above : above + height, left : left + width]


def back_of(weight: Tensor, geometry: Geometry) -> Back:
    """Returns the fastest way back that a convolution has."""
    weight = weight.detach()
    sides, strides = weight.shape[-2:], set(geometry.stride)
    if strides == {1} and min(_turned_padding(sides, geometry)) >= 0:
        return Turned(weight, geometry)
    few = geometry.groups == 1 and weight.shape[1] < FEW_CHANNELS
    if few and len(strides) == 1 and geometry.dilation == [1, 1]:
        return Spread(weight, geometry)
    return Back(weight, geometry)


def _turned_padding(sides: Any, geometry: Geometry) -> list[int]:
    return [
        dilation * (side - 1) - padding
        for side, padding, dilation in zip(sides, geometry.padding, geometry.dilation, strict=True)
    ]

"""Layers with constant weights that call the kernels of the CPU directly.

The kernels are oneDNN's, the same that torch.compile uses. Weights are converted to the kernel's layout once instead of
at every call, and an addition to the output and a clamp are part of the kernel. The kernels have no gradient; the
gradient by the images is also a convolution and runs on the same kernels. PyTorch's own path is slower: it uses another
kernel for 1x1 convolutions of small batches on one thread, and an image's three channels cost as much as sixteen.

Linear layers are run so that a row's result depends as little as possible on the number of rows. Whether it does on
this machine is measured with the whole model; see `sagittal.models.row_equality`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


@dataclass(frozen=True, slots=True)
class Clamp:
    """A clamping activation: its bounds, None for none.

    The kernel of the preceding convolution applies it while the result is in cache. Its gradient depends only on its
    output, because it is flat exactly where the output is at a bound.
    """

    lowest: float
    highest: float | None = None

    @property
    def kernel(self) -> tuple[str, list[float]]:
        """The kernel's name of the activation, and its numbers."""
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
    """Returns the clamp that a node of a graph, or the module it calls, applies to its only input; None for others."""
    if module is not None:
        known = _MODULES.get(type(module))
        return None if known is None else known(module)
    return _FUNCTIONS.get(node.target) if node.op in ("call_function", "call_method") else None


FEW_CHANNELS = 16
"""Channels that kernels compute at a time: fewer channels, such as those of images, cost as much."""

WHOLE_COLUMNS = 16
"""Columns of products are padded to a multiple of this, a cache line: kernels treat the rest after whole vectors
differently, and round differently."""

_NO_ACTIVATION: tuple[str, list[float]] = ("none", [])


def freezable(module: nn.Module | None) -> nn.Conv2d | None:
    """Returns a module that is a convolution which a frozen one can replace; None for others."""
    if type(module) is not nn.Conv2d or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    single = module.weight.dtype == torch.float32
    return module if single and torch.backends.mkldnn.is_available() else None  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Geometry of a convolution: rows and columns of each parameter."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


class Kernel:
    """A convolution without gradient, with its weights converted at the first call.

    Attributes:
        bytes: Memory of the converted weights.
    """

    def __init__(self, weight: Tensor, geometry: Geometry) -> None:
        """Converts nothing yet: the layout depends on the images."""
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
        """Returns the convolution plus a tensor of its shape, rectified if requested."""
        self._lay_out(images)
        run = torch.ops.mkldnn._convolution_pointwise.binary
        activation = "relu" if rectified else None
        return run(images, other, self._weight, bias, *self._where, "add", None, activation, [], "")  # type: ignore[no-any-return]

    def _lay_out(self, images: Tensor) -> None:
        if not self._laid_out:
            # Outside inference mode, because requests with gradient use it too.
            with torch.inference_mode(False), torch.no_grad():
                lay_out = torch.ops.mkldnn._reorder_convolution_weight
                self._weight = lay_out(self._weight.detach(), *self._where, list(images.shape))
                self._laid_out = True


class FrozenConvolution(nn.Module):
    """A convolution on a CPU with constant weights, with an optional clamp on its output.

    Attributes:
        adds: Whether another tensor is added before the clamp, which is then at zero or absent.
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
        """Returns the clamped convolution of (n, channels, height, width); `other` is added first if the layer adds."""
        return _in_turn(images, other, [self])

    def run(self, images: Tensor, other: Tensor | None) -> Tensor:
        """Returns the same, without gradient."""
        if self._kernel is None:
            self._kernel = Kernel(self.weight, self.geometry)
        if self.adds and other is not None:
            return self._kernel.plus(other, images, self.bias, rectified=self.clamp is not None)
        return self._kernel(images, self.bias, _NO_ACTIVATION if self.clamp is None else self.clamp.kernel)

    def plain(self, images: Tensor, other: Tensor | None) -> Tensor:
        """Returns the same by PyTorch's functions."""
        where = (self.geometry.stride, self.geometry.padding, self.geometry.dilation, self.geometry.groups)
        output = F.conv2d(images, self.weight, self.bias, *where)
        output = output + other if self.adds and other is not None else output
        return output if self.clamp is None else output.clamp(self.clamp.lowest, self.clamp.highest)

    def before_clamp(self, gradient: Tensor, output: Tensor | None, *, owned: bool) -> Tensor:
        """Returns the gradient before the clamp, given the gradient of the output.

        Args:
            gradient: Of the output's shape.
            output: The layer's output; not needed without a clamp.
            owned: Whether nothing else uses the gradient, which may then be changed in place.
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
        """Memory of converted weights in addition to its parameters, for the modes it has run in so far."""
        return sum(kernel.bytes for kernel in (self._kernel, self._back and self._back.kernel) if kernel)

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state of a copy, without converted weights, which cannot be copied."""
        return {**self.__dict__, "_kernel": None, "_back": None}


class FrozenChain(nn.Module):
    """Frozen convolutions in sequence: autograd sees one layer, which saves overhead.

    The last one may add another tensor.
    """

    def __init__(self, layers: Sequence[FrozenConvolution]) -> None:
        """Takes the layers in the order in which they run."""
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, images: Tensor, other: Tensor | None = None) -> Tensor:
        """Returns the output of the last layer for (n, channels, height, width) and the tensor it adds."""
        return _in_turn(images, other, [*self.layers])


def _in_turn(images: Tensor, other: Tensor | None, layers: Sequence[FrozenConvolution]) -> Tensor:
    """Returns the output of the last layer for images and the tensor it adds."""
    compiling = torch.compiler.is_compiling()
    differentiable = images.requires_grad or (other is not None and other.requires_grad)
    if not compiling and differentiable and torch.is_grad_enabled():
        return _Differentiable.apply(images, other, layers)  # type: ignore[no-any-return]
    for layer in layers:
        # A compiler does its own fusion and layout.
        images = layer.plain(images, other) if compiling else layer.run(images, other)
    return images


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, images: Tensor, other: Tensor | None, layers: Sequence[FrozenConvolution]) -> Tensor:
        passed = [images]
        for layer in layers:
            passed.append(layer.run(passed[-1], other))
        # If no clamp needs the output, its receiver may change it in place.
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
            # Nothing else uses the gradients between the layers.
            gradient = layer.back(layer.before_clamp(gradient, passed[index + 1], owned=True), passed[index])
        return gradient, of_sum if context.layers[last].adds else None, None


class SteadyLinear(nn.Module):
    """A linear layer on a CPU whose result for a row does not depend on the number of rows, on most machines.

    Products choose their kernel by the number of rows, and kernels sum in different orders. They do so less if the rows
    are columns, in multiples of `WHOLE_COLUMNS`. For the gradient, the weights are transposed once: products of few
    rows are fast, and reading the weights line by line takes most of the time.
    """

    def __init__(self, linear: nn.Linear) -> None:
        """Takes the weights of a linear layer."""
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self._turned: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Returns (n, outputs) for (n, inputs); other shapes use PyTorch's function."""
        if features.ndim != 2 or torch.compiler.is_compiling():
            return F.linear(features, self.weight, self.bias)
        if features.requires_grad and torch.is_grad_enabled():
            return _DifferentiableRows.apply(features, self)  # type: ignore[no-any-return]
        return self.run(features)

    def run(self, features: Tensor) -> Tensor:
        """Returns the same for rows, without gradient."""
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
        """Memory of converted weights in addition to its parameters, for the modes it has run in so far."""
        return 0 if self._turned is None else self._turned.nbytes

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state of a copy, without converted weights."""
        return {**self.__dict__, "_turned": None}


def _columns(rows: Tensor) -> Tensor:
    """Returns rows as columns, padded with zeros to whole columns."""
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
    """The gradient of a convolution by its images, given that of its output; by PyTorch's function.

    Attributes:
        kernel: The kernel that replaces PyTorch's function; None for none.
    """

    def __init__(self, weight: Tensor, geometry: Geometry) -> None:
        """Stores both."""
        self.weight, self.geometry = weight, geometry
        self.kernel: Kernel | None = None

    def __call__(self, gradient: Tensor, images: Tensor) -> Tensor:
        """Returns the gradient of (n, channels, height, width)."""
        how = (self.geometry.stride, self.geometry.padding, self.geometry.dilation, False, [0, 0], self.geometry.groups)
        wanted = [True, False, False]
        of_images, _, _ = torch.ops.aten.convolution_backward(gradient, images, self.weight, None, *how, wanted)
        return of_images  # type: ignore[no-any-return]


class Turned(Back):
    """For a stride of 1: a convolution with the flipped kernel, from each output channel to each input channel."""

    def __init__(self, weight: Tensor, geometry: Geometry) -> None:
        """Flips the kernel."""
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

    Pixel `i * stride + rest` of the padded images depends on outputs `i`, `i - 1`, ..., by the kernel's elements at
    `rest`, `rest + stride`, ...
    """

    def __init__(self, weight: Tensor, geometry: Geometry) -> None:
        """Splits the kernel."""
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
        # Equals pixel_shuffle, in a third of its time.
        steps = self.kernel(gradient)
        rows, _, *places = steps.shape
        apart = steps.reshape(rows, -1, step, step, *places).permute(0, 1, 4, 2, 5, 3)
        padded = apart.flatten(4, 5).flatten(2, 3)
        # Pixels beyond the last step do not affect the output.
        below, beside = above + height - padded.shape[-2], left + width - padded.shape[-1]
        if below > 0 or beside > 0:
            padded = F.pad(padded, (0, max(0, beside), 0, max(0, below)))
        return padded[..., above : above + height, left : left + width]


def back_of(weight: Tensor, geometry: Geometry) -> Back:
    """Returns the fastest gradient of a convolution by its images."""
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

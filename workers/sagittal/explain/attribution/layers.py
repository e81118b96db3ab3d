"""Layers of a model with spatial positions, in any order of dimensions.

Convolutional networks return (n, channels, rows, columns), some transformers (n, rows, columns, channels), others a
list of tokens (n, tokens, channels) that may begin with a class token. Methods see all of them as channels on a grid.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from sagittal.engine.requests import ModelView
from sagittal.explain.parameters import InvalidParameter

LISTED = 24
"""Maximum number of layers that an error lists, the last ones."""


class Unsupported(Exception):
    """The method is not defined for this model; the message names alternatives."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Arrangement of spatial positions in a layer's output."""

    rows: int
    columns: int
    axis: int
    """Dimension of the channels: 1, or the last one."""
    skipped: int = 0
    """Number of tokens before those of the image: 1 if there is a class token."""

    def to_channels(self, output: Tensor) -> Tensor:
        """Returns the output as (n, channels, rows, columns), without tokens that have no position."""
        if self.axis == 1:
            return output
        places = output[:, self.skipped :].flatten(1, -2) if output.ndim == 3 else output.flatten(1, 2)
        return places.transpose(1, 2).reshape(len(output), -1, self.rows, self.columns)

    def from_channels(self, channels: Tensor, output: Tensor) -> Tensor:
        """Returns the result of `to_channels` in the shape of the original output."""
        if self.axis == 1:
            return channels
        places = channels.flatten(2).transpose(1, 2)
        return torch.cat([output[:, : self.skipped], places], 1) if output.ndim == 3 else places.reshape(output.shape)


@dataclass(frozen=True, slots=True)
class SpatialLayer:
    """A layer with a spatial output."""

    name: str
    layout: Layout
    reached: bool
    """Whether the class depends on its positions: after the last attention, some models read only the class token."""


def layout_of(shape: Sequence[int], size: tuple[int, int]) -> Layout | None:
    """Returns the layout of an output of this shape for an image of `size`; None if it has no positions."""
    if len(shape) == 4:
        if _is_grid(shape[2], shape[3], size):
            return Layout(shape[2], shape[3], axis=1)
        return Layout(shape[1], shape[2], axis=3) if _is_grid(shape[1], shape[2], size) else None
    if len(shape) == 3:
        return next((found for skipped in (0, 1) if (found := _tokens(shape[1], skipped, size))), None)
    return None


def locate(view: ModelView, name: str | None) -> SpatialLayer:
    """Returns the layer of that name, or for None the last layer whose positions affect the class.

    This evaluates the model once, with gradient.

    Raises:
        InvalidParameter: no layer has the name, or its output is not spatial.
        Unsupported: no layer has a spatial output, or the model returns no gradient.
    """
    layers = spatial_layers(view)
    if not layers:
        raise Unsupported("the model has no layer with a spatial output; use a method that needs none, such as igos++")
    reached = [layer for layer in layers.values() if layer.reached]
    if name is None:
        return reached[-1] if reached else list(layers.values())[-1]
    if name not in layers:
        raise InvalidParameter("layer", f"{_why_not(view.module, name)}; give one of {_listed(reached)}")
    if reached and not layers[name].reached:
        raise InvalidParameter(
            "layer", f"{name!r} does not affect the class by its positions; give one of {_listed(reached)}"
        )
    return layers[name]


def spatial_layers(view: ModelView) -> Mapping[str, SpatialLayer]:
    """Returns the layers with a spatial output by name, in order of execution; one evaluation with gradient."""
    image = model_input(view)
    outputs: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., Any]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> object:
            if not isinstance(output, Tensor) or not output.requires_grad:
                return None
            outputs.pop(name, None)
            outputs[name] = output
            return output.clone()  # later operations may work in place, and would change the recorded output

        return hook

    with hooked({layer: note(name) for name, layer in view.module.named_modules() if name and _can_be_seen(layer)}):
        logits = view.module(image)
    size = (image.shape[-2], image.shape[-1])
    layouts = {name: found for name, output in outputs.items() if (found := layout_of(output.shape, size))}
    gradients = _gradients(logits[0, target_of(view)], [outputs[name] for name in layouts])
    return {
        name: SpatialLayer(name, layout, gradient is not None and bool(layout.to_channels(gradient).any()))
        for (name, layout), gradient in zip(layouts.items(), gradients, strict=True)
    }


def model_input(view: ModelView) -> Tensor:
    """Returns the image as a batch of one, on the model's device, with gradients enabled."""
    image = view.subject.image
    weights = next(chain(view.module.parameters(), view.module.buffers()), image)
    return image.detach().to(weights.device).unsqueeze(0).clone().requires_grad_()


def target_of(view: ModelView) -> int:
    """Returns the explained class."""
    if view.subject.target is None:
        raise ValueError("the problem has no target: call prepare() first")
    return view.subject.target


@contextmanager
def hooked(hooks: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Registers forward hooks while the block runs."""
    handles = [layer.register_forward_hook(hook) for layer, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _can_be_seen(layer: nn.Module) -> bool:
    """Returns whether a layer accepts hooks; compiled layers do not."""
    return not isinstance(layer, torch.jit.ScriptModule)


def _gradients(score: Tensor, outputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
    if not score.requires_grad:
        raise Unsupported("the model returns no gradients; use a method that needs none, such as rise or occlusion")
    return torch.autograd.grad(score, outputs, allow_unused=True) if outputs else ()


def _is_grid(rows: int, columns: int, size: tuple[int, int]) -> bool:
    """Returns whether a grid has the proportions of the image, to within a cell."""
    height, width = size
    return rows * columns > 1 and abs(rows * width - columns * height) < max(height, width)


def _tokens(tokens: int, skipped: int, size: tuple[int, int]) -> Layout | None:
    places = tokens - skipped
    rows = max(1, round(math.sqrt(max(places, 1) * size[0] / size[1])))
    if places % rows or not _is_grid(rows, places // rows, size):
        return None
    return Layout(rows, places // rows, axis=2, skipped=skipped)


def _why_not(module: nn.Module, name: str) -> str:
    if name in dict(module.named_modules()):
        return f"the output of {name!r} is not spatial"
    return f"the model has no layer {name!r}"


def _listed(layers: Sequence[SpatialLayer]) -> str:
    names = [layer.name for layer in layers[-LISTED:]]
    return ("..., " if len(layers) > LISTED else "") + ", ".join(names)


def heatmap(evidence: Tensor, strength: float) -> Tensor:
    """Returns the positive part of `evidence`, scaled so that its peak is `strength`, cut to [0, 1].

    A heatmap stretched to its own extremes makes an empty explanation look like a full one. Here the shape of a heatmap
    is relative to its peak, and the peak is the strength of the evidence: a share that each method defines, from 0 for
    no evidence to 1 if the evidence accounts for the whole score.

    Args:
        evidence: Shape (height, width), any units; negative evidence is not shown.
        strength: Share of the score that the evidence accounts for.
    """
    positive = evidence.clamp(min=0)
    peak = float(positive.max())
    if peak <= 0:
        return positive
    return positive / peak * min(1.0, max(0.0, strength))

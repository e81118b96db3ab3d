"""Grad-CAM: activations of a layer, weighted by their mean gradients (Selvaraju et al., ICCV 2017).

The computation is captum's. This module arranges the layer's output as captum expects it, so that transformers work
too.

The gradient is that of the model's output for the class before the softmax, as in the paper: the gradient of the
softmax vanishes if the model is confident, and is negative for the evidence of every other class. If the model returns
probabilities, their gradient is used.

The peak of the heatmap is `1 - exp(-e)`, where `e` is the sum of the positive part of the map. For logits it is, to
first order, the share by which the odds of the class fall if that evidence is removed. (Common implementations divide
by the maximum, so that an image without evidence gets a full heatmap.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from sagittal.engine.requests import ModelView, OutOfBudget
from sagittal.explain.attribution.layers import (
    Layout,
    SpatialLayer,
    heatmap,
    hooked,
    layout_of,
    locate,
    model_input,
    target_of,
)
from sagittal.explain.events import Progress, SaliencyMask, Truncated
from sagittal.explain.explainer import Explainer, Needs
from sagittal.explain.parameters import parameter
from sagittal.explain.problem import Problem
from sagittal.explain.steps import Steps


@dataclass(frozen=True, slots=True, kw_only=True)
class GradCAM(Explainer):
    """The evidence for the class in the features of a layer; a heatmap at the layer's resolution."""

    needs: ClassVar[Needs] = Needs.GRADIENTS | Needs.SPATIAL_LAYER
    summary: ClassVar[str] = "Activations of one layer, weighted by how much the class depends on each channel"

    layer: str | None = parameter(None, "Name of the layer; by default the last one with a spatial output")

    hides: ClassVar[bool] = False

    def try_on(self, view: ModelView) -> None:
        """Raises Unsupported if the layer yields no map."""
        class_activation_map(view, locate(view, self.layer))

    def explain(self, problem: Problem) -> Steps[None]:
        """Yields the heatmap, with the rows and columns of the layer."""
        try:
            evidence = yield from self._evidence(problem)
        except OutOfBudget as spent:
            yield Truncated(spent.limit)
            yield SaliencyMask(problem.full(1, 0.0))
            return
        yield Progress(1.0, phase="layer")
        strength = 1 - math.exp(-float(evidence.clamp(min=0).sum()))
        yield SaliencyMask(heatmap(evidence, strength).to(problem.image.device))

    def _evidence(self, problem: Problem) -> Steps[Tensor]:
        """Returns the map; raises InvalidParameter if the requested layer yields none."""
        evidence: Tensor | None = None
        if self.layer is not None:
            evidence = yield from problem.inspect(lambda view: _map_at(view, self.layer or ""))
        if evidence is not None and bool(evidence.any()):
            return evidence
        # Inspects all layers: to choose one, to explain the fault of this one, or to find that there is no evidence.
        layer = yield from problem.inspect(lambda view: locate(view, self.layer))
        if evidence is not None:
            return evidence
        yield Progress(0.5, phase="layer")
        return (yield from problem.inspect(lambda view: class_activation_map(view, layer)))


def class_activation_map(view: ModelView, layer: SpatialLayer) -> Tensor:
    """Returns the map before the cut at zero, of shape (rows, columns), in units of the model's output."""
    return _attribution(view, layer.name, lambda _output: layer.layout)


def _map_at(view: ModelView, name: str) -> Tensor | None:
    """Returns the map at a layer, in one evaluation; None if it has none."""
    image = view.subject.image

    def layout(output: object) -> Layout:
        shows = isinstance(output, Tensor) and output.requires_grad
        if not shows or (found := layout_of(output.shape, (image.shape[-2], image.shape[-1]))) is None:  # type: ignore[attr-defined]
            raise _ShowsNothing
        return found

    try:
        return _attribution(view, name, layout)
    except _ShowsNothing:
        return None


class _ShowsNothing(Exception):
    """The layer does not exist, is not run, or its output has no spatial positions."""


def _attribution(view: ModelView, name: str, layout: Callable[[Tensor], Layout]) -> Tensor:
    """Returns captum's attribution at a layer whose output has the given layout."""
    from captum.attr import LayerGradCam  # noqa: PLC0415 - it imports matplotlib: a quarter of a worker's start

    layer = dict(view.module.named_modules()).get(name) if name else None
    if layer is None:
        raise _ShowsNothing
    channels, seen = nn.Identity(), []

    def show(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        """Passes the output to captum as channels on a grid, and continues with captum's result."""
        how = layout(output)
        seen.append(how)
        # Later operations may work in place.
        return how.from_channels(channels(how.to_channels(output)), output).clone()

    def scores(inputs: Tensor) -> Tensor:
        outputs: Tensor = view.module(inputs)
        if not seen:
            raise _ShowsNothing
        return outputs

    with hooked({layer: show}):
        attribution: Tensor = LayerGradCam(scores, channels).attribute(model_input(view), target=target_of(view))
    return attribution.detach()[0, 0]

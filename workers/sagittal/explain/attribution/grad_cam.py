"""Grad-CAM: activations of a layer, weighted by their mean gradients (Selvaraju et al., ICCV 2017).

Captum does the method; this module brings the layer into the order that captum expects, so that transformers work too.

The gradient is that of the model's output for the class, before the softmax, as in the paper: the softmax's gradient
vanishes where the model is sure, and is negative for every other class' evidence. A model whose outputs are
probabilities already is taken at its word.

The peak of the heatmap is `1 - exp(-e)`, where `e` is the sum of the positive part of the map. For logits that is the
share by which the class' odds fall, to first order, when that evidence is taken away. (Usual implementations divide by
the maximum, and so show a full heatmap where there is no evidence.)
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
    """Where the features of a layer speak for the class; a heatmap at the layer's resolution."""

    needs: ClassVar[Needs] = Needs.GRADIENTS | Needs.SPATIAL_LAYER
    summary: ClassVar[str] = "Activations of one layer, weighted by how much the class depends on each channel"

    layer: str | None = parameter(None, "Name of the layer; unset for the last one with a spatial output")

    hides: ClassVar[bool] = False

    def try_on(self, view: ModelView) -> None:
        """Raises Unsupported where the layer gives no map."""
        class_activation_map(view, locate(view, self.layer))

    def explain(self, problem: Problem) -> Steps[None]:
        """Yields the heatmap, of the layer's rows and columns."""
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
        """Returns the map; raises InvalidParameter where the layer that was asked for gives none."""
        evidence: Tensor | None = None
        if self.layer is not None:
            evidence = yield from problem.inspect(lambda view: _map_at(view, self.layer or ""))
        if evidence is not None and bool(evidence.any()):
            return evidence
        # Looks at all layers: to choose one, to say what is wrong with this one, or to see that there is no evidence.
        layer = yield from problem.inspect(lambda view: locate(view, self.layer))
        if evidence is not None:
            return evidence
        yield Progress(0.5, phase="layer")
        return (yield from problem.inspect(lambda view: class_activation_map(view, layer)))


def class_activation_map(view: ModelView, layer: SpatialLayer) -> Tensor:
    """Returns the map before the cut at zero, of shape (rows, columns), in units of the model's output."""
    return _attribution(view, layer.name, lambda _output: layer.layout)


def _map_at(view: ModelView, name: str) -> Tensor | None:
    """Returns the map at a layer, in one evaluation; None where it has none."""
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
    """The layer does not exist, is not run, or its output holds no places."""


def _attribution(view: ModelView, name: str, layout: Callable[[Tensor], Layout]) -> Tensor:
    """Returns captum's attribution at a layer whose output is laid out as `layout` says of it."""
    from captum.attr import LayerGradCam  # noqa: PLC0415 - it brings matplotlib, and a quarter of a worker's start

    layer = dict(view.module.named_modules()).get(name) if name else None
    if layer is None:
        raise _ShowsNothing
    channels, seen = nn.Identity(), []

    def show(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        """Shows the output to captum as channels on a grid, and goes on with what it saw."""
        how = layout(output)
        seen.append(how)
        # What follows may work in place.
        return how.from_channels(channels(how.to_channels(output)), output).clone()

    def scores(inputs: Tensor) -> Tensor:
        outputs: Tensor = view.module(inputs)
        if not seen:
            raise _ShowsNothing
        return outputs

    with hooked({layer: show}):
        attribution: Tensor = LayerGradCam(scores, channels).attribute(model_input(view), target=target_of(view))
    return attribution.detach()[0, 0]

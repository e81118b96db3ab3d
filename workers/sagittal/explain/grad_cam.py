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
from typing import Any, ClassVar

from captum.attr import LayerGradCam
from torch import Tensor, nn

from sagittal.explain.evidence import heatmap
from sagittal.explain.explainer import Explainer, Needs
from sagittal.explain.layers import Layout, SpatialLayer, hooked, locate, model_input, target_of
from sagittal.explain.parameters import parameter
from sagittal.explain.problem import Problem
from sagittal.explain.seam import ModelView, OutOfBudget, Progress, SaliencyMask, Steps, Truncated


@dataclass(frozen=True, slots=True, kw_only=True)
class GradCAM(Explainer):
    """Where the features of a layer speak for the class; a heatmap at the layer's resolution."""

    needs: ClassVar[Needs] = Needs.GRADIENTS | Needs.SPATIAL_LAYER
    summary: ClassVar[str] = "Activations of one layer, weighted by how much the class depends on each channel"

    layer: str | None = parameter(None, "Name of the layer; unset for the last one with a spatial output")

    def try_on(self, view: ModelView) -> None:
        """Raises Unsupported where the layer gives no map."""
        class_activation_map(view, locate(view, self.layer))

    def explain(self, problem: Problem) -> Steps:
        """Yields the heatmap, of the layer's rows and columns."""
        try:
            layer = yield problem.inspect(lambda view: locate(view, self.layer))
            yield Progress(0.5, phase="layer")
            evidence: Tensor = yield problem.inspect(lambda view: class_activation_map(view, layer))
        except OutOfBudget as spent:
            yield Truncated(spent.limit)
            yield SaliencyMask(problem.full(1, 0.0))
            return
        yield Progress(1.0, phase="layer")
        strength = 1 - math.exp(-float(evidence.clamp(min=0).sum()))
        yield SaliencyMask(heatmap(evidence, strength).to(problem.image.device))


def class_activation_map(view: ModelView, layer: SpatialLayer) -> Tensor:
    """Returns the map before the cut at zero, of shape (rows, columns), in units of the model's output."""
    channels = nn.Identity()
    hook = _through(channels, layer.layout)
    with hooked({view.module.get_submodule(layer.name): hook}):
        method = LayerGradCam(view.module, channels)
        attribution: Tensor = method.attribute(model_input(view), target=target_of(view))
    return attribution.detach()[0, 0]


def _through(channels: nn.Module, layout: Layout) -> Callable[..., Any]:
    """Returns a hook that shows the layer's output to captum as channels on a grid, and goes on with what it saw."""

    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        seen: Tensor = channels(layout.to_channels(output))
        return layout.from_channels(seen, output).clone()  # what follows may work in place

    return hook

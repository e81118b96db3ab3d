"""Measures a heatmap given by the caller."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sagittal.explain.events import SaliencyMask
from sagittal.explain.explainer import Explainer
from sagittal.explain.parameters import InvalidParameter, parameter
from sagittal.explain.problem import Problem
from sagittal.explain.steps import Steps

SIZES = range(2, 225)
"""Valid sides of a heatmap, in cells."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvaluateMask(Explainer):
    """Yields the caller's heatmap without a search, so that it is measured like any other."""

    hides: ClassVar[bool] = False  # only the curves hide, if they are requested
    summary: ClassVar[str] = "Measures a heatmap given by the caller"

    heatmap: Tensor | None = parameter(None, "Square saliency, finite, side 2 to 224 cells; higher is more salient")  # noqa: RUF009 - a field

    def __post_init__(self) -> None:
        """Checks that there is a heatmap and that its cells can be ordered."""
        if not isinstance(self.heatmap, Tensor):
            raise InvalidParameter("heatmap", "is missing; give a square heatmap")
        shape = tuple(self.heatmap.shape)
        if len(shape) != 2 or shape[0] != shape[1] or shape[0] not in SIZES:
            raise InvalidParameter("heatmap", f"has shape {shape}; give (size, size) with size from 2 to 224")
        if not self.heatmap.is_floating_point() or not bool(torch.isfinite(self.heatmap).all()):
            raise InvalidParameter("heatmap", "has values that are not finite numbers; give finite float32 or float16")

    def explain(self, problem: Problem) -> Steps[None]:
        """Yields the heatmap, divided by its largest magnitude.

        Heatmaps of other tools have their own units; only their order is measured.
        """
        assert self.heatmap is not None  # noqa: S101 - checked by __post_init__
        values = self.heatmap.detach().to("cpu", torch.float64)
        largest = float(values.abs().max())
        scaled = (values / largest if largest > 0 else values).to(problem.image.device, torch.float32)
        yield SaliencyMask(scaled, signed=bool((values < 0).any()))

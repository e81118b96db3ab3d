"""A heatmap that the caller brings, measured as any other."""

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
"""Sides that a heatmap may have, in cells."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvaluateMask(Explainer):
    """No search: the caller's heatmap gets the same curves as those of the methods here."""

    hides: ClassVar[bool] = False  # the curves do, where they are asked for
    summary: ClassVar[str] = "Measures a heatmap that the caller brings"

    heatmap: Tensor | None = parameter(None, "Square saliency of side 2 to 224, finite; higher is more salient")  # noqa: RUF009 - a field

    def __post_init__(self) -> None:
        """Checks that there is a heatmap, and that it can be ordered."""
        if not isinstance(self.heatmap, Tensor):
            raise InvalidParameter("heatmap", "is missing; give a square heatmap")
        shape = tuple(self.heatmap.shape)
        if len(shape) != 2 or shape[0] != shape[1] or shape[0] not in SIZES:
            raise InvalidParameter("heatmap", f"has shape {shape}; give (size, size) with size from 2 to 224")
        if not self.heatmap.is_floating_point() or not bool(torch.isfinite(self.heatmap).all()):
            raise InvalidParameter(
                "heatmap", "holds values that are not finite numbers; give finite float32 or float16"
            )

    def explain(self, problem: Problem) -> Steps[None]:
        """Yields the heatmap, divided by its largest magnitude.

        Heatmaps of other programs come in units of their own, and their order alone is measured.
        """
        assert self.heatmap is not None  # noqa: S101 - __post_init__ saw to it
        values = self.heatmap.detach().to("cpu", torch.float64)
        largest = float(values.abs().max())
        scaled = (values / largest if largest > 0 else values).to(problem.image.device, torch.float32)
        yield SaliencyMask(scaled, signed=bool((values < 0).any()))

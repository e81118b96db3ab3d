"""The distribution of backgrounds on which certificates are tested: blurs, colours, noise and given images.

Each draw has one kind, and all kinds are equally likely. No draw shows the image itself: a blur is at least as strong
as the default baseline's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sagittal.engine.masking import gaussian_blur
from sagittal.explain.baselines import BLUR_SIGMA_SHARE
from sagittal.explain.parameters import InvalidParameter

BLUR_DOUBLINGS = 2.0
"""A blur is up to this many doublings stronger than the default baseline's; the doublings are uniform."""

COLOUR_SPREAD = 0.5
"""Standard deviation of a colour around the image's mean, in standard deviations of the channel."""

LEAST_NOISE = 0.25
"""Lowest standard deviation of noise, in standard deviations of the channel; the highest is 1, uniform between."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RobustnessTest:
    """Options of the test of certificates on altered images."""

    delta: float = 0.1
    """Draws end when the probability is known to be at least 1 - delta."""
    confidence: float = 0.95
    """Probability that a bound does not exceed the truth."""
    max_draws: int = 40
    """Maximum number of backgrounds for each set."""
    images: Sequence[Tensor] = ()
    """Images that are backgrounds too, such as images of other classes: float32 of shape (3, height, width)."""

    def __post_init__(self) -> None:
        for name, value in (("delta", self.delta), ("confidence", self.confidence)):
            if not 0 < value < 1:
                raise InvalidParameter(name, f"is {value:g}; give a number between 0 and 1, both excluded")
        if self.max_draws < 1:
            raise InvalidParameter("max_draws", f"is {self.max_draws}; give at least 1")


@dataclass(frozen=True, slots=True, eq=False)
class Background:
    """A drawn background."""

    kind: str
    """`blur`, `mean`, `noise` or `image`."""
    image: Tensor
    """Of the image's shape."""


def draw_background(image: Tensor, others: Sequence[Tensor], generator: torch.Generator) -> Background:
    """Returns a background for an image (3, height, width).

    Args:
        image: The explained image.
        others: Images that may be drawn as backgrounds, of the same shape.
        generator: CPU random number generator, which alone determines the draw.
    """
    kinds = [*_DRAWS, "image"] if others else [*_DRAWS]
    kind = kinds[_below(len(kinds), generator)]
    if kind == "image":
        other = others[_below(len(others), generator)].to(image)
        return Background(kind, other.flip(-1) if _below(2, generator) else other)
    return Background(kind, _DRAWS[kind](image, generator))


def _blur(image: Tensor, generator: torch.Generator) -> Tensor:
    doublings = BLUR_DOUBLINGS * float(torch.rand((), generator=generator))
    return gaussian_blur(image, BLUR_SIGMA_SHARE * min(image.shape[-2:]) * 2**doublings)


def _colour(image: Tensor, generator: torch.Generator) -> Tensor:
    mean, std = _statistics(image)
    return (mean + COLOUR_SPREAD * std * torch.randn(3, 1, 1, generator=generator).to(image)).expand_as(image)


def _noise(image: Tensor, generator: torch.Generator) -> Tensor:
    mean, std = _statistics(image)
    strength = LEAST_NOISE + (1 - LEAST_NOISE) * float(torch.rand((), generator=generator))
    return mean + strength * std * torch.randn(image.shape, generator=generator).to(image)


_DRAWS: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] = {"blur": _blur, "mean": _colour, "noise": _noise}


def _statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean and the standard deviation of each channel, of shape (3, 1, 1)."""
    return image.mean((-2, -1), keepdim=True), image.std((-2, -1), keepdim=True, correction=0)


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))

"""Baselines: images that replace the hidden part.

A baseline must hide the class: a blur that leaves the class recognisable hides nothing (section 3.3 of the paper). The
score on the blurred image is therefore checked, and the blur is strengthened up to a fixed limit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sagittal.engine.masking import gaussian_blur

BLUR_SIGMA_SHARE = 50 / 224
"""Standard deviation of the default blur, as a share of the image's shorter side (50 px at 224 px in the paper)."""

LOW_SHARE = 0.05
"""A baseline hides the class if the target's score on it is at most this share of the unmasked score ..."""

LOW_SCORE = 0.01
"""... or at most this probability."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A baseline to be tested."""

    image: Tensor
    blur_sigma: float = 0.0
    """Standard deviation of the blur in pixels; 0 for other kinds."""


class Baseline(Protocol):
    """A kind of baseline. It yields candidates, best first; the first candidate with a low score is used."""

    @property
    def kind(self) -> str:
        """Name of the kind, such as `blur`."""
        ...

    def candidates(self, image: Tensor, black: Tensor, seed: int) -> Iterator[Candidate]:
        """Yields baselines of the image's shape; `black` is the normalised value of black, of shape (3, 1, 1)."""
        ...


@dataclass(frozen=True, slots=True)
class Blur:
    """A Gaussian blur. It is doubled, up to `doublings` times, until the target's score is low."""

    sigma: float = 0.0
    """Standard deviation in pixels; 0 selects the default for the image's size."""
    doublings: int = 3
    kind: str = "blur"

    def candidates(self, image: Tensor, black: Tensor, seed: int) -> Iterator[Candidate]:
        """Yields increasingly strong blurs."""
        sigma = self.sigma or BLUR_SIGMA_SHARE * min(image.shape[-2:])
        for doubling in range(self.doublings + 1):
            strength = sigma * 2**doubling
            yield Candidate(gaussian_blur(image, strength), strength)


@dataclass(frozen=True, slots=True)
class Black:
    """Black pixels."""

    kind: str = "black"

    def candidates(self, image: Tensor, black: Tensor, seed: int) -> Iterator[Candidate]:
        """Yields the black image."""
        yield Candidate(black.expand_as(image).contiguous())


@dataclass(frozen=True, slots=True)
class MeanColour:
    """The mean colour of the image."""

    kind: str = "mean"

    def candidates(self, image: Tensor, black: Tensor, seed: int) -> Iterator[Candidate]:
        """Yields the mean colour."""
        yield Candidate(image.mean((-2, -1), keepdim=True).expand_as(image).contiguous())


@dataclass(frozen=True, slots=True)
class Noise:
    """Gaussian noise with the mean and standard deviation of each channel of the image."""

    kind: str = "noise"

    def candidates(self, image: Tensor, black: Tensor, seed: int) -> Iterator[Candidate]:
        """Yields noise that depends on the seed."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(image.shape, generator=generator).to(image.device)
        mean, std = image.mean((-2, -1), keepdim=True), image.std((-2, -1), keepdim=True, correction=0)
        yield Candidate(mean + std * noise)


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """An image given by the caller, such as an image of another class (a counterfactual baseline)."""

    image: Tensor
    """The model's input: float32 of shape (3, height, width)."""
    kind: str = "image"

    def candidates(self, image: Tensor, black: Tensor, seed: int) -> Iterator[Candidate]:
        """Yields the given image."""
        yield Candidate(self.image.to(image))


def is_low(score: float, unmasked_score: float) -> bool:
    """Returns whether the score on a baseline is low enough: the baseline hides the class."""
    return score <= max(LOW_SCORE, LOW_SHARE * unmasked_score)

"""Descent on masks: normalised steps that fit any scale of gradient, and random points of a path."""

import torch
import torch.nn.functional as F
from torch import Tensor

_MOMENTUM, _MEMORY = 0.9, 0.99
_EPSILON = 1e-12

AVERAGED = 0.5
"""Share of the iterations, the last ones, whose masks are averaged: it cancels the noise of single steps."""

FINE = 28
"""Masks with more cells a side than this take smoothed steps: single cells of a fine mask are adversarial."""


class Descent:
    """Adam on masks in [0, 1], with steps that decay to zero, and the mean of the later masks."""

    def __init__(self, masks: Tensor, *, step_size: float, iterations: int) -> None:
        """Starts at masks of shape (variables, size, size)."""
        self.masks = masks
        self._step_size, self._iterations = step_size, iterations
        self._mean = torch.zeros_like(masks)
        self._square = torch.zeros_like(masks)
        self._sum = torch.zeros_like(masks)
        self._summed = 0
        self._sigma = masks.shape[-1] / (2 * FINE) if masks.shape[-1] > FINE else 0.0

    @property
    def average(self) -> Tensor:
        """The mean of the masks over the last iterations; the newest masks before that."""
        return self._sum / self._summed if self._summed else self.masks

    def step(self, gradient: Tensor, step: int) -> None:
        """Moves the masks against the gradient."""
        self._mean = _MOMENTUM * self._mean + (1 - _MOMENTUM) * gradient
        self._square = _MEMORY * self._square + (1 - _MEMORY) * gradient**2
        mean = self._mean / (1 - _MOMENTUM ** (step + 1))
        root = (self._square / (1 - _MEMORY ** (step + 1))).sqrt()
        size = self._step_size * (1 - step / self._iterations)
        self.masks = (self.masks - size * smoothed(mean / (root + _EPSILON), self._sigma)).clamp(0, 1)
        if step >= self._iterations * (1 - AVERAGED):
            self._sum = self._sum + self.masks
            self._summed += 1


def smoothed(values: Tensor, sigma: float) -> Tensor:
    """Blurs (n, h, w) with a Gaussian of `sigma` cells; 0 leaves it as it is."""
    if sigma <= 0:
        return values
    radius = int(3 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, device=values.device, dtype=values.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(values.unsqueeze(1), (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)).squeeze(1)


def stratified(rows: int, points: int, generator: torch.Generator) -> Tensor:
    """Returns random points in [0, 1) of shape (rows, points), one in each of `points` equal strata."""
    offsets = torch.arange(points, dtype=torch.float32) + torch.rand(rows, points, generator=generator)
    return offsets / max(points, 1)

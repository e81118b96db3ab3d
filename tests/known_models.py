"""Classifiers whose reasons are known by construction, for tests.

Each looks for a checkerboard in one or more square regions of the image, which a blur takes away.
"""

import torch
from torch import Tensor, nn

SIZE = 56
"""Side of the images in pixels."""

Region = tuple[int, int, int, int]
"""Top, left, bottom, right in pixels."""

LEFT: Region = (8, 8, 24, 24)
RIGHT: Region = (32, 32, 48, 48)


def checkerboard(size: int = SIZE) -> Tensor:
    """Returns +1 and -1 in turn, of shape (size, size)."""
    index = torch.arange(size)
    return ((index.unsqueeze(0) + index.unsqueeze(1)) % 2).float() * 2 - 1


def image(*regions: Region, size: int = SIZE) -> Tensor:
    """Returns an image (3, size, size) with a checkerboard in each region and smooth shades elsewhere."""
    shade = torch.linspace(-0.5, 0.5, size).expand(3, size, size).clone()
    board = checkerboard(size)
    for top, left, bottom, right in regions:
        shade[:, top:bottom, left:right] = board[top:bottom, left:right]
    return shade


class Detector(nn.Module):
    """How much of the checkerboard is in a region: 1 for all of it, 0 for none."""

    def __init__(self, region: Region, size: int = SIZE) -> None:
        super().__init__()
        top, left, bottom, right = region
        weight = torch.zeros(size, size)
        weight[top:bottom, left:right] = checkerboard(size)[top:bottom, left:right]
        self.register_buffer("weight", weight / weight.abs().sum())

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs.mean(1) * self.weight).sum((-2, -1))


class LooksAtRegions(nn.Module):
    """Class 1 where `combine` of the regions' detections is high, class 0 else."""

    def __init__(self, *regions: Region, combine: str = "mean", gain: float = 10.0, size: int = SIZE) -> None:
        super().__init__()
        self.detectors = nn.ModuleList(Detector(region, size) for region in regions)
        self.combine, self.gain = combine, gain

    def forward(self, inputs: Tensor) -> Tensor:
        found = torch.stack([detector(inputs) for detector in self.detectors], -1)
        combined = {"mean": found.mean(-1), "any": found.amax(-1), "all": found.amin(-1)}[self.combine]
        logit = self.gain * (combined - 0.5)
        return torch.stack([torch.zeros_like(logit), logit], -1)


class Constant(nn.Module):
    """Says the same of every image, with gradients that are zero."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tensor([0.0, 1.0]) + 0.0 * inputs.sum((1, 2, 3)).unsqueeze(-1)


class Faulty(nn.Module):
    """Fails in the given way wherever the first pixel of an image is above 100, and is constant else."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = torch.tensor([0.0, 1.0]) + 0.0 * inputs.sum((1, 2, 3)).unsqueeze(-1)
        bad = inputs[:, 0, 0, 0] > 100
        if not bool(bad.any()):
            return outputs
        if self.fault == "raise":
            raise RuntimeError("a fault by construction")
        if self.fault == "shape":
            return outputs[:, :, None]
        return torch.where(bad.unsqueeze(-1), torch.full_like(outputs, float("nan")), outputs)


def looks_at_left(gain: float = 10.0) -> nn.Module:
    """A factory for model files."""
    return LooksAtRegions(LEFT, gain=gain)


class SeesColours(nn.Module):
    """Its features are the brightness of colours in each half of the image; its classes add them up differently."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d((1, 2))
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(12, 3)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.rand(parameter.shape, generator=generator) - 0.3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(self.flatten(self.pool(self.relu(self.conv(inputs)))))


def sees_colours() -> nn.Module:
    """A factory for model files."""
    return SeesColours()

"""Small networks that learn the drawn birds, stored by the digest of their recipe and code.

`python -m known_reasons.networks` trains those that are not stored yet, and prints their accuracies.
"""

import argparse
import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sagittal.synthetic import CLASSES, Mark, Sample, birds, classes, marks, sample_images

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "known_reasons"

SIZE = 64
"""Side of the images in pixels."""

TRAINING, TESTING = 8_000, 600
"""Numbers of images."""

TESTING_SEED = 1_000_003
"""Seed of the images that no network is trained on."""

MEAN, STD = 0.5, 0.25
"""Normalisation of inputs, for all channels."""

ARCHITECTURES = ("pooled", "hidden", "residual")
"""A linear map of the mean features, one with a hidden layer between, and one whose last block has a shortcut."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Architecture, training images and seeds of a network."""

    seed: int = 0
    """Seed of the weights, and of the order of images."""
    architecture: str = "pooled"
    """A name in `ARCHITECTURES`."""
    images: int = TRAINING
    epochs: int = 6
    mark: Mark | None = None
    """The spurious cue in the training images."""
    data_seed: int = 0
    """Seed of the training images."""


DOZEN = tuple(Recipe(seed=seed, architecture=name) for seed in range(4) for name in ARCHITECTURES)
"""The networks of the benchmark, in the order in which they are used if there is no time for all."""


class _Block(nn.Module):
    """A convolution, batch normalisation and rectified units."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 2) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.normalisation = nn.BatchNorm2d(outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps (n, inputs, side, side) to (n, outputs, side / stride, side / stride)."""
        return torch.relu(self.normalisation(self.convolution(inputs)))


class _Residual(nn.Module):
    """A convolution whose result is added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.normalisation = nn.BatchNorm2d(channels)

    def forward(self, inputs: Tensor) -> Tensor:
        """Keeps the shape."""
        return torch.relu(inputs + self.normalisation(self.convolution(inputs)))


def untrained(architecture: str) -> nn.Sequential:
    """Returns a network that maps (n, 3, SIZE, SIZE) to logits (n, classes)."""
    layers: list[nn.Module] = [_Block(3, 24, kernel=5), _Block(24, 48), _Block(48, 64)]
    layers.append(_Residual(64) if architecture == "residual" else _Block(64, 64, stride=1))
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if architecture == "hidden":
        layers += [nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, len(CLASSES)))


def to_input(images: NDArray[np.uint8]) -> Tensor:
    """Returns images (..., side, side, 3) as inputs of a network, float32 of shape (..., 3, side, side)."""
    return (torch.from_numpy(images).movedim(-1, -3).float() / 255 - MEAN) / STD


def train(recipe: Recipe, images: NDArray[np.uint8], labels: Tensor) -> nn.Sequential:
    """Returns a network that is fitted to images (n, side, side, 3) and their class indices (n,)."""
    torch.manual_seed(recipe.seed)
    network = untrained(recipe.architecture).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.01)
    steps = recipe.epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.01, total_steps=steps)
    for _ in range(recipe.epochs):
        for some in torch.randperm(len(images)).split(BATCH):
            inputs = to_input(images[some.numpy()])
            inputs = inputs.flip(3) if torch.rand(()) < 0.5 else inputs
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            optimiser.zero_grad()
            F.cross_entropy(network(inputs), labels[some], label_smoothing=0.02).backward()
            optimiser.step()
            schedule.step()
    return network.eval().requires_grad_(False)


BATCH = 64
"""Images of each step of the training."""


class Networks:
    """Trained networks, stored in a directory."""

    def __init__(self, directory: Path = CACHE) -> None:
        """Names the directory; it is made when a network is stored."""
        self._directory = directory
        self._drawn: dict[str, tuple[NDArray[np.uint8], Tensor]] = {}

    def get(self, recipe: Recipe) -> nn.Sequential:
        """Returns the network of a recipe, and trains it if it is not stored."""
        path = self._path(recipe)
        if path.exists():
            network = untrained(recipe.architecture)
            network.load_state_dict(torch.load(path, weights_only=True))
            return network.eval().requires_grad_(False)
        network = train(recipe, *self._images(recipe))
        self._directory.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), path)
        return network

    def has(self, recipe: Recipe) -> bool:
        """Returns whether the network of a recipe is stored."""
        return self._path(recipe).exists()

    def _path(self, recipe: Recipe) -> Path:
        return self._directory / f"{digest_of(recipe)}.pt"

    def _images(self, recipe: Recipe) -> tuple[NDArray[np.uint8], Tensor]:
        """Returns the training images and their class indices; those of the last few recipes are kept."""
        key = repr((recipe.images, recipe.data_seed, recipe.mark))
        if key not in self._drawn:
            self._drawn.clear()
            samples = list(sample_images(recipe.images, seed=recipe.data_seed, size=SIZE, mark=recipe.mark))
            self._drawn[key] = (np.stack([sample.image for sample in samples]), labels_of(samples))
        return self._drawn[key]


def digest_of(recipe: Recipe) -> str:
    """Returns the digest of a recipe, and of the code that draws its images and trains it."""
    sources = [inspect.getsource(part) for part in (birds, classes, marks, train, untrained, _Block, _Residual)]
    text = json.dumps([asdict(recipe), SIZE, sources], default=dict)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def labels_of(samples: Sequence[Sample]) -> Tensor:
    """Returns the class indices of images, int64 of shape (n,)."""
    return torch.tensor([CLASSES.index(sample.label) for sample in samples])


def held_out_samples(count: int = TESTING) -> Iterator[Sample]:
    """Yields images that no network is trained on, without marks."""
    return sample_images(count, seed=TESTING_SEED, size=SIZE)


def logits(network: nn.Module, images: NDArray[np.uint8]) -> Tensor:
    """Returns the logits (n, classes) of images (n, side, side, 3)."""
    with torch.no_grad():
        return torch.cat([network(to_input(images[start : start + 256])) for start in range(0, len(images), 256)])


def accuracy(network: nn.Module, samples: Sequence[Sample]) -> float:
    """Returns the share of the images whose top class is their own."""
    found = logits(network, np.stack([sample.image for sample in samples])).argmax(1)
    return float((found == labels_of(samples)).float().mean())


def main() -> None:
    """Trains and tests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=len(DOZEN), help="number of networks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    networks, samples = Networks(), list(held_out_samples())
    for recipe in DOZEN[: options.networks]:
        print(f"{recipe.architecture} {recipe.seed}: {accuracy(networks.get(recipe), samples):.4f}", flush=True)


if __name__ == "__main__":
    main()

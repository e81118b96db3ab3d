"""The problem that an explainer solves: an image, what replaces its hidden part, and a class."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sagittal.explain.masking import stretched_units
from sagittal.explain.regularisers import edge_weights
from sagittal.explain.requests import Evaluate, Inspect, ModelView, Subject


def derive_seed(seed: int, *path: int | str) -> int:
    """Returns a seed in [0, 2^63) that depends on `seed` and `path` alone, so that work can be resumed anywhere."""
    text = repr((seed, *path)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """An image, its baseline and a class, with the scores of both ends already known."""

    subject: Subject
    full_score: float
    """Probability of the target on the image."""
    baseline_score: float
    """Probability of the target on the baseline."""
    seed: int = 0
    restored: Mapping[str, Tensor] = field(default_factory=dict)
    """State of the last checkpoint of an earlier attempt; empty for a fresh start."""
    _edges: list[tuple[Tensor, Tensor]] = field(default_factory=list, init=False, repr=False)
    _axes: dict[tuple[int, int], Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def image(self) -> Tensor:
        """The image as the model takes it: float32 of shape (3, height, width)."""
        return self.subject.image

    @property
    def baseline(self) -> Tensor:
        """What replaces the hidden part, of the image's shape."""
        return self.subject.baseline

    @property
    def target(self) -> int:
        """Index of the class that is explained."""
        if self.subject.target is None:
            raise ValueError("the problem has no target: call prepare() first")
        return self.subject.target

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.image.shape[-2], self.image.shape[-1]

    @property
    def edges(self) -> tuple[Tensor, Tensor]:
        """How alike neighbouring pixels of the image are, over rows and over columns: worked out once."""
        if not self._edges:
            self._edges.append(edge_weights(self.image))
        return self._edges[0]

    def enlarged(self, masks: Tensor) -> Tensor:
        """Returns masks (n, h, w) at the image's size: bilinear, by two small products that differentiate cheaply."""
        if masks.shape[-2:] == self.size:
            return masks
        rows, columns = (self._axis(few, many) for few, many in zip(masks.shape[-2:], self.size, strict=True))
        return rows @ masks @ columns.mT

    def _axis(self, cells: int, pixels: int) -> Tensor:
        if (cells, pixels) not in self._axes:
            self._axes[cells, pixels] = stretched_units(cells, pixels, self.image.device)
        return self._axes[cells, pixels]

    def evaluate(self, masks: Tensor, **options: Any) -> Evaluate:
        """Asks for the scores of masks (n, h, w); the options are those of `Evaluate`."""
        return Evaluate(subject=self.subject, masks=masks, **options)

    def inspect(self, call: Callable[[ModelView], Any], *, gradient: bool = True) -> Inspect:
        """Asks for a call with the model that evaluates it once, with gradient or without."""
        return Inspect(subject=self.subject, call=call, evaluations=1, gradient_evaluations=int(gradient))

    def full(self, size: int, value: float) -> Tensor:
        """Returns a mask of shape (size, size) with one value."""
        return torch.full((size, size), value, device=self.image.device)

    def generator(self, *path: int | str) -> torch.Generator:
        """Returns a CPU generator of random numbers that depends on the seed and `path` alone."""
        return torch.Generator().manual_seed(derive_seed(self.seed, *path))

    def noise_seed(self, *path: int | str) -> int:
        """Returns a seed for the noise of an evaluation that depends on the seed and `path` alone."""
        return derive_seed(self.seed, "noise", *path)

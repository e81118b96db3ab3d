"""Changes to masked images before the model sees them: what happens to an image that is stored, sent or moved."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

LEVELS = 255
"""Highest value of an 8-bit pixel."""

TOLERANCE = 0.25
"""Distance from a whole level up to which a value is an 8-bit pixel, in levels: half-precision inputs are within it."""


class Alteration(Protocol):
    """A change to masked images. Equal alterations have equal representations, which are part of the memo's keys."""

    def __call__(self, inputs: Tensor) -> None:
        """Changes inputs (n, 3, height, width) in place."""
        ...


@dataclass(frozen=True, slots=True)
class PixelScale:
    """The values of a model's input that are black and white pixels, for each channel."""

    black: tuple[float, float, float]
    white: tuple[float, float, float]
    bgr: bool = False
    """Whether the channels are blue, green and red."""

    def fits(self, image: Tensor) -> bool:
        """Returns whether an image (3, height, width) has 8-bit pixels."""
        levels = self._levels(image)
        whole = levels.round().clamp(0, LEVELS)
        return bool((levels - whole).abs().max() <= TOLERANCE)

    def rounded(self, images: Tensor) -> Tensor:
        """Returns images (..., 3, height, width) with 8-bit pixels."""
        copy = images.clone()
        self.round(copy)
        return copy

    def round(self, images: Tensor) -> None:
        """Rounds images (..., 3, height, width) to 8-bit pixels in place, in four passes over them."""
        black, span = self._channels(images)
        torch.addcmul(-black / span * LEVELS, images, LEVELS / span, out=images).round_().clamp_(0, LEVELS)
        torch.addcmul(black, images, span / LEVELS, out=images)

    def pixels(self, images: Tensor) -> np.ndarray:
        """Returns images (n, 3, height, width) as RGB pixels: uint8 of shape (n, height, width, 3)."""
        levels = self._levels(images).round().clamp(0, LEVELS).to(torch.uint8)
        return (levels.flip(-3) if self.bgr else levels).movedim(-3, -1).cpu().numpy()

    def inputs(self, pixels: Iterable[np.ndarray]) -> Tensor:
        """Returns RGB pixels (height, width, 3) as inputs (n, 3, height, width) on the CPU."""
        levels = torch.stack([torch.from_numpy(np.array(each)) for each in pixels]).movedim(-1, -3).to(torch.float32)
        return self._values(levels.flip(-3) if self.bgr else levels)

    def _levels(self, images: Tensor) -> Tensor:
        black, span = self._channels(images)
        return (images - black) / span * LEVELS

    def _values(self, levels: Tensor) -> Tensor:
        black, span = self._channels(levels)
        return levels / LEVELS * span + black

    def _channels(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Returns black, and white minus black, of shape (3, 1, 1)."""
        black, white = (
            torch.tensor(each, dtype=torch.float32, device=like.device).view(3, 1, 1)
            for each in (self.black, self.white)
        )
        return black, white - black


@dataclass(frozen=True, slots=True)
class Rounding:
    """Rounds to 8-bit pixels."""

    scale: PixelScale

    def __call__(self, inputs: Tensor) -> None:
        """Changes inputs (n, 3, height, width) in place."""
        self.scale.round(inputs)


@dataclass(frozen=True, slots=True)
class Jpeg:
    """Stores images as JPEG files and reads them again, with Pillow's chroma subsampling (4:2:0)."""

    scale: PixelScale
    quality: int = 95

    def __call__(self, inputs: Tensor) -> None:
        """Changes inputs (n, 3, height, width) in place."""
        inputs.copy_(self.scale.inputs(self._stored(pixels) for pixels in self.scale.pixels(inputs)))

    def _stored(self, pixels: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=self.quality)
        return np.asarray(Image.open(file).convert("RGB"))


@dataclass(frozen=True, slots=True)
class Shift:
    """Moves images by whole pixels; the border is repeated."""

    down: int
    right: int

    def __call__(self, inputs: Tensor) -> None:
        """Changes inputs (n, 3, height, width) in place."""
        rows, columns = abs(self.down), abs(self.right)
        padded = F.pad(inputs, (columns, columns, rows, rows), mode="replicate")
        top, left = rows - self.down, columns - self.right
        height, width = inputs.shape[-2:]
        inputs.copy_(padded[..., top : top + height, left : left + width])

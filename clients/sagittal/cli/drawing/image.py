"""What the model saw: the picture after resizing and cropping, its baseline, and mixtures of the two.

All pictures are float32 arrays of shape (size, size, 3) in 0..1; masks are float32 of shape (size, size), where 1 shows
the picture and 0 its baseline.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from sagittal.client import PatchSet, Prediction, Preprocessing
from sagittal.core.images import ImageLimits, decode
from sagittal.v1 import tensor_pb2

Picture = NDArray[np.float32]

#: The service has admitted the picture: these limits only guard this process.
_LIMITS = ImageLimits(max_bytes=256 * 2**20, max_pixels=256_000_000, memory=8 * 2**30)

_RESAMPLING = {
    "nearest": PIL.Image.Resampling.NEAREST,
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "bicubic": PIL.Image.Resampling.BICUBIC,
}


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A picture as the model saw it, and what replaced its hidden part."""

    picture: Picture
    baseline: Picture

    @property
    def size(self) -> int:
        """Side in pixels."""
        return int(self.picture.shape[0])

    def keep(self, mask: NDArray[np.float32]) -> Picture:
        """Returns the picture where the mask is 1, and the baseline where it is 0."""
        return np.asarray(self.baseline + mask[..., None] * (self.picture - self.baseline), np.float32)


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Returns a file as upright RGB of shape (height, width, 3), decoded exactly as the workers do."""
    return decode(tensor_pb2.Image(encoded=path.read_bytes()), _LIMITS)


def resize_and_crop(image: NDArray[np.uint8], preprocessing: Preprocessing) -> Picture:
    """Returns the part of an upright RGB picture (height, width, 3) that the model sees, at its input size."""
    height, width = image.shape[:2]
    size = preprocessing.input_size
    box = (0.0, 0.0, float(width), float(height))
    if preprocessing.fit == "crop":
        side = size * min(height, width) / max(preprocessing.resize, size)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    resampling = _RESAMPLING.get(preprocessing.interpolation, PIL.Image.Resampling.BILINEAR)
    resized = PIL.Image.fromarray(image).resize((size, size), resampling, box=box)
    return np.asarray(np.asarray(resized) / 255, np.float32)


def with_baseline(picture: Picture, prediction: Prediction, given: Picture | None = None) -> Seen:
    """Returns the picture with the baseline that a job reported; `given` is the caller's own one."""
    mean = picture.mean((0, 1), keepdims=True)
    match prediction.baseline:
        case "blur":
            sigma = prediction.blur_sigma or 50 / 224 * picture.shape[0]
            baseline = gaussian_blur(picture, sigma)
        case "black":
            baseline = np.zeros_like(picture)
        case "image" if given is not None:
            baseline = given
        case "noise":
            # Other noise than the job's, with the same mean and spread.
            noise = np.random.default_rng(0).standard_normal(picture.shape)
            baseline = np.clip(mean + noise * picture.std((0, 1), keepdims=True), 0, 1)
        case _:
            baseline = np.broadcast_to(mean, picture.shape)
    return Seen(picture, baseline.astype(np.float32))


def gaussian_blur(picture: Picture, sigma: float) -> Picture:
    """Blurs with a Gaussian of `sigma` pixels, cut at half a sigma to each side as the workers do, edges reflected."""
    for axis in (0, 1):
        radius = min(max(1, math.ceil(sigma / 2)), picture.shape[axis] - 1)
        offsets = np.arange(-radius, radius + 1)
        weights = np.exp(-0.5 * (offsets / sigma) ** 2)
        weights /= weights.sum()
        pads = [(radius, radius) if each == axis else (0, 0) for each in range(3)]
        padded = np.pad(picture, pads, mode="reflect")
        length = picture.shape[axis]
        windows = (np.take(padded, range(start, start + length), axis) for start in range(2 * radius + 1))
        picture = sum((w * window for w, window in zip(weights, windows, strict=True)), np.zeros_like(picture))
    return np.asarray(picture, np.float32)


def upsample(mask: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Returns a square mask at picture size, bilinearly, as the workers do."""
    if mask.shape == (size, size):
        return mask
    image = PIL.Image.fromarray(np.ascontiguousarray(mask, np.float32))
    return np.asarray(image.resize((size, size), PIL.Image.Resampling.BILINEAR), np.float32)


def patch_mask(patches: PatchSet, size: int) -> NDArray[np.float32]:
    """Returns the mask that shows only these patches: exact rectangles."""
    cells = np.zeros(patches.grid * patches.grid, np.float32)
    cells[list(patches.patches)] = 1
    index = np.minimum(((np.arange(size) + 0.5) * patches.grid / size).astype(int), patches.grid - 1)
    return np.asarray(cells.reshape(patches.grid, patches.grid)[np.ix_(index, index)], np.float32)


def patch_box(patch: int, grid: int, size: int) -> tuple[int, int, int, int]:
    """Returns left, top, right, bottom of a patch in pixels, right and bottom exclusive."""
    row, column = divmod(patch, grid)
    index = np.minimum(((np.arange(size) + 0.5) * grid / size).astype(int), grid - 1)
    edges = np.searchsorted(index, np.arange(grid + 1))
    return int(edges[column]), int(edges[row]), int(edges[column + 1]), int(edges[row + 1])


def shown(seen: Seen, patches: PatchSet) -> Picture:
    """Returns a thumbnail in which only these patches are seen: the rest is a faint grey of the baseline."""
    mask = patch_mask(patches, seen.size)[..., None]
    grey: Picture = seen.baseline.mean(2, keepdims=True) * 0.25 + 0.7
    return np.asarray(seen.picture * mask + grey * (1 - mask), np.float32)


def to_image(picture: Picture) -> PIL.Image.Image:
    """Returns a picture to be stored."""
    return PIL.Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))

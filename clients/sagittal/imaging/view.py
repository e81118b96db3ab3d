"""The model's input as an image, and its baseline, computed as the workers compute them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sagittal.imaging.masks import patch_mask, upsample
from sagittal.imaging.overlays import overlay

Picture = NDArray[np.float32]

#: Standard deviation of the default blur, as a share of the input's side.
BLUR_SHARE = 50 / 224


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """The model's input as a picture, and the baseline that replaces its hidden part."""

    picture: Picture
    baseline: Picture
    exact: bool = True
    """Whether the baseline is the job's, up to rounding; False for noise, and for an image that was not given."""

    @property
    def size(self) -> int:
        """Side in pixels."""
        return int(self.picture.shape[0])

    def keep(self, mask: NDArray[np.float32]) -> Picture:
        """Returns the picture where the mask (size, size) is 1, and the baseline where it is 0."""
        return np.asarray(self.baseline + mask[..., None] * (self.picture - self.baseline), np.float32)

    def painted(self, saliency: NDArray[np.float32]) -> Picture:
        """Returns the picture with saliency, of any square shape, painted over it."""
        return overlay(self.picture, upsample(saliency, self.size))

    def only(self, patches: Sequence[int], grid: int) -> Picture:
        """Returns the picture on these patches and the baseline elsewhere: the input for which the set was scored."""
        return self.keep(patch_mask(patches, grid, self.size))


def view_of(picture: Picture, kind: str, blur_sigma: float = 0.0, given: Picture | None = None) -> View:
    """Returns a picture with the baseline of a kind that a job reported.

    Args:
        picture: The model's input as a picture.
        kind: "blur", "black", "mean", "noise" or "image"; for any other kind, the mean colour is used.
        blur_sigma: Standard deviation of the blur, in pixels; 0 for the default.
        given: The baseline of kind "image".
    """
    mean = picture.mean((0, 1), keepdims=True)
    match kind:
        case "blur":
            baseline = gaussian_blur(picture, blur_sigma or BLUR_SHARE * picture.shape[0])
        case "black":
            baseline = np.zeros_like(picture)
        case "image" if given is not None:
            baseline = given
        case "noise":
            # Not the job's own noise, which needs torch's generator, but noise with the same mean and spread.
            noise = np.random.default_rng(0).standard_normal(picture.shape)
            baseline = np.clip(mean + noise * picture.std((0, 1), keepdims=True), 0, 1)
        case _:
            baseline = np.broadcast_to(mean, picture.shape)
    exact = kind not in ("noise", "image") or (kind == "image" and given is not None)
    return View(picture, np.asarray(baseline, np.float32), exact)


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

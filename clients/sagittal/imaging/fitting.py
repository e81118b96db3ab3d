"""Fits an image to a model's square input, and returns the position of the input on the image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import PIL.Image
from numpy.typing import NDArray

_RESAMPLING: Mapping[str, PIL.Image.Resampling] = {
    "nearest": PIL.Image.Resampling.NEAREST,
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "bicubic": PIL.Image.Resampling.BICUBIC,
    "lanczos": PIL.Image.Resampling.LANCZOS,
}


class Fit(Protocol):
    """The settings of a model's preprocessing that determine positions."""

    @property
    def input_size(self) -> int:
        """Side of the square input in pixels."""

    @property
    def resize(self) -> int:
        """For "crop", the length of the shorter side after resizing, before the crop, in pixels."""

    @property
    def interpolation(self) -> str:
        """Any of "nearest", "bilinear", "bicubic" or "lanczos"."""

    @property
    def fit(self) -> str:
        """Either "crop", "squash" or "pad"."""


class Scale(Protocol):
    """The settings of a model's preprocessing that determine values."""

    @property
    def mean(self) -> Sequence[float]:
        """Mean of each channel in the order of `channel_order`, on the 0..1 scale."""

    @property
    def std(self) -> Sequence[float]:
        """Standard deviation of each channel in the order of `channel_order`, on the 0..1 scale."""

    @property
    def channel_order(self) -> str:
        """Either "RGB" or "BGR"."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The part of an image that the model sees, as shares of its width and height: the same at every size.

    A padded input reaches beyond the image: its frame starts below 0 and ends above 1.
    """

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0


def visible_box(shape: tuple[int, ...], how: Fit) -> tuple[float, float, float, float]:
    """Returns the part of an image (height, width) that the model sees: left, top, right, bottom in its pixels.

    Resizing this part alone, instead of cropping after resizing all, bounds the work for very long images. With "pad"
    the part reaches beyond the image.
    """
    height, width = shape
    if how.fit == "squash":
        return 0.0, 0.0, float(width), float(height)
    if how.fit == "pad":
        before, above, columns, rows = _padded(shape, how.input_size)
        across, down = width / columns, height / rows
        return (
            -before * across,
            -above * down,
            (how.input_size - before) * across,
            (how.input_size - above) * down,
        )
    if how.fit != "crop":
        raise ValueError(f"fit is {how.fit!r}; only crop, squash and pad are known")
    side = how.input_size / how.resize * min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def frame_of(shape: tuple[int, ...], how: Fit) -> Frame:
    """Returns the part of an image (height, width) that the model sees."""
    left, top, right, bottom = visible_box(shape, how)
    return Frame(left / shape[1], top / shape[0], right / shape[1], bottom / shape[0])


def fit_to_input(image: NDArray[np.uint8], how: Fit) -> NDArray[np.uint8]:
    """Returns the part of an image (height, width, 3) that the model sees: (size, size, 3), uint8."""
    size, resampling = how.input_size, _RESAMPLING[how.interpolation]
    picture = PIL.Image.fromarray(image)
    if how.fit != "pad":
        return np.asarray(picture.resize((size, size), resampling, box=visible_box(image.shape[:2], how)))
    left, top, columns, rows = _padded(image.shape[:2], size)
    padded = PIL.Image.new("RGB", (size, size))
    padded.paste(picture.resize((columns, rows), resampling), (left, top))
    return np.asarray(padded)


def _padded(shape: tuple[int, ...], size: int) -> tuple[int, int, int, int]:
    """Returns the position of a whole image (height, width) on a padded input, in pixels: left, top, columns, rows."""
    height, width = shape
    rows, columns = (max(1, round(size * side / max(height, width))) for side in (height, width))
    return (size - columns) // 2, (size - rows) // 2, columns, rows


def picture_of_input(values: NDArray[np.float32], how: Scale) -> NDArray[np.uint8]:
    """Returns a model's input (3, height, width) without its normalisation: uint8 RGB (height, width, 3), clipped."""
    mean, std = (np.array(each, np.float32).reshape(3, 1, 1) for each in (how.mean, how.std))
    scaled = (values * std + mean)[:: -1 if how.channel_order == "BGR" else 1]
    return np.asarray(np.rint(np.clip(scaled, 0, 1) * 255).transpose(1, 2, 0), np.uint8)


def shrink(image: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    """Returns an image whose longer side has at most `longest` pixels; its proportions are kept."""
    height, width = image.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = PIL.Image.fromarray(image)
    return np.asarray(picture.resize(size, PIL.Image.Resampling.BILINEAR, reducing_gap=2.0))

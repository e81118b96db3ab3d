"""Preprocessing: from a decoded image to a model's input, and back."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sagittal.core.models import Preprocessing
from sagittal.engine.alterations import PixelScale
from sagittal.imaging.fitting import fit_to_input


def to_input(image: NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
    """Returns the input of shape (3, size, size), float32, for an RGB image (height, width, 3)."""
    cropped = fit_to_input(image, preprocessing)
    values = torch.from_numpy(np.array(cropped)).permute(2, 0, 1).to(torch.float32) / 255
    return normalised(values, preprocessing)


def normalised(values: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Returns the input for RGB values (3, height, width) in [0, 1]."""
    if preprocessing.channel_order == "BGR":
        values = values.flip(0)
    return (values - _channels(preprocessing.mean)) / _channels(preprocessing.std)


def to_rgb(values: Tensor, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Returns the RGB image (size, size, 3), uint8, of an input (3, size, size); it inverts `to_input`."""
    scaled = values.cpu() * _channels(preprocessing.std) + _channels(preprocessing.mean)
    if preprocessing.channel_order == "BGR":
        scaled = scaled.flip(0)
    return (scaled * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def black(preprocessing: Preprocessing) -> Tensor:
    """Returns the normalised value of black, of shape (3, 1, 1)."""
    return (0 - _channels(preprocessing.mean)) / _channels(preprocessing.std)


def pixel_scale(preprocessing: Preprocessing) -> PixelScale:
    """Returns the normalised values of black and white."""
    (red, green, blue), (high_red, high_green, high_blue) = (
        ((level - _channels(preprocessing.mean)) / _channels(preprocessing.std)).flatten().tolist() for level in (0, 1)
    )
    return PixelScale((red, green, blue), (high_red, high_green, high_blue), preprocessing.channel_order == "BGR")


def _channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(3, 1, 1)

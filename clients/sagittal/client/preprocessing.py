"""Conversion of an image to the model's input."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Fit the image to the square input, scale to 0..1, subtract the mean, divide by the standard deviation."""

    input_size: int
    """Side of the square input in pixels."""
    resize: int
    """Length of the shorter side after resizing, before the crop, in pixels."""
    interpolation: str
    """"bilinear", "bicubic", "lanczos" or "nearest"."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channel_order: str
    fit: str = "crop"
    """"crop": resize the shorter side and crop the centre; "squash": resize both sides to the input size; "pad": resize
    the longer side to the input size and pad the shorter one with black."""
    layout: str = "NCHW"
    """"NCHW": channels first; "NHWC": channels last."""
    preset: str = ""
    """Name of torchvision weights with this preprocessing; empty for none."""

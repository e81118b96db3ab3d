"""Reads encoded images as upright RGB over white."""

import io
from collections.abc import Callable, Mapping

import numpy as np
import PIL.Image
from numpy.typing import NDArray

#: Formats that the service reads, as Pillow names them.
FORMATS = ("JPEG", "PNG", "WEBP")

_EXIF_ORIENTATION = 0x0112

_TURNS: Mapping[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: pixels.transpose(1, 0, 2)[:, ::-1],
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: pixels.transpose(1, 0, 2)[::-1],
}


def read_image(data: bytes) -> NDArray[np.uint8]:
    """Returns an encoded image as uint8 RGB of shape (height, width, 3), upright, alpha composed over white.

    It sets no limits; `sagittal.core.images` reads images from callers within limits.

    Raises:
        OSError, SyntaxError, ValueError: it is damaged, or neither JPEG, PNG nor WebP.
    """
    with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        picture.load()
        return upright(np.asarray(in_colour(picture), np.uint8), orientation_of(picture))


def orientation_of(picture: PIL.Image.Image) -> int:
    """Returns the EXIF orientation of an image, 1 to 8; 1 is upright."""
    return int(picture.getexif().get(_EXIF_ORIENTATION, 1))


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Returns pixels of shape (height, width, 3) turned upright according to their EXIF orientation."""
    turn = _TURNS.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def in_colour(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Returns an image of any mode as RGB over white."""
    if picture.mode.startswith("I"):
        return _from_16_bit(picture).convert("RGB")
    if "transparency" in picture.info and picture.mode in ("1", "L", "P", "RGB"):
        picture = picture.convert("RGBA")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    white = PIL.Image.new("RGB", picture.size, "white")
    white.paste(picture, mask=picture.getchannel("A"))
    return white


def _from_16_bit(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Returns 16-bit grey as 8-bit grey; a level that stands for transparency becomes white."""
    levels = np.asarray(picture).astype(np.int64)
    grey = np.clip(levels >> 8, 0, 255).astype(np.uint8)
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        grey[levels == clear] = 255
    return PIL.Image.fromarray(grey)

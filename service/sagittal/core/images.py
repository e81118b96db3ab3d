"""Checks images from callers against limits before anything is allocated, then decodes them to RGB.

Only three of Pillow's parsers are reachable: JPEG, PNG and WebP. Each reads the header first, so an image beyond the
limits, such as a decompression bomb, is rejected by its header. An image is also rejected if decoding it would take
more memory than `ImageLimits.memory`, estimated from the bytes per pixel of its format. `core.decoding` runs this in
child processes.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from sagittal.core.errors import InvalidImage, InvalidRequest
from sagittal.core.tensors import array_of
from sagittal.imaging.reading import in_colour, orientation_of, upright
from sagittal.v1 import tensor_pb2

_MEBI = 2**20

#: Exceptions that Pillow's parsers raise for damaged files.
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, AttributeError, OverflowError,
    struct.error, zlib.error, Pillow.DecompressionBombError, Pillow.DecompressionBombWarning,
)  # fmt: skip

#: Bytes per pixel that Pillow holds while it decodes, as `test_a_decoded_image_takes_no_more_than_its_estimate`
#: measures. An image takes at most 4 in any mode. WebP takes two canvases, the frame and a copy of it. A progressive
#: JPEG also holds its coefficients, 2 bytes for each component.
_BYTES_A_PIXEL, _WEBP_BYTES_A_PIXEL, _COEFFICIENT_BYTES = 4, 17, 2

#: Pixels that take as long to check as one byte of a JPEG, which is read to its end but built at reduced size.
_JPEG_PIXELS_A_BYTE = 4

_PNG = b"\x89PNG\r\n\x1a\n"

#: Bytes that decoding takes for an image of any size.
_DECODING_BYTES = 8 * _MEBI

#: Pixels that are converted to RGB at a time.
_STRIP_PIXELS = 2**18


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """Limits for the size of an image."""

    max_bytes: int = 16 * _MEBI
    """Bytes of an encoded file."""
    max_pixels: int = 64_000_000
    """Width times height; 8000 x 8000 is the largest square."""
    max_frames: int = 1_000
    """Frames of an animation; only the first is used."""
    memory: int = 256 * _MEBI
    """Bytes that decoding one encoded image may take, in addition to the file and the result."""
    seconds: float = 30.0
    """Longest time that decoding one image may take, in seconds."""


def check_image_set(image: tensor_pb2.Image, field: str) -> None:
    """Raises InvalidRequest if the image is not set."""
    if image.WhichOneof("source") is None:
        text = f"{field} is not set; give a JPEG, PNG or WebP file in `encoded`, or a tensor"
        raise InvalidRequest(text, field=field)


def check(image: tensor_pb2.Image, limits: ImageLimits, *, field: str = "image", input_size: int = 0) -> None:
    """Raises the errors that `decode` or `model_input` would raise, at lower cost if possible.

    Args:
        image: The caller's image.
        limits: Limits for its size.
        field: Path of the image in the request, for errors.
        input_size: Side in pixels that a `model_input` must have; 0 for any.
    """
    source = image.WhichOneof("source")
    if source == "model_input":
        model_input(image, limits, field=field, input_size=input_size)
    elif source == "encoded":
        check_encoded(image.encoded, limits, f"{field}.encoded")
    else:
        decode(image, limits, field=field)


def pixels_to_read(image: tensor_pb2.Image) -> int:
    """Returns the time that checking an image takes, in pixels of a PNG, estimated from the image's first bytes."""
    data = image.encoded
    if not data:
        return image.ByteSize() // 3
    if data.startswith(_PNG):
        width, height = struct.unpack_from(">II", data.ljust(24, b"\0"), 16)
        return int(width * height)
    if data[8:12] == b"WEBP":
        width, height = _webp_size(data)
        return width * height
    return len(data) * _JPEG_PIXELS_A_BYTE


def check_encoded(data: bytes, limits: ImageLimits, path: str) -> None:
    """Raises InvalidImage if `opened` would."""
    with _opened(data, limits, path) as picture:
        picture.draft("RGB", (1, 1))  # a JPEG is read to its end, but built at an eighth of its size
        _load(picture, path)


def decode(image: tensor_pb2.Image, limits: ImageLimits, *, field: str = "image") -> NDArray[np.uint8]:
    """Returns the image as it is displayed: uint8 RGB of shape (height, width, 3), values 0 to 255.

    The EXIF orientation is applied. Alpha is composed over white. Palette, grey, 16-bit and CMYK images are converted
    to RGB. The first frame of an animation is used.

    Raises:
        InvalidImage: the file cannot be read or exceeds the limits.
        InvalidRequest: the tensor has the wrong type, shape, length or range.
    """
    source = image.WhichOneof("source")
    if source == "encoded":
        return _decoded(image.encoded, limits, f"{field}.encoded")
    if source == "pixels":
        return _pixels(image.pixels, limits, f"{field}.pixels")
    if source == "model_input":
        raise InvalidRequest(
            f"{field}.model_input is the model's input, not an image; give `encoded` or `pixels`", field=field
        )
    raise InvalidRequest(f"{field} is empty: give `encoded`, `pixels` or `model_input`", field=field)


def model_input(
    image: tensor_pb2.Image, limits: ImageLimits, *, field: str = "image", input_size: int = 0
) -> NDArray[np.float32]:
    """Returns `image.model_input` as float32 of shape (3, height, width), all values finite.

    Raises:
        InvalidRequest: the tensor is missing, has the wrong type, shape, length or size, or holds NaN or infinity.
    """
    path = f"{field}.model_input"
    array = array_of(image.model_input, path, dtypes=("FLOAT32", "FLOAT16"))
    if array.ndim != 3 or array.shape[0] != 3 or 0 in array.shape:
        raise InvalidRequest(f"{path} has shape {array.shape}; give (3, height, width)", field=f"{path}.shape")
    if input_size and array.shape[1:] != (input_size, input_size):
        expected = f"the model takes (3, {input_size}, {input_size})"
        raise InvalidRequest(f"{path} has shape {array.shape}; {expected}", field=f"{path}.shape")
    _check_pixels(array.shape[2], array.shape[1], limits, path)
    return array.astype(np.float32)


def _pixels(tensor: tensor_pb2.Tensor, limits: ImageLimits, path: str) -> NDArray[np.uint8]:
    array = array_of(tensor, path, dtypes=("UINT8", "FLOAT32", "FLOAT16"))
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise InvalidRequest(f"{path} has shape {array.shape}; give (height, width, 3)", field=f"{path}.shape")
    _check_pixels(array.shape[1], array.shape[0], limits, path)
    if array.dtype == np.uint8:
        return array.copy()
    if array.min() < 0 or array.max() > 1:
        given = f"{array.min():g} to {array.max():g}"
        raise InvalidRequest(f"{path} ranges from {given}; give 0 to 1, or UINT8 of 0 to 255", field=f"{path}.data")
    return np.rint(array.astype(np.float32) * 255).astype(np.uint8)


def _decoded(data: bytes, limits: ImageLimits, path: str) -> NDArray[np.uint8]:
    with opened(data, limits, path) as image:
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        top = 0
        for strip in image.strips():
            pixels[top : top + len(strip)] = strip
            top += len(strip)
        return upright(pixels, image.orientation)


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An image that was read to its end."""

    picture: ImageFile
    width: int
    height: int
    orientation: int
    """EXIF orientation, 1 to 8; 1 is upright."""

    def strips(self) -> Iterator[NDArray[np.uint8]]:
        """Yields the rows from the top as uint8 RGB over white, in strips of shape (rows, width, 3)."""
        rows = max(1, _STRIP_PIXELS // self.width)
        for top in range(0, self.height, rows):
            strip = self.picture.crop((0, top, self.width, min(top + rows, self.height)))
            yield np.asarray(in_colour(strip), dtype=np.uint8)


@contextmanager
def opened(data: bytes, limits: ImageLimits, path: str) -> Iterator[LoadedImage]:
    """Reads an encoded image to its end. Raises InvalidImage."""
    with _opened(data, limits, path) as picture:
        _load(picture, path)  # before _orientation, which also loads a PNG but ignores damage
        yield LoadedImage(picture, *picture.size, _orientation(picture))


def _opened(data: bytes, limits: ImageLimits, path: str) -> ImageFile:
    """Returns the image with only its header read, after checking it against the limits."""
    if len(data) > limits.max_bytes:
        text = f"{path} has {len(data):,} bytes; give at most {limits.max_bytes:,}: send a smaller image"
        raise InvalidImage(text, field=path)
    parser = next((parser for accepts, parser in _FORMATS if accepts(data)), None)
    if parser is None:
        found = "empty" if not data else f"no image in a known format (it begins with {data[:8].hex(' ')})"
        raise InvalidImage(f"{path} is {found}; give a JPEG, PNG or WebP file", field=path)
    if parser is WebPImageFile:  # its parser allocates the canvas when it opens the file
        _check_pixels(*_webp_size(data), limits, path)
        _check_memory(*_webp_size(data), "WebP", _WEBP_BYTES_A_PIXEL, limits, path)
    try:
        picture = parser(io.BytesIO(data))
        frames = int(getattr(picture, "n_frames", 1))
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    _check_pixels(*picture.size, limits, path)
    if parser is JpegImageFile and picture.info.get("progressive"):
        bytes_a_pixel = _BYTES_A_PIXEL + _COEFFICIENT_BYTES * len(picture.getbands())
        _check_memory(*picture.size, "progressive JPEG", bytes_a_pixel, limits, path)
    elif parser is not WebPImageFile:
        _check_memory(*picture.size, picture.format or "", _BYTES_A_PIXEL, limits, path)
    if frames > limits.max_frames:
        raise InvalidImage(f"{path} has {frames:,} frames; give at most {limits.max_frames:,}", field=path)
    return picture


def _load(picture: ImageFile, path: str) -> None:
    try:
        picture.load()
    except MemoryError as error:
        text = f"{path} takes more memory to decode than is allowed: scale it down first"
        raise InvalidImage(text, field=path) from error
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    if picture.mode in ("P", "PA") and picture.palette is None:
        raise _damaged(path, ValueError("it has palette colours but no palette"))


def _damaged(path: str, error: BaseException) -> InvalidImage:
    text = str(error) or type(error).__name__
    return InvalidImage(f"{path} is damaged or cut short ({text}): send the whole file", field=path)


def _check_pixels(width: int, height: int, limits: ImageLimits, path: str) -> None:
    if width * height > limits.max_pixels:
        given = f"{width:,} x {height:,} = {width * height:,} pixels"
        text = f"{path} has {given}; at most {limits.max_pixels:,} are allowed: scale it down first"
        raise InvalidImage(text, field=path)


def _check_memory(width: int, height: int, kind: str, bytes_a_pixel: int, limits: ImageLimits, path: str) -> None:
    most = max(0, limits.memory - _DECODING_BYTES) // bytes_a_pixel
    if width * height > most:
        given = f"a {kind} of {width:,} x {height:,} pixels, which takes {bytes_a_pixel} bytes a pixel to decode"
        text = f"{path} is {given}; at most {most:,} pixels of that format are allowed: scale it down first"
        raise InvalidImage(text, field=path)


def _orientation(picture: ImageFile) -> int:
    try:
        return orientation_of(picture)
    except _DAMAGE:
        return 1  # an image with damaged metadata is still usable


def _webp_size(data: bytes) -> tuple[int, int]:
    """Returns width and height of the canvas from the header; (0, 0) if it is damaged, which the parser reports."""
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        return 0, 0
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", body, 6)
    return width & 0x3FFF, height & 0x3FFF


_FORMATS: tuple[tuple[Callable[[bytes], bool], Callable[[Any], ImageFile]], ...] = (
    (lambda data: data.startswith(b"\xff\xd8\xff"), JpegImageFile),
    (lambda data: data.startswith(_PNG), PngImageFile),
    (lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP", WebPImageFile),
)

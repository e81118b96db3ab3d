"""Images from callers: checked against limits before anything is allocated, then decoded to plain RGB.

Only three parsers of Pillow's can be reached (JPEG, PNG, WebP), and each reads its header first: an image beyond the
limits, such as a decompression bomb, is refused from its header. So is one that would take more memory to decode than
`ImageLimits.memory`, by the bytes a pixel that its format takes. See `core.decoding` for decoding in other processes.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
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
from sagittal.v1 import tensor_pb2

_MEBI = 2**20
_EXIF_ORIENTATION = 0x0112

#: What Pillow's parsers raise on damaged files.
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, AttributeError, OverflowError,
    struct.error, zlib.error, Pillow.DecompressionBombError, Pillow.DecompressionBombWarning,
)  # fmt: skip

#: Bytes a pixel that Pillow holds while it decodes, as `test_a_decoded_image_takes_no_more_than_its_estimate` measures.
#: An image of any mode takes 4 at most; WebP takes two canvases, the frame and a copy of it beside; a progressive JPEG
#: holds its coefficients, 2 for each component.
_BYTES_A_PIXEL, _WEBP_BYTES_A_PIXEL, _COEFFICIENT_BYTES = 4, 17, 2

#: Pixels that take as long as a byte of a JPEG, which is read to its end but not built at its size.
_JPEG_PIXELS_A_BYTE = 4

_PNG = b"\x89PNG\r\n\x1a\n"

#: Bytes that decoding takes for an image of any size.
_DECODING_BYTES = 8 * _MEBI

_TURNS: Mapping[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: pixels.transpose(1, 0, 2)[:, ::-1],
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: pixels.transpose(1, 0, 2)[::-1],
}

#: Pixels that are turned into plain RGB at a time.
_STRIP_PIXELS = 2**18


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """How large a picture may be."""

    max_bytes: int = 16 * _MEBI
    """Bytes of an encoded file."""
    max_pixels: int = 64_000_000
    """Width times height: 8000 x 8000 is just admitted."""
    max_frames: int = 1_000
    """Frames of an animation, of which the first counts."""
    memory: int = 256 * _MEBI
    """Bytes that decoding one encoded image may take, beside the file and the result."""
    seconds: float = 30.0
    """Longest time that a process may take to decode one image."""


def check(image: tensor_pb2.Image, limits: ImageLimits, *, field: str = "image", input_size: int = 0) -> None:
    """Raises what `decode` or `model_input` would raise, at less cost where it can.

    Args:
        image: A picture of the caller's.
        limits: How large it may be.
        field: Path of the picture in the request, for errors.
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
    """Returns how long it takes to check an image, in pixels of a PNG, from its first bytes alone."""
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
        picture.draft("RGB", (1, 1))  # a JPEG is read whole, to its end, but built at an eighth of its size
        _load(picture, path)


def decode(image: tensor_pb2.Image, limits: ImageLimits, *, field: str = "image") -> NDArray[np.uint8]:
    """Returns the picture as the caller sees it, uint8 RGB of shape (height, width, 3).

    The EXIF orientation is applied, alpha is composed over white, palette, grey, 16-bit and CMYK pictures become RGB,
    and of an animation the first frame counts.

    Raises:
        InvalidImage: a file that cannot be read, or is beyond the limits.
        InvalidRequest: a tensor of the wrong type, shape, length or range.
    """
    source = image.WhichOneof("source")
    if source == "encoded":
        return _decoded(image.encoded, limits, f"{field}.encoded")
    if source == "pixels":
        return _pixels(image.pixels, limits, f"{field}.pixels")
    if source == "model_input":
        raise InvalidRequest(f"{field}.model_input is no picture: read it as the model's input", field=field)
    raise InvalidRequest(f"{field} is empty: give `encoded`, `pixels` or `model_input`", field=field)


def model_input(
    image: tensor_pb2.Image, limits: ImageLimits, *, field: str = "image", input_size: int = 0
) -> NDArray[np.float32]:
    """Returns `image.model_input` as float32 of shape (3, height, width), finite.

    Raises:
        InvalidRequest: it is not set, or has the wrong type, shape, length or size, or values that are not finite.
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
    """As EXIF numbers it; 1 is upright."""

    def strips(self) -> Iterator[NDArray[np.uint8]]:
        """Yields the image's rows from the top as RGB over white, some at a time: never a copy of the whole."""
        rows = max(1, _STRIP_PIXELS // self.width)
        for top in range(0, self.height, rows):
            strip = self.picture.crop((0, top, self.width, min(top + rows, self.height)))
            yield np.asarray(_in_colour(strip), dtype=np.uint8)


@contextmanager
def opened(data: bytes, limits: ImageLimits, path: str) -> Iterator[LoadedImage]:
    """Reads an encoded image to its end. Raises InvalidImage."""
    with _opened(data, limits, path) as picture:
        _load(picture, path)  # first: asking a PNG for its orientation loads it, and that damage would be overlooked
        yield LoadedImage(picture, *picture.size, _orientation(picture))


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Returns pixels of shape (height, width, 3) turned as their EXIF orientation says."""
    turn = _TURNS.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _opened(data: bytes, limits: ImageLimits, path: str) -> ImageFile:
    """Returns the picture with only its header read, known to be within the limits."""
    if len(data) > limits.max_bytes:
        text = f"{path} has {len(data):,} bytes; at most {limits.max_bytes:,} are admitted: send a smaller picture"
        raise InvalidImage(text, field=path)
    parser = next((parser for accepts, parser in _FORMATS if accepts(data)), None)
    if parser is None:
        found = "empty" if not data else f"no picture that can be read (it begins with {data[:8].hex(' ')})"
        raise InvalidImage(f"{path} is {found}; give a JPEG, PNG or WebP file", field=path)
    if parser is WebPImageFile:  # its parser allocates the canvas while it opens
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
        raise InvalidImage(f"{path} has {frames:,} frames; at most {limits.max_frames:,} are admitted", field=path)
    return picture


def _load(picture: ImageFile, path: str) -> None:
    try:
        picture.load()
    except MemoryError as error:
        text = f"{path} takes more memory to decode than is admitted: scale it down first"
        raise InvalidImage(text, field=path) from error
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    if picture.mode in ("P", "PA") and picture.palette is None:
        raise _damaged(path, ValueError("it lacks the palette that its colours are numbers of"))


def _damaged(path: str, error: BaseException) -> InvalidImage:
    text = str(error) or type(error).__name__
    return InvalidImage(f"{path} is damaged or cut short ({text}): send the whole file", field=path)


def _check_pixels(width: int, height: int, limits: ImageLimits, path: str) -> None:
    if width * height > limits.max_pixels:
        given = f"{width:,} x {height:,} = {width * height:,} pixels"
        text = f"{path} has {given}; at most {limits.max_pixels:,} are admitted: scale it down first"
        raise InvalidImage(text, field=path)


def _check_memory(width: int, height: int, kind: str, bytes_a_pixel: int, limits: ImageLimits, path: str) -> None:
    most = max(0, limits.memory - _DECODING_BYTES) // bytes_a_pixel
    if width * height > most:
        given = f"a {kind} of {width:,} x {height:,} pixels, which takes {bytes_a_pixel} bytes a pixel to decode"
        text = f"{path} is {given}; at most {most:,} pixels of that format are admitted: scale it down first"
        raise InvalidImage(text, field=path)


def _orientation(picture: ImageFile) -> int:
    try:
        return int(picture.getexif().get(_EXIF_ORIENTATION, 1))
    except _DAMAGE:
        return 1  # damaged metadata does not spoil the picture


def _in_colour(picture: Pillow.Image) -> Pillow.Image:
    """Returns the picture as RGB over white."""
    if picture.mode.startswith("I"):
        return _from_16_bit(picture).convert("RGB")
    if "transparency" in picture.info and picture.mode in ("1", "L", "P", "RGB"):
        picture = picture.convert("RGBA")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    white = Pillow.new("RGB", picture.size, "white")
    white.paste(picture, mask=picture.getchannel("A"))
    return white


def _from_16_bit(picture: Pillow.Image) -> Pillow.Image:
    """Returns 16-bit grey as 8-bit grey; a level that stands for transparency becomes white."""
    levels = np.asarray(picture).astype(np.int64)
    grey = np.clip(levels >> 8, 0, 255).astype(np.uint8)
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        grey[levels == clear] = 255
    return Pillow.fromarray(grey)


def _webp_size(data: bytes) -> tuple[int, int]:
    """Returns width and height of the canvas, from the header; (0, 0) where the parser will find it damaged."""
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

"""Pictures from callers: refused by name or decoded within the limits, and the service and the workers agree."""

import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
from google.protobuf.message import DecodeError
from PIL import Image as Pillow

from fuzzing.oracles import MEBI, bounded
from sagittal.core.errors import InvalidImage, InvalidRequest
from sagittal.core.images import ImageLimits, check, decode, model_input
from sagittal.v1 import tensor_pb2

#: Small, so that what is beyond them is found soon.
LIMITS = ImageLimits(max_bytes=2**16, max_pixels=2**16, max_frames=8)

#: Bytes of an input.
MAX_LENGTH = 2**16

#: Memory and processor time that an input may take: 17 bytes a pixel, twice, and what coverage adds, in bytes, seconds.
MEMORY, SECONDS = 2 * 17 * LIMITS.max_pixels + 24 * MEBI, 5.0

_PNG = b"\x89PNG\r\n\x1a\n"


def run(data: bytes) -> None:
    """Reads an image as the service and then as a worker would, in bounded memory and time."""
    with bounded("an image", memory=MEMORY, seconds=SECONDS):
        _read(data)


def _read(data: bytes) -> None:
    image = _image(data)
    if image is None:
        return
    read = model_input if image.WhichOneof("source") == "model_input" else decode
    admitted, array = _attempt(lambda: check(image, LIMITS)), _attempt(lambda: read(image, LIMITS))
    assert (admitted is REFUSED) == (array is REFUSED), "the service and the worker disagree about a picture"
    if array is REFUSED:
        return
    floats = read is model_input
    height, width = array.shape[1:] if floats else array.shape[:2]
    assert array.shape == ((3, height, width) if floats else (height, width, 3))
    assert array.dtype == (np.float32 if floats else np.uint8)
    assert 0 < height * width <= LIMITS.max_pixels
    assert np.isfinite(array).all()


REFUSED = object()


def _attempt(read: Callable[[], object]) -> object:
    try:
        return read()
    except (InvalidImage, InvalidRequest) as error:
        assert error.field.startswith("image"), f"the error names no field: {error.message}"
        assert error.message.startswith("image"), error.message
        return REFUSED


def _image(data: bytes) -> tensor_pb2.Image | None:
    """Returns the image that the first byte says: a file, or a whole message; None where it is no message."""
    if data[:1] == b"\x00":
        return tensor_pb2.Image(encoded=data[1:])
    try:
        return tensor_pb2.Image.FromString(data[1:])
    except DecodeError:
        return None


def mutate(data: bytes, max_size: int, seed: int, plain: Callable[[bytes, int], bytes]) -> bytes:
    """Changes the input, and mostly makes the checksums of a PNG right again, or nothing behind them is reached."""
    changed = plain(data, max_size)
    if random.Random(seed).random() < 0.8 and changed[1:9] == _PNG:
        changed = changed[:1] + _with_checksums(changed[1:])
    return changed[:max_size]


def _with_checksums(data: bytes) -> bytes:
    """Returns a PNG with the checksum of each whole chunk put right."""
    fixed, position = bytearray(data), 8
    while position + 12 <= len(fixed):
        (length,) = struct.unpack_from(">I", fixed, position)
        end = position + 8 + length
        if end + 4 > len(fixed):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(fixed[position + 4 : end]))
        position = end + 4
    return bytes(fixed)


def bombs() -> list[bytes]:
    """Returns files of few bytes and many pixels: within the limits, and beyond."""
    tiny = _saved(Pillow.new("RGB", (1, 1)), "WEBP", lossless=True)
    canvas = bytes(4) + (8000 - 1).to_bytes(3, "little") * 2
    body = b"VP8X" + struct.pack("<I", 10) + canvas + tiny[12:]
    webp = b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
    black = Pillow.new("L", (3000, 3000))
    return [webp, *(_saved(black, kind) for kind in ("PNG", "WEBP", "JPEG"))]


def seeds() -> list[bytes]:
    """Returns inputs to begin with: every format and mode, an animation, tensors."""
    grey = Pillow.linear_gradient("L").resize((24, 17))
    colour = Pillow.merge("RGB", (grey, grey.rotate(180), grey))
    alpha = colour.copy()
    alpha.putalpha(grey)
    found = [_saved(picture, "PNG") for picture in (grey, colour, alpha, grey.convert("1"), colour.convert("P"))]
    found.append(_saved(Pillow.fromarray(np.arange(408, dtype=np.uint16).reshape(17, 24) * 99), "PNG"))
    found += [_saved(picture, "JPEG") for picture in (grey, colour, colour.convert("CMYK"))]
    found.append(_saved(colour, "JPEG", progressive=True, exif=_turned()))
    found += [_saved(colour, "WEBP"), _saved(alpha, "WEBP", lossless=True)]
    found += [_saved(alpha, kind, save_all=True, append_images=[alpha] * 3) for kind in ("WEBP", "PNG")]
    pixels = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_UINT8, shape=[2, 3, 3], data=bytes(18))
    values = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=[3, 2, 2], data=bytes(48))
    messages = [tensor_pb2.Image(pixels=pixels), tensor_pb2.Image(model_input=values)]
    return [b"\x00" + file for file in found] + [b"\x01" + message.SerializeToString() for message in messages]


def _saved(picture: Pillow.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _turned() -> Pillow.Exif:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    return exif

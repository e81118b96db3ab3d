"""Images in the forms that the API accepts: a path, a file's bytes, a PIL image or an array."""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
from numpy.typing import NDArray

from sagittal.client.errors import InvalidImage
from sagittal.v1 import tensor_pb2

_DTYPES: Mapping[int, np.dtype[np.generic]] = {
    tensor_pb2.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    tensor_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    tensor_pb2.DATA_TYPE_UINT8: np.dtype("u1"),
}


def to_array(tensor: tensor_pb2.Tensor) -> NDArray[np.float32]:
    """Returns a tensor as a float32 array of its shape, as a copy."""
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise ValueError(f"the service sent a tensor of an unknown type ({tensor.dtype}): update this client")
    return np.frombuffer(tensor.data, dtype).reshape(tuple(tensor.shape)).astype(np.float32)


def to_tensor(array: NDArray[np.generic]) -> tensor_pb2.Tensor:
    """Returns an array as a tensor: uint8 and float16 unchanged, all other numbers as float32."""
    numbers = {dtype: number for number, dtype in _DTYPES.items()}
    number = numbers.get(array.dtype, tensor_pb2.DATA_TYPE_FLOAT32)
    dtype = _DTYPES[number]
    data = np.ascontiguousarray(array, dtype)
    return tensor_pb2.Tensor(dtype=tensor_pb2.DataType.ValueType(number), shape=data.shape, data=data.tobytes())


class UnreadableImage(InvalidImage):
    """A file does not exist or cannot be read, or its data is damaged."""


@dataclass(frozen=True, slots=True)
class ModelInput:
    """A model's own input, which skips preprocessing."""

    array: NDArray[np.floating]
    """Shape (3, height, width), already normalised, finite."""


#: Description of the accepted forms, for messages.
ACCEPTED = "a path, the bytes of a JPEG, PNG or WebP file, a PIL image, an array (height, width, 3), or a ModelInput"

ImageLike = str | os.PathLike[str] | bytes | bytearray | memoryview | PIL.Image.Image | NDArray[np.generic] | ModelInput
"""Accepted forms of an image. Arrays are RGB of shape (height, width, 3): uint8 in 0..255, or floats in 0..1."""


def encode_image(image: ImageLike, *, field: str = "spec.image") -> tensor_pb2.Image:
    """Returns an image as the API's message.

    Files are sent unchanged. Raises InvalidImage if it is no image, and UnreadableImage if it cannot be read.
    """
    try:
        return _encode(image, field)
    except (OSError, ValueError) as error:
        raise UnreadableImage(f"cannot read the image: {error}", field=field) from error


def _encode(image: object, field: str) -> tensor_pb2.Image:
    match image:
        case str() | os.PathLike():
            return tensor_pb2.Image(encoded=Path(image).read_bytes())
        case bytes() | bytearray() | memoryview():
            return tensor_pb2.Image(encoded=bytes(image))
        case PIL.Image.Image():
            return tensor_pb2.Image(encoded=_png(image))
        case np.ndarray():
            return tensor_pb2.Image(pixels=to_tensor(_checked_pixels(image, field)))
        case ModelInput():
            return tensor_pb2.Image(model_input=to_tensor(_checked_input(image.array, field)))
    raise InvalidImage(f"got {type(image).__name__}; expected {ACCEPTED}", field=field)


def _png(image: PIL.Image.Image) -> bytes:
    """Keeps every pixel and the alpha channel, and applies the EXIF orientation, which PNG lacks."""
    upright = PIL.ImageOps.exif_transpose(image)
    mode = "RGBA" if upright.has_transparency_data else "RGB"
    buffer = io.BytesIO()
    upright.convert(mode).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _checked_pixels(array: NDArray[np.generic], field: str) -> NDArray[np.generic]:
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise InvalidImage(f"got an array of shape {array.shape}; expected (height, width, 3)", field=field)
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise InvalidImage(f"got an array of {array.dtype}; expected uint8 in 0..255 or floats in 0..1", field=field)
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
        raise InvalidImage("an array of floats must be finite and in 0..1; divide by 255?", field=field)
    return array


def _checked_input(array: object, field: str) -> NDArray[np.floating]:
    if not isinstance(array, np.ndarray):
        got = f"got a model input of type {type(array).__name__}"
        raise InvalidImage(f"{got}; expected a numpy array of floats (3, height, width)", field=field)
    if array.ndim != 3 or array.shape[0] != 3 or not np.issubdtype(array.dtype, np.floating):
        raise InvalidImage(
            f"got a model input of shape {array.shape} and type {array.dtype}; expected floats (3, height, width)",
            field=field,
        )
    if not np.isfinite(array).all():
        raise InvalidImage("the model input has NaN or infinite values; give finite numbers", field=field)
    return array

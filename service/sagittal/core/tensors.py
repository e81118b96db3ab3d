"""Tensors of the API as numpy arrays and back."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InvalidRequest
from sagittal.v1 import tensor_pb2

#: Most dimensions that a tensor has.
MAX_DIMENSIONS = 8

#: numpy's type of each `DataType`, little-endian.
DTYPES: Mapping[int, np.dtype[Any]] = {
    tensor_pb2.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    tensor_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    tensor_pb2.DATA_TYPE_UINT8: np.dtype("u1"),
}

_NAMES: Mapping[int, str] = {
    number: name.removeprefix("DATA_TYPE_") for name, number in tensor_pb2.DataType.items() if number in DTYPES
}


def array_of(
    tensor: tensor_pb2.Tensor, field: str, *, dtypes: Collection[str] = ("FLOAT16", "FLOAT32", "UINT8")
) -> NDArray[Any]:
    """Returns the tensor as a read-only view of its bytes, in its own type and shape, every value finite.

    Args:
        tensor: As it came from a caller.
        field: Its path in the request, for errors.
        dtypes: The types admitted.

    Raises:
        InvalidRequest: the type is not admitted, no array has the shape, the bytes do not fill it, or a value is NaN or
            infinite.
    """
    name = _NAMES.get(tensor.dtype, "not set")
    if name not in dtypes:
        raise InvalidRequest(f"{field}.dtype is {name}; give {' or '.join(dtypes)}", field=f"{field}.dtype")
    if len(tensor.shape) > MAX_DIMENSIONS:
        text = f"{field}.shape has {len(tensor.shape):,} dimensions; a tensor has {MAX_DIMENSIONS} at most"
        raise InvalidRequest(text, field=f"{field}.shape")
    dtype, shape = DTYPES[tensor.dtype], tuple(tensor.shape)
    needed = math.prod(shape) * dtype.itemsize
    if len(tensor.data) != needed:
        given = f"{len(tensor.data):,} bytes; shape {shape} of {name} takes {needed:,}"
        raise InvalidRequest(f"{field}.data has {given}", field=f"{field}.data")
    try:
        array = np.frombuffer(tensor.data, dtype=dtype).reshape(shape)
    except ValueError as error:  # empty, and huge but for that
        raise InvalidRequest(f"{field}.shape is {shape}, which no array has", field=f"{field}.shape") from error
    if dtype.kind == "f":
        _check_finite(array, field)
    return array


def tensor_of(array: NDArray[Any], dtype: tensor_pb2.DataType.ValueType) -> tensor_pb2.Tensor:
    """Returns the array as a tensor of that type."""
    data = np.ascontiguousarray(array, dtype=DTYPES[dtype]).tobytes()
    return tensor_pb2.Tensor(dtype=dtype, shape=array.shape, data=data)


def _check_finite(array: NDArray[Any], field: str) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        place = tuple(int(index) for index in np.argwhere(~finite)[0])
        count = int(array.size - np.count_nonzero(finite))
        text = f"{field}.data has {count:,} values that are NaN or infinite, the first at {place}; give finite values"
        raise InvalidRequest(text, field=f"{field}.data")

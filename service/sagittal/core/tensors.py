"""Converts tensors of the API to numpy arrays and back."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InvalidRequest
from sagittal.v1 import tensor_pb2

#: Most dimensions of a tensor.
MAX_DIMENSIONS = 8

#: numpy dtype of each `DataType`, little-endian.
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
    """Returns the tensor as a read-only view of its bytes, in its own dtype and shape, all values finite.

    Args:
        tensor: The caller's tensor.
        field: Path of the tensor in the request, for errors.
        dtypes: The allowed types.

    Raises:
        InvalidRequest: the type is not allowed, the shape is impossible, the data has the wrong length, or a value is
            NaN or infinite.
    """
    name = _NAMES.get(tensor.dtype, "not set")
    if name not in dtypes:
        raise InvalidRequest(f"{field}.dtype is {name}; give {' or '.join(dtypes)}", field=f"{field}.dtype")
    if len(tensor.shape) > MAX_DIMENSIONS:
        text = f"{field}.shape has {len(tensor.shape):,} dimensions; give at most {MAX_DIMENSIONS}"
        raise InvalidRequest(text, field=f"{field}.shape")
    dtype, shape = DTYPES[tensor.dtype], tuple(tensor.shape)
    needed = math.prod(shape) * dtype.itemsize
    if len(tensor.data) != needed:
        given = f"{len(tensor.data):,} bytes; shape {shape} of {name} takes {needed:,}"
        raise InvalidRequest(f"{field}.data has {given}; send every value once", field=f"{field}.data")
    try:
        array = np.frombuffer(tensor.data, dtype=dtype).reshape(shape)
    except ValueError as error:  # a dimension of 0 beside huge ones
        raise InvalidRequest(
            f"{field}.shape is {shape}, which is too large for an array", field=f"{field}.shape"
        ) from error
    if dtype.kind == "f":
        _check_finite(array, field)
    return array


def tensor_of(array: NDArray[Any], dtype: tensor_pb2.DataType.ValueType) -> tensor_pb2.Tensor:
    """Returns the array as a tensor of the given type."""
    data = np.ascontiguousarray(array, dtype=DTYPES[dtype]).tobytes()
    return tensor_pb2.Tensor(dtype=dtype, shape=array.shape, data=data)


def _check_finite(array: NDArray[Any], field: str) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        place = tuple(int(index) for index in np.argwhere(~finite)[0])
        count = int(array.size - np.count_nonzero(finite))
        text = f"{field}.data has {count:,} values that are NaN or infinite, the first at {place}; give finite values"
        raise InvalidRequest(text, field=f"{field}.data")

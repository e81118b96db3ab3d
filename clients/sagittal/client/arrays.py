"""Tensors of the API as numpy arrays, and back."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sagittal.v1 import tensor_pb2

_DTYPES: Mapping[int, np.dtype[np.generic]] = {
    tensor_pb2.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    tensor_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    tensor_pb2.DATA_TYPE_UINT8: np.dtype("u1"),
}


def to_array(tensor: tensor_pb2.Tensor) -> NDArray[np.float32]:
    """Returns the numbers of a tensor as a float32 array of its shape that is the caller's own."""
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise ValueError(f"the service sent a tensor of an unknown type ({tensor.dtype}): update this client")
    return np.frombuffer(tensor.data, dtype).reshape(tuple(tensor.shape)).astype(np.float32)


def to_tensor(array: NDArray[np.generic]) -> tensor_pb2.Tensor:
    """Returns an array as a tensor: uint8 and float16 as they are, every other number as float32."""
    numbers = {dtype: number for number, dtype in _DTYPES.items()}
    number = numbers.get(array.dtype, tensor_pb2.DATA_TYPE_FLOAT32)
    dtype = _DTYPES[number]
    data = np.ascontiguousarray(array, dtype)
    return tensor_pb2.Tensor(dtype=tensor_pb2.DataType.ValueType(number), shape=data.shape, data=data.tobytes())

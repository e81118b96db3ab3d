"""Images as a server takes them, and scores as it gives them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.engine.black_box import Images, Outputs
from sagittal.engine.evaluator import EvaluationFailed
from sagittal.inference.v2 import inference_pb2 as pb

_OUTPUT_TYPES: Mapping[str, str] = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}

_LARGEST_BYTE = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How images travel."""

    name: str
    """Name of the input."""
    datatype: str
    """`FP32`, `FP16` or `UINT8`."""
    channels_last: bool
    """Whether the shape is (n, height, width, 3)."""
    scale: float
    """What the normalised values are multiplied with."""

    def request(self, images: Images, *, model: str, version: str, output: str) -> pb.ModelInferRequest:
        """Returns the call that asks for the outputs of images."""
        values = images.transpose(0, 2, 3, 1) if self.channels_last else images
        request = pb.ModelInferRequest(model_name=model, model_version=version)
        request.inputs.add(name=self.name, datatype=self.datatype, shape=values.shape)
        request.raw_input_contents.append(self._packed(values))
        if output:
            request.outputs.add(name=output)
        return request

    def _packed(self, values: NDArray[Any]) -> bytes:
        scaled = values if self.scale == 1 else values * np.float32(self.scale)
        if self.datatype == "UINT8":
            return bytes(np.rint(scaled).clip(0, _LARGEST_BYTE).astype(np.uint8).tobytes())
        return bytes(scaled.astype(_OUTPUT_TYPES[self.datatype]).tobytes())


def read_outputs(response: pb.ModelInferResponse, *, output: str, images: int) -> Outputs:
    """Returns the scores (images, classes) of a response. Raises EvaluationFailed where it has none."""
    index = _index(response, output)
    tensor = response.outputs[index]
    values = _values(response, index)
    shape = list(tensor.shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape.pop()
    if len(shape) != 2 or shape[0] != images or min(shape) < 1 or math.prod(shape) != values.size:
        raise EvaluationFailed(
            f"the server returned {tensor.name} of shape {tuple(tensor.shape)} with {values.size} values for {images} "
            "images; expected (images, classes)"
        )
    return values.reshape(shape).astype(np.float32)


def _index(response: pb.ModelInferResponse, output: str) -> int:
    names = [tensor.name for tensor in response.outputs]
    if output in names:
        return names.index(output)
    if output or len(names) != 1:
        raise EvaluationFailed(
            f"the server returned the outputs {', '.join(names) or 'none'}; source.output says {output or 'nothing'}"
        )
    return 0


def _values(response: pb.ModelInferResponse, index: int) -> NDArray[Any]:
    tensor = response.outputs[index]
    if tensor.datatype not in _OUTPUT_TYPES:
        raise EvaluationFailed(
            f"the server returned {tensor.name} as {tensor.datatype}; expected {', '.join(_OUTPUT_TYPES)}"
        )
    if not response.raw_output_contents:
        return np.array(tensor.contents.fp32_contents or tensor.contents.fp64_contents, dtype=np.float64)
    kind = np.dtype(_OUTPUT_TYPES[tensor.datatype])
    if index >= len(response.raw_output_contents) or len(response.raw_output_contents[index]) % kind.itemsize:
        raise EvaluationFailed(f"the server returned {tensor.name} without whole values of type {tensor.datatype}")
    return np.frombuffer(response.raw_output_contents[index], kind)

"""A remote model for the engine: a batch is sent in several concurrent calls, and returned in order."""

import hashlib
import json
import math
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.engine.evaluator import BlackBox, EvaluationFailed, Images, Outputs
from sagittal.inference.v2 import inference_pb2 as pb
from sagittal.models.remote.client import InferenceClient

_OUTPUT_TYPES: Mapping[str, str] = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}

_LARGEST_BYTE = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """Encoding of images in a call."""

    name: str
    """Name of the input."""
    datatype: str
    """`FP32`, `FP16` or `UINT8`."""
    channels_last: bool
    """Whether the shape is (n, height, width, 3)."""
    scale: float
    """Factor of the normalised values."""

    def request(self, images: Images, *, model: str, version: str, output: str) -> pb.ModelInferRequest:
        """Returns the call that requests the outputs of images."""
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
    """Returns the scores (images, classes) of a response. Raises EvaluationFailed if it has none."""
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
            f"the server returned the outputs {', '.join(names) or 'none'}; source.output is {output or 'not set'}"
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
        raise EvaluationFailed(f"the server returned {tensor.name} with an incomplete value of type {tensor.datatype}")
    return np.frombuffer(response.raw_output_contents[index], kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A model on a server."""

    server: str
    """Name of the server in the operator's settings."""
    host: str
    """Host that the model names; empty if the settings name it."""
    model: str
    version: str
    """Version; empty lets the server choose."""
    output: str
    """Name of the output with the scores; empty for the only output."""
    form: Form
    max_batch: int
    """Maximum number of images per call."""
    fixed_batch: bool
    """Whether a call must have exactly that number."""

    @property
    def where(self) -> str:
        """The server, for messages."""
        return f"{self.server} at {self.host}" if self.host else self.server


class RemoteModel(BlackBox):
    """A model on a server, called with a bounded number of concurrent calls."""

    def __init__(self, deployment: Deployment, client: InferenceClient, *, concurrency: int, described: bytes) -> None:
        """Constructs the model without calling the server.

        Args:
            deployment: The model.
            client: Client of its server; closed with this model.
            concurrency: Maximum number of concurrent calls.
            described: The server's description of the model, for its digest.
        """
        told = {name: value for name, value in asdict(deployment).items() if name != "host" or value}
        known = json.dumps(told, sort_keys=True).encode()
        super().__init__(
            where=f"on server {deployment.where}",
            identity=hashlib.sha256(known + described).hexdigest(),
            batch_size=deployment.max_batch * concurrency,
        )
        self._deployment = deployment
        self._client = client
        self._answered_by = ""
        self._calls = ThreadPoolExecutor(concurrency, thread_name_prefix=f"ask-{deployment.server}")
        weakref.finalize(self, _close, self._calls, client)

    def answer(self, images: Images) -> Outputs:
        """Returns the outputs of images. Raises EvaluationFailed."""
        step = self._deployment.max_batch
        pieces = [images[start : start + step] for start in range(0, len(images), step)]
        if len(pieces) == 1:
            return self._ask(pieces[0])
        # map starts all calls, and raises the first failure after the calls before it have returned
        return np.concatenate(list(self._calls.map(self._ask, pieces)))

    def _ask(self, images: Images) -> Outputs:
        deployment, count = self._deployment, len(images)
        if deployment.fixed_batch and (missing := deployment.max_batch - count):
            images = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])
        request = deployment.form.request(
            images, model=deployment.model, version=deployment.version, output=deployment.output
        )
        response = self._client.infer(request)
        self._check_version(response.model_version)
        return read_outputs(response, output=deployment.output, images=len(images))[:count]

    def _check_version(self, version: str) -> None:
        """Raises EvaluationFailed if another version answers than the loaded one: an explanation is of one model."""
        if version and not self._answered_by:
            self._answered_by = version
        if version and version != self._answered_by:
            raise EvaluationFailed(
                f"{self.where}, version {version} answers now instead of {self._answered_by}: load the model again"
            )


def _close(calls: ThreadPoolExecutor, client: InferenceClient) -> None:
    calls.shutdown(wait=False, cancel_futures=True)
    client.close()

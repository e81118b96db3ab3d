"""Explanations in the Open Inference Protocol: tensors in, tensors out, as messages of gRPC and as JSON."""

import base64
import binascii
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.client import InvalidRequest
from sagittal.inference.v2 import inference_pb2 as pb
from sagittal.kserve.explainer import Answer, outcome_text
from sagittal.kserve.requests import ExplainRequest, Image, StoredJob, checked_pixels, make_request

#: Header with the length of the JSON of a body whose tensors follow it.
JSON_LENGTH = "inference-header-content-length"

#: Inputs: images as files or pixels, or jobs of earlier responses.
IMAGE, JOB = "image", "job_id"

_INPUTS = ({"name": IMAGE, "datatype": "BYTES", "shape": [-1]},)

_OUTPUTS = (
    {"name": "explanation", "datatype": "BYTES", "shape": [-1]},
    {"name": "job_id", "datatype": "BYTES", "shape": [-1]},
    {"name": "state", "datatype": "BYTES", "shape": [-1]},
    {"name": "heatmap", "datatype": "FP32", "shape": [-1, -1, -1]},
    {"name": "overlay", "datatype": "BYTES", "shape": [-1]},
)
"""Outputs. `heatmap` and `overlay` are absent until all jobs have one."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named tensor: texts and files as a list of bytes, or numbers."""

    name: str
    values: Sequence[bytes] | NDArray[Any]

    @property
    def datatype(self) -> str:
        """`BYTES`, `UINT8` or `FP32`."""
        if not isinstance(self.values, np.ndarray):
            return "BYTES"
        return "UINT8" if self.values.dtype == np.uint8 else "FP32"

    @property
    def shape(self) -> Sequence[int]:
        """Number of items in each dimension."""
        return self.values.shape if isinstance(self.values, np.ndarray) else (len(self.values),)


def server_metadata() -> dict[str, Any]:
    """Returns the metadata of the server."""
    return {"name": "sagittal-kserve", "version": version("sagittal"), "extensions": []}


def model_metadata(name: str) -> dict[str, Any]:
    """Returns the inputs and outputs of the model that explains."""
    return {"name": name, "versions": [], "platform": "sagittal", "inputs": [*_INPUTS], "outputs": [*_OUTPUTS]}


def make_inference(tensors: Sequence[Tensor], parameters: Mapping[str, Any]) -> ExplainRequest:
    """Returns the request of tensors and parameters. Raises InvalidRequest."""
    instances: list[Image | StoredJob] = []
    for tensor in tensors:
        if tensor.name not in (IMAGE, JOB):
            text = f"there is no input {tensor.name!r}: send {IMAGE}, or {JOB} to ask for a job again"
            raise InvalidRequest(text, field="inputs")
        instances.extend(_jobs(tensor) if tensor.name == JOB else _images(tensor))
    return make_request(instances, parameters)


def results(answer: Answer) -> Iterator[Tensor]:
    """Yields the outputs."""
    outcomes = answer.outcomes
    yield Tensor("explanation", [outcome_text(each).encode() for each in outcomes])
    yield Tensor("job_id", [each.explanation.job_id.encode() for each in outcomes])
    yield Tensor("state", [each.explanation.state.encode() for each in outcomes])
    heatmaps = [each.heatmap for each in outcomes if each.heatmap is not None]
    if len(heatmaps) == len(outcomes) and len({each.shape for each in heatmaps}) == 1:
        yield Tensor("heatmap", np.stack(heatmaps).astype(np.float32))
    if all(each.overlay for each in outcomes):
        yield Tensor("overlay", [each.overlay for each in outcomes])


def _jobs(tensor: Tensor) -> Iterator[StoredJob]:
    if isinstance(tensor.values, np.ndarray):
        raise InvalidRequest("send it as BYTES", field=f"inputs.{JOB}")
    for value in tensor.values:
        yield StoredJob(value.decode(errors="replace"))


def _images(tensor: Tensor) -> Iterator[Image]:
    field = f"inputs.{IMAGE}"
    if not isinstance(tensor.values, np.ndarray):
        if not all(tensor.values):
            raise InvalidRequest("an image is empty; send the bytes of a JPEG, PNG or WebP file", field=field)
        yield from tensor.values
        return
    pixels = tensor.values if tensor.values.ndim == 4 else tensor.values[None]
    for each in pixels:
        yield checked_pixels(each, field)


def read_message(request: pb.ModelInferRequest) -> ExplainRequest:
    """Returns the request of a message. Raises InvalidRequest."""
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        text = f"got {len(raw)} raw contents for {len(request.inputs)} inputs; send one for each, or none"
        raise InvalidRequest(text, field="raw_input_contents")
    tensors = [_tensor(each, raw[index] if raw else None) for index, each in enumerate(request.inputs)]
    parameters = {name: _value(each, f"parameters.{name}") for name, each in request.parameters.items()}
    return make_inference(tensors, parameters)


def write_message(name: str, request_id: str, answer: Answer) -> pb.ModelInferResponse:
    """Returns the message of an answer."""
    response = pb.ModelInferResponse(model_name=name, id=request_id)
    for tensor in results(answer):
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        values = tensor.values
        response.raw_output_contents.append(
            values.astype("<f4").tobytes() if isinstance(values, np.ndarray) else pack(values)
        )
    return response


def pack(values: Sequence[bytes]) -> bytes:
    """Returns the raw content of a tensor of BYTES: each element after its length."""
    return b"".join(struct.pack("<I", len(each)) + each for each in values)


def unpack(raw: bytes, field: str) -> list[bytes]:
    """Returns the elements of the raw content of a tensor of BYTES. Raises InvalidRequest."""
    values, at = [], 0
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "little")
        if at + 4 + size > len(raw):
            raise InvalidRequest("an element is longer than the content; send each after its length", field=field)
        values.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    return values


def _tensor(told: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> Tensor:
    field = f"inputs.{told.name}"
    if told.datatype == "BYTES":
        values = list(told.contents.bytes_contents) if raw is None else unpack(raw, field)
        return Tensor(told.name, _as_many(values, told.shape, field))
    if told.datatype == "UINT8":
        content = bytes(raw) if raw is not None else _small(told.contents.uint_contents, field)
        return Tensor(told.name, _shaped(np.frombuffer(content, np.uint8), told.shape, field))
    raise _wrong_type(told.datatype, field)


def _wrong_type(datatype: str, field: str) -> InvalidRequest:
    text = f"got {datatype or 'no datatype'}; send files as BYTES, or RGB pixels (n, height, width, 3) as UINT8"
    return InvalidRequest(text, field=field)


def _small(values: Sequence[int], field: str) -> bytes:
    try:
        return bytes(values)
    except ValueError as error:
        raise InvalidRequest("send values 0 to 255", field=field) from error


def _as_many(values: list[bytes], shape: Sequence[int], field: str) -> list[bytes]:
    if shape and math.prod(shape) != len(values):
        raise InvalidRequest(f"got {len(values)} elements for the shape {list(shape)}", field=field)
    return values


def _shaped(values: NDArray[Any], shape: Sequence[int], field: str) -> NDArray[Any]:
    if len(shape) not in (3, 4) or min(shape) < 1 or math.prod(shape) != values.size:
        text = f"got {values.size} values for the shape {list(shape)}; expected (n, height, width, 3)"
        raise InvalidRequest(text, field=field)
    return values.reshape(tuple(shape))


def _value(parameter: pb.InferParameter, field: str) -> Any:
    chosen = parameter.WhichOneof("parameter_choice")
    if chosen is None:
        raise InvalidRequest("it has no value", field=field)
    return getattr(parameter, chosen)


def read_json(body: bytes, json_length: str) -> tuple[ExplainRequest, str]:
    """Returns the request of a body, JSON which the contents of tensors may follow, and its identifier.

    Args:
        body: The body.
        json_length: Value of the header with the length of the JSON; empty if the body is only JSON.

    Raises:
        InvalidRequest: the body is malformed, or asks for an output that does not exist.
    """
    document, rest = _split(body, json_length)
    inputs, parameters = document.get("inputs"), document.get("parameters") or {}
    if not isinstance(inputs, list) or not all(isinstance(each, dict) for each in inputs):
        raise InvalidRequest('give {"inputs": [...]}, with a tensor each', field="inputs")
    if not isinstance(parameters, dict):
        raise InvalidRequest("give an object", field="parameters")
    tensors = []
    for each in inputs:
        tensor, rest = _json_tensor(each, rest)
        tensors.append(tensor)
    # parameters of the protocol itself: what the response contains, and that it is JSON
    given = {name: value for name, value in parameters.items() if name not in ("content_type", "binary_data_output")}
    identifier = document.get("id")
    return make_inference(tensors, given), identifier if isinstance(identifier, str) else ""


def write_json(name: str, request_id: str, answer: Answer) -> dict[str, Any]:
    """Returns an answer as JSON; files are base64, as their content type states."""
    outputs = []
    for tensor in results(answer):
        output: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if isinstance(tensor.values, np.ndarray):
            output["data"] = tensor.values.astype(float).round(6).ravel().tolist()
        elif tensor.name == "overlay":
            output |= {"data": [base64.b64encode(each).decode() for each in tensor.values]}
            output["parameters"] = {"content_type": "base64"}
        else:
            output["data"] = [each.decode() for each in tensor.values]
        outputs.append(output)
    return {"model_name": name, "id": request_id, "outputs": outputs}


def _split(body: bytes, json_length: str) -> tuple[dict[str, Any], bytes]:
    size = int(json_length) if json_length.isdecimal() else len(body)
    try:
        document = json.loads(body[:size])
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}", field="body") from error
    if not isinstance(document, dict):
        raise InvalidRequest('give {"inputs": [...]}', field="body")
    return document, body[size:]


def _json_tensor(told: Mapping[str, Any], rest: bytes) -> tuple[Tensor, bytes]:
    """Returns a tensor, and what follows its content in `rest`."""
    name, datatype, shape = str(told.get("name", "")), str(told.get("datatype", "")), told.get("shape", [])
    field = f"inputs.{name}"
    if not isinstance(shape, list) or not all(isinstance(each, int) for each in shape):
        raise InvalidRequest("give a list of integers as its shape", field=field)
    parameters = told.get("parameters") or {}
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is not None:
        if not isinstance(size, int) or not 0 <= size <= len(rest):
            raise InvalidRequest("binary_data_size is longer than the body", field=field)
        message = pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
        return _tensor(message, rest[:size]), rest[size:]
    return Tensor(name, _json_values(told.get("data"), datatype, shape, field)), rest


def _json_values(data: Any, datatype: str, shape: Sequence[int], field: str) -> list[bytes] | NDArray[Any]:
    if not isinstance(data, list):
        raise InvalidRequest("give a list as its data", field=field)
    if datatype == "UINT8":
        return _shaped(np.asarray(_flat(data, field)), shape, field)
    if datatype != "BYTES":
        raise _wrong_type(datatype, field)
    if not all(isinstance(each, str) for each in data):
        raise InvalidRequest("give texts: base64 of image files, or identifiers of jobs", field=field)
    texts = _as_many([each.encode() for each in data], shape, field)
    return texts if field == f"inputs.{JOB}" else [_decoded(each, field) for each in texts]


def _flat(data: list[Any], field: str) -> NDArray[Any]:
    try:
        array = np.asarray(data)
    except ValueError as error:
        raise InvalidRequest("its rows have different lengths", field=field) from error
    if array.dtype.kind not in "iu":
        raise InvalidRequest("send integers 0 to 255", field=field)
    return array.ravel()


def _decoded(text: bytes, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise InvalidRequest("the text is not base64; give the base64 of an image file", field=field) from error

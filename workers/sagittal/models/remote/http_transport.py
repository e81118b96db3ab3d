"""The Open Inference Protocol v2 over HTTP: JSON, or JSON with binary tensors after it."""

import threading
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import grpc
import numpy as np
import orjson
import urllib3
from google.protobuf import json_format

from sagittal.inference.v2 import inference_pb2 as pb
from sagittal.models.remote.transport import CallFailed, Metadata
from sagittal.models.sources.access import Server
from sagittal.models.sources.source import ModelUnavailable

#: Header with the length of the JSON before binary tensors.
JSON_LENGTH = "Inference-Header-Content-Length"

#: Extension of servers that accept binary tensors.
BINARY = "binary_tensor_data"

#: Type of each datatype.
TYPES: Mapping[str, str] = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "UINT8": "u1"}

#: Characters of a server's response in an error.
MAX_SHOWN = 500

_STATUSES: Mapping[int, grpc.StatusCode] = {
    HTTPStatus.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    HTTPStatus.UNAUTHORIZED: grpc.StatusCode.UNAUTHENTICATED,
    HTTPStatus.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.TOO_MANY_REQUESTS: grpc.StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.NOT_IMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    HTTPStatus.BAD_GATEWAY: grpc.StatusCode.UNAVAILABLE,
    HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class HttpTransport:
    """Connections that are kept open between calls. Thread-safe."""

    def __init__(self, server: Server) -> None:
        """Connects with the first call. Raises ModelUnavailable if a certificate cannot be read."""
        self._pool = _open_pool(server)
        self._binary: bool | None = None
        self._lock = threading.Lock()

    def is_ready(self, request: pb.ModelReadyRequest, timeout: float, metadata: Metadata) -> bool:
        """Returns whether a model is ready. Raises CallFailed."""
        response = self._send("GET", _path(request.name, request.version, "/ready"), timeout, metadata)
        return bool(response.status == HTTPStatus.OK)

    def describe(
        self, request: pb.ModelMetadataRequest, timeout: float, metadata: Metadata
    ) -> pb.ModelMetadataResponse:
        """Returns the inputs and outputs of a model. Raises CallFailed."""
        found = _document(self._send("GET", _path(request.name, request.version), timeout, metadata))
        told = {name: value for name, value in found.items() if value is not None}
        try:
            return json_format.ParseDict(told, pb.ModelMetadataResponse(), ignore_unknown_fields=True)
        except json_format.ParseError as error:
            raise CallFailed(grpc.StatusCode.INTERNAL, f"the description of the model is malformed: {error}") from error

    def infer(self, request: pb.ModelInferRequest, timeout: float, metadata: Metadata) -> pb.ModelInferResponse:
        """Returns a model's response. Raises CallFailed."""
        body, headers = write_request(request, binary=self._takes_binary(timeout, metadata))
        path = _path(request.model_name, request.model_version, "/infer")
        response = self._send("POST", path, timeout, metadata, body, headers)
        return read_response(response.data, _checked(response).headers.get(JSON_LENGTH, ""))

    def close(self) -> None:
        """Closes the connections."""
        self._pool.close()

    def _takes_binary(self, timeout: float, metadata: Metadata) -> bool:
        """Returns whether the server accepts binary tensors; asks it once."""
        with self._lock:
            if self._binary is None:
                response = self._send("GET", "/v2", timeout, metadata)
                found = _document(response) if response.status == HTTPStatus.OK else {}
                self._binary = BINARY in (found.get("extensions") or ())
            return self._binary

    def _send(
        self,
        method: str,
        path: str,
        timeout: float,
        metadata: Metadata,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        every = {name: value if isinstance(value, str) else value.decode() for name, value in metadata}
        try:
            return self._pool.request(
                method, path, body=body, headers=every | dict(headers or {}), timeout=timeout, retries=False
            )
        except urllib3.exceptions.ReadTimeoutError as error:
            raise CallFailed(grpc.StatusCode.DEADLINE_EXCEEDED, str(error)) from error
        except urllib3.exceptions.HTTPError as error:
            raise CallFailed(grpc.StatusCode.UNAVAILABLE, str(error)) from error


def write_request(request: pb.ModelInferRequest, *, binary: bool) -> tuple[bytes, Mapping[str, str]]:
    """Returns the body and the headers of a request whose tensors are in `raw_input_contents`."""
    inputs: list[dict[str, Any]] = []
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        told: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if binary:
            told["parameters"] = {"binary_data_size": len(raw)}
        else:
            told["data"] = np.frombuffer(raw, TYPES[tensor.datatype])
        inputs.append(told)
    outputs = [{"name": each.name, "parameters": {"binary_data": binary}} for each in request.outputs]
    document: dict[str, Any] = {"inputs": inputs, **({"outputs": outputs} if outputs else {})}
    if binary and not outputs:
        document["parameters"] = {"binary_data_output": True}
    text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not binary:
        return text, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", JSON_LENGTH: str(len(text))}
    return b"".join([text, *request.raw_input_contents]), headers


def read_response(body: bytes, json_length: str) -> pb.ModelInferResponse:
    """Returns the response of a body; the contents of all tensors are in `raw_output_contents`. Raises CallFailed."""
    size = int(json_length) if json_length.isdecimal() else len(body)
    response = pb.ModelInferResponse()
    try:
        document, rest = orjson.loads(body[:size]), body[size:]
        response.model_name, response.model_version = document["model_name"], document.get("model_version") or ""
        for told in document["outputs"]:
            raw, rest = _content(told, rest)
            response.outputs.add(name=told["name"], datatype=told["datatype"], shape=told["shape"])
            response.raw_output_contents.append(raw)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        text = f"the response is malformed: {type(error).__name__}: {error}"
        raise CallFailed(grpc.StatusCode.INTERNAL, text) from error
    return response


def _content(told: Mapping[str, Any], rest: bytes) -> tuple[bytes, bytes]:
    """Returns the content of an output, and what follows it; a type that scores cannot have has none."""
    size = (told.get("parameters") or {}).get("binary_data_size")
    if size is not None:
        return rest[:size], rest[size:]
    if told["datatype"] not in TYPES:
        return b"", rest
    return np.asarray(told["data"], TYPES[told["datatype"]]).tobytes(), rest


def _path(model: str, version: str, rest: str = "") -> str:
    numbered = f"/versions/{quote(version, safe='')}" if version else ""
    return f"/v2/models/{quote(model, safe='')}{numbered}{rest}"


def _checked(response: urllib3.BaseHTTPResponse) -> urllib3.BaseHTTPResponse:
    """Returns a response. Raises CallFailed if it reports an error."""
    if response.status == HTTPStatus.OK:
        return response
    text = response.data[:MAX_SHOWN].decode(errors="replace")
    if response.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        raise CallFailed(grpc.StatusCode.RESOURCE_EXHAUSTED, f"the request is larger than max: {text}")
    code = _STATUSES.get(response.status, grpc.StatusCode.INTERNAL)
    raise CallFailed(code, f"HTTP status {response.status}: {text}")


def _document(response: urllib3.BaseHTTPResponse) -> dict[str, Any]:
    try:
        found = orjson.loads(_checked(response).data)
    except ValueError as error:
        raise CallFailed(grpc.StatusCode.INTERNAL, f"the response is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise CallFailed(grpc.StatusCode.INTERNAL, "the response is not a JSON object")
    return found


def _open_pool(server: Server) -> urllib3.HTTPConnectionPool:
    host, _, port = server.address.rpartition(":")
    settings: dict[str, Any] = {"maxsize": server.concurrency, "block": False}
    if not server.tls:
        return urllib3.HTTPConnectionPool(host, int(port), **settings)
    for path in (server.ca_file, server.certificate_file, server.key_file):
        if path is not None and not path.is_file():
            raise ModelUnavailable(f"the file {path} of a model server cannot be read")
    return urllib3.HTTPSConnectionPool(
        host,
        int(port),
        ca_certs=None if server.ca_file is None else str(server.ca_file),
        cert_file=None if server.certificate_file is None else str(server.certificate_file),
        key_file=None if server.key_file is None else str(server.key_file),
        **settings,
    )

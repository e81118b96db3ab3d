"""The Open Inference Protocol v2 over gRPC."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from sagittal.inference.v2 import inference_pb2 as pb
from sagittal.models.remote.transport import MESSAGE_BYTES, CallFailed, Metadata
from sagittal.models.sources.access import Server
from sagittal.models.sources.source import ModelUnavailable

_OPTIONS = (
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    # gRPC waits up to two minutes before it reconnects; a restarted server is back sooner.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Retries are made by the client, not by gRPC.
    ("grpc.enable_retries", 0),
)

_SERVICE = "/inference.GRPCInferenceService/"


class GrpcTransport:
    """A channel that connects with the first call. Thread-safe."""

    def __init__(self, server: Server) -> None:
        """Raises ModelUnavailable if a certificate cannot be read."""
        self._channel = open_channel(server)
        self._ready = self._method("ModelReady", pb.ModelReadyRequest, pb.ModelReadyResponse)
        self._metadata = self._method("ModelMetadata", pb.ModelMetadataRequest, pb.ModelMetadataResponse)
        self._infer = self._method("ModelInfer", pb.ModelInferRequest, pb.ModelInferResponse)

    def is_ready(self, request: pb.ModelReadyRequest, timeout: float, metadata: Metadata) -> bool:
        """Returns whether a model is ready. Raises CallFailed."""
        return bool(_call(self._ready, request, timeout, metadata).ready)

    def describe(
        self, request: pb.ModelMetadataRequest, timeout: float, metadata: Metadata
    ) -> pb.ModelMetadataResponse:
        """Returns the inputs and outputs of a model. Raises CallFailed."""
        response: pb.ModelMetadataResponse = _call(self._metadata, request, timeout, metadata)
        return response

    def infer(self, request: pb.ModelInferRequest, timeout: float, metadata: Metadata) -> pb.ModelInferResponse:
        """Returns a model's response. Raises CallFailed."""
        response: pb.ModelInferResponse = _call(self._infer, request, timeout, metadata)
        return response

    def close(self) -> None:
        """Closes the channel; calls in flight are cancelled."""
        self._channel.close()

    def _method(self, name: str, request: Any, response: Any) -> Callable[..., Any]:
        method: Callable[..., Any] = self._channel.unary_unary(
            _SERVICE + name, request_serializer=request.SerializeToString, response_deserializer=response.FromString
        )
        return method


def _call(method: Callable[..., Any], request: object, timeout: float, metadata: Metadata) -> Any:
    try:
        return method(request, timeout=timeout, metadata=metadata)
    except grpc.RpcError as error:
        raise CallFailed(error.code(), error.details() or "") from error


def open_channel(server: Server) -> grpc.Channel:
    """Returns a channel that connects with the first call. Raises ModelUnavailable if a file cannot be read."""
    if not server.tls:
        return grpc.insecure_channel(server.address, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_read(server.ca_file),
        private_key=_read(server.key_file),
        certificate_chain=_read(server.certificate_file),
    )
    return grpc.secure_channel(server.address, credentials, options=_OPTIONS)


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelUnavailable(f"the file {path} of a model server cannot be read: {error.strerror}") from error

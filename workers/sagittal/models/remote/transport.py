"""Calls of the Open Inference Protocol v2, in either of its forms."""

from typing import Protocol

import grpc

from sagittal.inference.v2 import inference_pb2 as pb
from sagittal.models.sources.access import MIB

Metadata = tuple[tuple[str, str | bytes], ...]
"""Call metadata in gRPC's form; headers over HTTP."""

MESSAGE_BYTES = 256 * MIB
"""Maximum size of a sent or received message, in bytes."""


class CallFailed(Exception):
    """A call failed; `code` is the gRPC code, or that which an HTTP status stands for."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code
        self.details = details


class Transport(Protocol):
    """A connection to a server; every call raises CallFailed. Thread-safe."""

    def is_ready(self, request: pb.ModelReadyRequest, timeout: float, metadata: Metadata) -> bool:
        """Returns whether a model is ready; `timeout` is in seconds."""
        ...

    def describe(
        self, request: pb.ModelMetadataRequest, timeout: float, metadata: Metadata
    ) -> pb.ModelMetadataResponse:
        """Returns the inputs and outputs of a model."""
        ...

    def infer(self, request: pb.ModelInferRequest, timeout: float, metadata: Metadata) -> pb.ModelInferResponse:
        """Returns a model's response."""
        ...

    def close(self) -> None:
        """Closes the connection."""
        ...

"""Client of a model server in the Open Inference Protocol v2, with bounded retries."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import structlog

from sagittal.engine.evaluator import EvaluationFailed, ModelUnreachable
from sagittal.inference.v2 import inference_pb2 as pb
from sagittal.models.sources.access import MIB, Server
from sagittal.models.sources.source import ModelUnavailable

Metadata = tuple[tuple[str, str | bytes], ...]
"""Call metadata in gRPC's form."""

MESSAGE_BYTES = 256 * MIB
"""Maximum size of a sent or received message, in bytes."""

_OPTIONS = (
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    # gRPC waits up to two minutes before it reconnects; a restarted server is back sooner.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Retries are made here, not by gRPC.
    ("grpc.enable_retries", 0),
)


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


def metadata_of(server: Server) -> Metadata:
    """Returns the metadata of a call, with files read again. Raises OSError."""
    from_files = {name: path.read_text().strip() for name, path in server.metadata_files.items()}
    return tuple((server.metadata | from_files).items())


FIRST_PAUSE = 0.1
"""Maximum pause before the second attempt, in seconds; it doubles with each attempt."""

LONGEST_PAUSE = 2.0
"""Maximum pause, in seconds."""

EARNED = 0.1
"""Amount that a success returns to the budget; a failure takes 1."""


@dataclass(slots=True)
class RetryBudget:
    """A budget that failures consume and successes refill. Thread-safe.

    While it is empty nothing is retried, so that a failing server gets no more calls than without retries.
    """

    most: float
    """Number of consecutive failures that empty it."""
    _left: float = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._left = self.most

    def succeed(self) -> None:
        """Returns a tenth to the budget."""
        with self._lock:
            self._left = min(self.most, self._left + EARNED)

    def fail(self) -> bool:
        """Takes one from the budget; returns whether another attempt is allowed."""
        with self._lock:
            allowed = self._left >= 1
            self._left = max(0.0, self._left - 1)
            return allowed


def pause_before(attempt: int) -> float:
    """Returns the pause before an attempt, in seconds; it is random, so that callers do not retry at the same time."""
    return random.uniform(0.5, 1.0) * min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (attempt - 2))  # noqa: S311 - no secret


log = structlog.get_logger(__name__)

_SERVICE = "/inference.GRPCInferenceService/"

_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED})
"""Codes for which a retry may help. A call that timed out is not retried: it would time out again."""


class InferenceClient:
    """Client of one server. Thread-safe."""

    def __init__(self, name: str, server: Server, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """Connects with the first call. Raises ModelUnavailable if a certificate cannot be read."""
        self._name = name
        self._server = server
        self._sleep = sleep
        self._budget = RetryBudget(server.retry_budget)
        self._channel = open_channel(server)
        self._ready = self._method("ModelReady", pb.ModelReadyRequest, pb.ModelReadyResponse)
        self._metadata = self._method("ModelMetadata", pb.ModelMetadataRequest, pb.ModelMetadataResponse)
        self._infer = self._method("ModelInfer", pb.ModelInferRequest, pb.ModelInferResponse)
        if not server.tls and (server.metadata or server.metadata_files):
            log.warning("metadata-in-the-clear", server=name, remedy="set tls where the network is not your own")

    def _method(self, name: str, request: Any, response: Any) -> Callable[..., Any]:
        method: Callable[..., Any] = self._channel.unary_unary(
            _SERVICE + name, request_serializer=request.SerializeToString, response_deserializer=response.FromString
        )
        return method

    def is_ready(self, model: str, version: str) -> bool:
        """Returns whether a model is ready. Raises EvaluationFailed."""
        return bool(self._call(self._ready, pb.ModelReadyRequest(name=model, version=version)).ready)

    def describe(self, model: str, version: str) -> pb.ModelMetadataResponse:
        """Returns the inputs and outputs of a model. Raises EvaluationFailed."""
        response: pb.ModelMetadataResponse = self._call(
            self._metadata, pb.ModelMetadataRequest(name=model, version=version)
        )
        return response

    def infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        """Returns a model's response. Raises EvaluationFailed, or ModelUnreachable if the server is unavailable."""
        response: pb.ModelInferResponse = self._call(self._infer, request)
        return response

    def close(self) -> None:
        """Closes the connection; calls in flight are cancelled."""
        self._channel.close()

    def _call(self, method: Callable[..., Any], request: object) -> Any:
        attempt = 1
        while True:
            try:
                response = method(request, timeout=self._server.timeout, metadata=metadata_of(self._server))
            except OSError as error:
                raise EvaluationFailed(f"the metadata of server {self._name} cannot be read: {error}") from error
            except grpc.RpcError as error:
                if not self._may_repeat(error, attempt):
                    raise self._translate(error, attempt) from error
                attempt += 1
                self._sleep(pause_before(attempt))
            else:
                self._budget.succeed()
                return response

    def _may_repeat(self, error: grpc.RpcError, attempt: int) -> bool:
        if not _is_away(error):
            return False
        budget_left = self._budget.fail()
        log.warning(
            "model-server-away", server=self._name, attempt=attempt, code=error.code().name, error=error.details()
        )
        return budget_left and attempt < self._server.attempts

    def _translate(self, error: grpc.RpcError, attempts: int) -> EvaluationFailed:
        code, details = error.code(), error.details()
        if _is_away(error):
            return ModelUnreachable(
                f"server {self._name} cannot be reached after {attempts} attempts: {code.name}: {details}"
            )
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return ModelUnreachable(f"server {self._name} did not answer within {self._server.timeout:g} s")
        hint = "; lower max_batch, or raise the server's limit" if _is_too_large(error) else ""
        return EvaluationFailed(f"server {self._name} refused: {code.name}: {details}{hint}")


def _is_away(error: grpc.RpcError) -> bool:
    return error.code() in _AWAY and not _is_too_large(error)


def _is_too_large(error: grpc.RpcError) -> bool:
    """Returns whether a message exceeded a size limit, which has the same code as an overloaded server."""
    return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in (error.details() or "")

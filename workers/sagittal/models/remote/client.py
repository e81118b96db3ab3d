"""Calls to a model server in the Open Inference Protocol v2, attempted again where that may help."""

import time
from collections.abc import Callable
from typing import Any

import grpc
import structlog

from sagittal.engine.black_box import ModelUnreachable
from sagittal.engine.evaluator import EvaluationFailed
from sagittal.inference.v2 import inference_pb2 as pb
from sagittal.models.remote.channel import metadata_of, open_channel
from sagittal.models.remote.retries import RetryBudget, pause_before
from sagittal.models.sources.access import Server

log = structlog.get_logger(__name__)

_SERVICE = "/inference.GRPCInferenceService/"

_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED})
"""What another attempt may cure. A call that took too long is not repeated: it would take as long again."""


class InferenceClient:
    """Asks one server. Safe from any thread."""

    def __init__(self, name: str, server: Server, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """Connects with the first call. Raises ModelUnavailable where a certificate cannot be read."""
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
        """Whether a model is ready. Raises EvaluationFailed."""
        return bool(self._call(self._ready, pb.ModelReadyRequest(name=model, version=version)).ready)

    def describe(self, model: str, version: str) -> pb.ModelMetadataResponse:
        """Returns what a model takes and gives. Raises EvaluationFailed."""
        response: pb.ModelMetadataResponse = self._call(
            self._metadata, pb.ModelMetadataRequest(name=model, version=version)
        )
        return response

    def infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        """Asks a model. Raises EvaluationFailed, ModelUnreachable where the server is away."""
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
    """Whether a message was larger than a side takes, which has the same code as a server without room."""
    return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in (error.details() or "")

"""Client of a model server in the Open Inference Protocol v2, with bounded retries."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
import structlog

from sagittal.engine.evaluator import EvaluationFailed, ModelUnreachable
from sagittal.inference.v2 import inference_pb2 as pb
from sagittal.models.remote.grpc_transport import GrpcTransport
from sagittal.models.remote.http_transport import HttpTransport
from sagittal.models.remote.transport import CallFailed, Metadata, Transport
from sagittal.models.sources.access import Server

Answer = TypeVar("Answer")

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
        self._transport: Transport = (HttpTransport if server.protocol == "http" else GrpcTransport)(server)
        if not server.tls and (server.metadata or server.metadata_files):
            log.warning("metadata-in-the-clear", server=name, remedy="set tls where the network is not your own")

    def is_ready(self, model: str, version: str) -> bool:
        """Returns whether a model is ready. Raises EvaluationFailed."""
        asked = pb.ModelReadyRequest(name=model, version=version)
        return self._call(lambda timeout, metadata: self._transport.is_ready(asked, timeout, metadata))

    def describe(self, model: str, version: str) -> pb.ModelMetadataResponse:
        """Returns the inputs and outputs of a model. Raises EvaluationFailed."""
        asked = pb.ModelMetadataRequest(name=model, version=version)
        return self._call(lambda timeout, metadata: self._transport.describe(asked, timeout, metadata))

    def infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        """Returns a model's response. Raises EvaluationFailed, or ModelUnreachable if the server is unavailable."""
        return self._call(lambda timeout, metadata: self._transport.infer(request, timeout, metadata))

    def close(self) -> None:
        """Closes the connection; calls in flight are cancelled."""
        self._transport.close()

    def _call(self, call: Callable[[float, Metadata], Answer]) -> Answer:
        attempt = 1
        while True:
            try:
                response = call(self._server.timeout, metadata_of(self._server))
            except OSError as error:
                raise EvaluationFailed(f"the metadata of server {self._name} cannot be read: {error}") from error
            except CallFailed as error:
                if not self._may_repeat(error, attempt):
                    raise self._translate(error, attempt) from error
                attempt += 1
                self._sleep(pause_before(attempt))
            else:
                self._budget.succeed()
                return response

    def _may_repeat(self, error: CallFailed, attempt: int) -> bool:
        if not _is_away(error):
            return False
        budget_left = self._budget.fail()
        log.warning("model-server-away", server=self._name, attempt=attempt, code=error.code.name, error=error.details)
        return budget_left and attempt < self._server.attempts

    def _translate(self, error: CallFailed, attempts: int) -> EvaluationFailed:
        code, details = error.code, error.details
        if _is_away(error):
            return ModelUnreachable(
                f"server {self._name} cannot be reached after {attempts} attempts: {code.name}: {details}"
            )
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return ModelUnreachable(f"server {self._name} did not answer within {self._server.timeout:g} s")
        hint = "; lower max_batch, or raise the server's limit" if _is_too_large(error) else ""
        return EvaluationFailed(f"server {self._name} refused: {code.name}: {details}{hint}")


def metadata_of(server: Server) -> Metadata:
    """Returns the metadata of a call, with files read again. Raises OSError."""
    from_files = {name: path.read_text().strip() for name, path in server.metadata_files.items()}
    return tuple((server.metadata | from_files).items())


def _is_away(error: CallFailed) -> bool:
    return error.code in _AWAY and not _is_too_large(error)


def _is_too_large(error: CallFailed) -> bool:
    """Returns whether a message exceeded a size limit, which has the same code as an overloaded server."""
    return error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in error.details

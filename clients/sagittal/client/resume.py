"""Resumption of a stream after a lost connection, without missing or repeated events.

The cursor knows the job and the last sequence number that was yielded. After a broken call, `WatchExplanation(job_id,
after_sequence)` continues it. Before the first event, the request is sent again under the same `request_id`, which
returns the same job.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from sagittal.client.errors import (
    ConnectionFailed,
    Expired,
    Overloaded,
    SagittalError,
    Unavailable,
    from_rpc_error,
    trailing_metadata,
)
from sagittal.client.events import Event
from sagittal.client.gathering import Gathering, terminal_error
from sagittal.client.options import TLS, Retry
from sagittal.client.parsing import parse_event
from sagittal.client.tracing import CallSpan
from sagittal.v1 import explanation_pb2 as pb

#: Codes with which gRPC itself ends a call whose connection broke, without metadata of the service.
_BROKEN_CODES = (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
_BROKEN_TEXTS = (
    "RST_STREAM",
    "Stream removed",
    "Cancelling all calls",
    "connection",
    "Socket closed",
    "GOAWAY",
    "Internal error from Core",  # the call ended while gRPC's asyncio client sent a message, and its status is lost
)
TERMINAL = ("completed", "failed", "cancelled")


def broken(error: grpc.RpcError) -> bool:
    """Returns whether a call ended because the connection or the service failed, not because of the request."""
    code, text = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE:
        return True
    attached = "grpc-status-details-bin" in dict(trailing_metadata(error))
    return code in _BROKEN_CODES and not attached and any(part.lower() in text.lower() for part in _BROKEN_TEXTS)


@dataclass(slots=True)
class Patience:
    """Growing pauses between attempts, until the time for retries is over."""

    retry: Retry
    seconds: float
    clock: Callable[[], float] = time.monotonic
    attempts: int = 0
    began: float = 0.0

    def renew(self, seconds: float) -> None:
        """Resets the failures after a success; the next failures may take this long, in seconds."""
        self.attempts = 0
        self.seconds = seconds

    def wait_after(self, error: SagittalError) -> float:
        """Returns the pause before the next attempt in seconds; raises the error when the time is over."""
        if self.attempts == 0:
            self.began = self.clock()
        self.attempts += 1
        wait = max(self.retry.wait(self.attempts), error.retry_after or 0.0)
        if self.clock() - self.began + wait > self.seconds:
            raise error
        return wait


@dataclass(slots=True)
class Cursor:
    """The position in a stream of events."""

    patience: Patience
    address: str
    job_id: str = ""
    sequence: int = 0
    """Sequence number of the last event that was yielded."""
    ended: bool = field(default=False)
    span: CallSpan = field(default_factory=CallSpan)
    """The operation in the caller's traces; every call of the stream is part of it."""
    tls: TLS | None = None
    timeout: float | None = None
    """Timeout of the whole stream, in seconds; None for no limit."""
    retries_overload: bool = False
    """Whether a request is retried when the service has no room."""
    began: float = field(default_factory=time.monotonic)

    @property
    def remaining(self) -> float | None:
        """Remaining time until the timeout, in seconds."""
        return None if self.timeout is None else max(0.0, self.began + self.timeout - time.monotonic())

    def admit(self, event: pb.ExplanationEvent) -> bool:
        """Records an event; returns whether it is new and is to be yielded."""
        self.job_id = event.job_id or self.job_id
        self.patience.renew(self.patience.retry.stream_seconds)
        if event.sequence <= self.sequence:
            return False
        if event.sequence != self.sequence + 1:
            raise Unavailable(
                f"the stream of job {self.job_id} jumped from event {self.sequence} to {event.sequence}; asking again"
            )
        self.sequence = event.sequence
        self.ended = event.WhichOneof("event") in TERMINAL
        return True

    def wait_after(self, error: grpc.RpcError | Unavailable | None) -> float:
        """Returns the pause before the stream is resumed; raises errors that a retry does not fix.

        None stands for a call that ended normally before the job did, such as on a service that shuts down.
        """
        if self.ended and isinstance(error, Unavailable):
            raise error  # the error with which the job itself ended
        if error is None:
            text = f"the service{f' at {self.address}' if self.address else ''} ended the stream before the job did"
            return self.patience.wait_after(ConnectionFailed(text, job_id=self.job_id))
        if isinstance(error, Unavailable):
            return self.patience.wait_after(error)
        if self.remaining == 0.0:
            text = f"there was no answer within {self.timeout:g} s; allow more time, or submit() the job and watch() it"
            raise Expired(text, job_id=self.job_id) from error
        failure = from_rpc_error(error, address=self.address)
        failure.job_id = self.job_id
        if self.retries_overload and isinstance(failure, Overloaded):
            return self.patience.wait_after(failure)
        if not broken(error):
            raise failure from error
        return self.patience.wait_after(
            failure if isinstance(failure, Unavailable) else ConnectionFailed(str(failure), job_id=self.job_id)
        )


def take_event(cursor: Cursor, gathering: Gathering, message: pb.ExplanationEvent) -> Event | None:
    """Returns an event to yield, or None for a known one; raises the error that ends a job."""
    if not cursor.admit(message):
        return None
    failure = terminal_error(message)
    if failure is not None:
        raise failure
    event = parse_event(message)
    gathering.add(event)
    return event

"""Every failure that the client raises on purpose: the class that the service meant.

    SagittalError
    ├── InvalidRequest        INVALID_ARGUMENT      `field` names the part of the request at fault
    │   ├── InvalidImage
    │   ├── ArgumentRefused                         a value that the queue does not take
    │   └── MessageTooLarge   RESOURCE_EXHAUSTED    past the limit on the size of one message
    ├── NotFound              NOT_FOUND
    │   ├── UnknownModel
    │   ├── UnknownJob
    │   └── EventsExpired                           read so slowly that the rest is no longer kept
    ├── AlreadyExists         ALREADY_EXISTS        a request_id used again with another content
    │   └── ModelExists                             a model's version registered again with another content
    ├── FailedPrecondition    FAILED_PRECONDITION   the model or job cannot do what is asked
    ├── NotServed             UNIMPLEMENTED         a part of the API that nothing serves
    ├── Overloaded            RESOURCE_EXHAUSTED    past an admission bound: `retry_after` seconds
    ├── Unavailable           UNAVAILABLE           the service or its queue is away: try again
    │   ├── ConnectionFailed  UNAVAILABLE           nothing answers at the address
    │   └── StreamMoved       UNAVAILABLE           watch the job again, on any replica: streams do it by themselves
    ├── Expired               DEADLINE_EXCEEDED     a deadline passed before there was a result
    ├── Unauthenticated       UNAUTHENTICATED       no token, or an unknown one
    ├── PermissionDenied      PERMISSION_DENIED     the token lacks a role
    ├── JobCancelled          CANCELLED             the job was cancelled before it had a result
    └── JobFailed             INTERNAL              the model or its worker failed
        ├── ModelFailed
        ├── JobBuried
        └── InternalError                           a fault of the service; its message carries an id for the log
            └── QueueFailed                         a fault of its queue; its log says which

A class is found by the stable reason in `google.rpc.ErrorInfo`; a reason that this version does not know falls back on
the class of the gRPC code. `failed` events in a stream raise the same classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2

#: Domain of the service's `ErrorInfo`.
DOMAIN = "sagittal"


class SagittalError(Exception):
    """A failure that is expected.

    Attributes:
        message: What was wrong, what was expected, and what to do.
        reason: Stable identifier in capitals, for programs.
        field: The request's field at fault, as a path such as `spec.target.index`; empty where none is.
        retry_after: Seconds after which trying again makes sense; None where it does not.
        job_id: The job that failed; empty where there was none.
    """

    reason: str = "INTERNAL"
    code: ClassVar[int] = code_pb2.INTERNAL

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        retry_after: float | None = None,
        reason: str = "",
        job_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after = retry_after
        self.job_id = job_id
        if reason:
            self.reason = reason

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), self.message, self.job_id))

    def __str__(self) -> str:
        """The message, with the field at fault where the message does not name it."""
        return f"{self.field}: {self.message}" if self.field and self.field not in self.message else self.message


class InvalidRequest(SagittalError):
    """The request is wrong; `field` names the part at fault."""

    reason = "INVALID_REQUEST"
    code = code_pb2.INVALID_ARGUMENT


class InvalidImage(InvalidRequest):
    """The image cannot be read, or is beyond the limits."""

    reason = "INVALID_IMAGE"


class ArgumentRefused(InvalidRequest):
    """The queue does not take a value that the request led to; nothing was stored."""

    reason = "ARGUMENT_REFUSED"


class MessageTooLarge(InvalidRequest):
    """A message is larger than the service or this client admits."""

    reason = "MESSAGE_TOO_LARGE"
    code = code_pb2.RESOURCE_EXHAUSTED


class NotFound(SagittalError):
    """Something that was named does not exist."""

    reason = "NOT_FOUND"
    code = code_pb2.NOT_FOUND


class UnknownModel(NotFound):
    """No such model, or no such version of it."""

    reason = "UNKNOWN_MODEL"


class UnknownJob(NotFound):
    """No such job, or its retention has passed."""

    reason = "UNKNOWN_JOB"


class EventsExpired(NotFound):
    """The stream was read so slowly that what was still to come is no longer kept."""

    reason = "EVENTS_EXPIRED"


class AlreadyExists(SagittalError):
    """A request_id that was used with another content."""

    reason = "REQUEST_ID_REUSED"
    code = code_pb2.ALREADY_EXISTS


class ModelExists(AlreadyExists):
    """A model's version that is registered with another content."""

    reason = "MODEL_EXISTS"


class FailedPrecondition(SagittalError):
    """The model or the job cannot do what is asked; the message says what works."""

    reason = "UNSUPPORTED"
    code = code_pb2.FAILED_PRECONDITION


class NotServed(SagittalError):
    """A part of the API that nothing serves."""

    reason = "NOT_SERVED"
    code = code_pb2.UNIMPLEMENTED


class Overloaded(SagittalError):
    """Past an admission bound; `retry_after` says when to try again."""

    reason = "QUEUE_FULL"
    code = code_pb2.RESOURCE_EXHAUSTED


class Unavailable(SagittalError):
    """The service, or its queue, is away for now."""

    reason = "QUEUE_UNAVAILABLE"
    code = code_pb2.UNAVAILABLE


class ConnectionFailed(Unavailable):
    """Nothing answers at the address, or the connection was lost and did not come back."""

    reason = "CONNECTION_FAILED"


class StreamMoved(Unavailable):
    """This replica hands its streams over. The client's streams go on by themselves."""

    reason = "STREAM_MOVED"


class Expired(SagittalError):
    """A deadline passed before there was a result."""

    reason = "DEADLINE_PASSED"
    code = code_pb2.DEADLINE_EXCEEDED


class Unauthenticated(SagittalError):
    """No token, or an unknown one."""

    reason = "UNAUTHENTICATED"
    code = code_pb2.UNAUTHENTICATED


class PermissionDenied(SagittalError):
    """The token lacks a role."""

    reason = "PERMISSION_DENIED"
    code = code_pb2.PERMISSION_DENIED


class JobCancelled(SagittalError):
    """The job was cancelled before it had a result."""

    reason = "CANCELLED"
    code = code_pb2.CANCELLED


class JobFailed(SagittalError):
    """The job ended in a failure that is not the caller's."""

    reason = "JOB_FAILED"
    code = code_pb2.INTERNAL


class ModelFailed(JobFailed):
    """The model could not be loaded, raised, or returned what is no score."""

    reason = "MODEL_FAILED"


class JobBuried(JobFailed):
    """The job took down as many workers as it may."""

    reason = "JOB_BURIED"


class InternalError(JobFailed):
    """A fault of the service; the message carries an identifier to look for in its log."""

    reason = "INTERNAL"


class QueueFailed(InternalError):
    """The service's queue answered with an error that trying again does not mend; the service's log says which."""

    reason = "QUEUE_FAILED"


def _by_reason(classes: Iterable[type[SagittalError]]) -> Mapping[str, type[SagittalError]]:
    return {cls.reason: cls for cls in classes}


#: The class of each reason that the service sends.
REASONS: Mapping[str, type[SagittalError]] = _by_reason(
    (
        InvalidRequest, InvalidImage, ArgumentRefused, MessageTooLarge, NotFound, UnknownModel, UnknownJob,
        EventsExpired, AlreadyExists, ModelExists, FailedPrecondition, NotServed, Overloaded, Unavailable,
        ConnectionFailed, StreamMoved, Expired, Unauthenticated, PermissionDenied, JobCancelled, JobFailed, ModelFailed,
        JobBuried, InternalError, QueueFailed,
    )
)  # fmt: skip

#: The class of each gRPC code, for a reason that is missing or not known.
CODES: Mapping[int, type[SagittalError]] = {
    code_pb2.CANCELLED: JobCancelled,
    code_pb2.UNKNOWN: InternalError,
    code_pb2.INVALID_ARGUMENT: InvalidRequest,
    code_pb2.DEADLINE_EXCEEDED: Expired,
    code_pb2.NOT_FOUND: NotFound,
    code_pb2.ALREADY_EXISTS: AlreadyExists,
    code_pb2.PERMISSION_DENIED: PermissionDenied,
    code_pb2.RESOURCE_EXHAUSTED: Overloaded,
    code_pb2.FAILED_PRECONDITION: FailedPrecondition,
    code_pb2.ABORTED: Unavailable,
    code_pb2.OUT_OF_RANGE: InvalidRequest,
    code_pb2.UNIMPLEMENTED: NotServed,
    code_pb2.INTERNAL: InternalError,
    code_pb2.UNAVAILABLE: Unavailable,
    code_pb2.DATA_LOSS: InternalError,
    code_pb2.UNAUTHENTICATED: Unauthenticated,
}


def from_status(status: status_pb2.Status, *, job_id: str = "") -> SagittalError:
    """Returns the error that a `google.rpc.Status` stands for, of a `failed` event for instance."""
    reason, field, retry_after = "", "", None
    for detail in status.details:
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            reason = info.reason
        elif detail.Unpack(bad) and bad.field_violations:
            field = bad.field_violations[0].field
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    cls = REASONS.get(reason) or CODES.get(status.code, InternalError)
    return cls(status.message, field=field, retry_after=retry_after, reason=reason, job_id=job_id)


def from_rpc_error(error: grpc.RpcError, *, address: str = "") -> SagittalError:
    """Returns the error that a failed call stands for."""
    code, text = error.code(), error.details() or ""
    number = int(code.value[0])
    status = _attached_status(error)
    if status is not None and status.code == number:
        return from_status(status)
    if code is grpc.StatusCode.UNAVAILABLE:
        where = f" at {address}" if address else ""
        return ConnectionFailed(f"cannot reach the service{where} ({text}); check the address and that it runs")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in text:
        return MessageTooLarge(f"{text}; send a smaller image, or raise the limit on both sides")
    return CODES.get(number, InternalError)(text or f"the call failed with {code.name}")


def _attached_status(error: grpc.RpcError) -> status_pb2.Status | None:
    value = dict(trailing_metadata(error)).get("grpc-status-details-bin")
    return status_pb2.Status.FromString(value) if isinstance(value, bytes) else None


def trailing_metadata(error: grpc.RpcError) -> Sequence[tuple[str, str | bytes]]:
    """Returns what the service attached to the end of a call."""
    pairs: Any = error.trailing_metadata() or ()
    return [(key, value) for key, value in pairs]

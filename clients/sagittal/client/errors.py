"""Every error that the client raises intentionally, as the class that the service reported.

    SagittalError
    ├── InvalidRequest        INVALID_ARGUMENT      `field` names the part of the request at fault
    │   ├── InvalidImage
    │   ├── ArgumentRefused                         a value that the queue does not accept
    │   └── MessageTooLarge   RESOURCE_EXHAUSTED    over the size limit of one message
    ├── NotFound              NOT_FOUND
    │   ├── UnknownModel
    │   ├── UnknownJob
    │   └── EventsExpired                           a reader fell behind the retention of events
    ├── AlreadyExists         ALREADY_EXISTS        a request_id was used with other content
    │   └── ModelExists                             a model's version is registered with other content
    ├── FailedPrecondition    FAILED_PRECONDITION   the model or job does not support the request
    │   └── ConceptSetDamaged                       a stored concept set was moved aside: fit it again
    ├── NotServed             UNIMPLEMENTED         a part of the API that nothing serves
    ├── Overloaded            RESOURCE_EXHAUSTED    an admission limit is exceeded: retry after `retry_after` seconds
    ├── Unavailable           UNAVAILABLE           the service or its queue is unavailable: try again
    │   ├── ConnectionFailed  UNAVAILABLE           nothing answers at the address
    │   └── StreamMoved       UNAVAILABLE           watch the job again, on any replica; streams do so automatically
    ├── Expired               DEADLINE_EXCEEDED     a deadline passed before there was a result
    ├── Unauthenticated       UNAUTHENTICATED       no token, or an unknown one
    ├── PermissionDenied      PERMISSION_DENIED     the token lacks a role
    ├── JobCancelled          CANCELLED             the job was cancelled before it had a result
    └── JobFailed             INTERNAL              the model or its worker failed
        ├── ModelFailed
        ├── JobBuried                               dead-lettered: it ended too many workers
        └── InternalError                           a fault of the service; its message has an identifier for the log
            └── QueueFailed                         a fault of its queue; see the service's log

The stable reason in `google.rpc.ErrorInfo` selects the class. A reason that this version does not know selects the
class of the gRPC code. `failed` events in a stream raise the same classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2

#: Domain of the service's `ErrorInfo`.
DOMAIN = "sagittal"


class SagittalError(Exception):
    """An expected error.

    Attributes:
        message: What was wrong, what was expected, and what to do.
        reason: Stable identifier in capitals, for programs.
        field: The request's field at fault, as a path such as `spec.target.index`; empty if there is none.
        retry_after: Seconds after which a retry may succeed; None if it will not.
        job_id: The job that failed; empty if there is none.
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
        """The message, preceded by the field at fault if the message does not name it."""
        return f"{self.field}: {self.message}" if self.field and self.field not in self.message else self.message


class InvalidRequest(SagittalError):
    """The request is invalid; `field` names the part at fault."""

    reason = "INVALID_REQUEST"
    code = code_pb2.INVALID_ARGUMENT


class InvalidImage(InvalidRequest):
    """The image cannot be read, or exceeds the limits."""

    reason = "INVALID_IMAGE"


class ArgumentRefused(InvalidRequest):
    """The queue does not accept a value of the request; nothing was stored."""

    reason = "ARGUMENT_REFUSED"


class MessageTooLarge(InvalidRequest):
    """A message is larger than the service or this client accepts."""

    reason = "MESSAGE_TOO_LARGE"
    code = code_pb2.RESOURCE_EXHAUSTED


class NotFound(SagittalError):
    """A named object does not exist."""

    reason = "NOT_FOUND"
    code = code_pb2.NOT_FOUND


class UnknownModel(NotFound):
    """No such model, or no such version of it."""

    reason = "UNKNOWN_MODEL"


class UnknownJob(NotFound):
    """No such job, or its retention has passed."""

    reason = "UNKNOWN_JOB"


class EventsExpired(NotFound):
    """The reader of the stream fell behind the retention of events."""

    reason = "EVENTS_EXPIRED"


class AlreadyExists(SagittalError):
    """The request_id was used with other content."""

    reason = "REQUEST_ID_REUSED"
    code = code_pb2.ALREADY_EXISTS


class ModelExists(AlreadyExists):
    """The model's version is registered with other content."""

    reason = "MODEL_EXISTS"


class FailedPrecondition(SagittalError):
    """The model or the job does not support the request; the message names alternatives."""

    reason = "UNSUPPORTED"
    code = code_pb2.FAILED_PRECONDITION


class ConceptSetDamaged(FailedPrecondition):
    """The stored concept set is damaged and was moved aside."""

    reason = "CONCEPT_SET_DAMAGED"


class NotServed(SagittalError):
    """A part of the API that nothing serves."""

    reason = "NOT_SERVED"
    code = code_pb2.UNIMPLEMENTED


class Overloaded(SagittalError):
    """An admission limit is exceeded; `retry_after` is the time until a retry may succeed."""

    reason = "QUEUE_FULL"
    code = code_pb2.RESOURCE_EXHAUSTED


class Unavailable(SagittalError):
    """The service or its queue is unavailable."""

    reason = "QUEUE_UNAVAILABLE"
    code = code_pb2.UNAVAILABLE


class ConnectionFailed(Unavailable):
    """Nothing answers at the address, or the connection was lost and not restored."""

    reason = "CONNECTION_FAILED"


class StreamMoved(Unavailable):
    """This replica ends its streams because it shuts down. The client's streams continue automatically."""

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
    """The job ended with a failure that the caller did not cause."""

    reason = "JOB_FAILED"
    code = code_pb2.INTERNAL


class ModelFailed(JobFailed):
    """The model could not be loaded, raised an exception, or returned invalid scores."""

    reason = "MODEL_FAILED"


class JobBuried(JobFailed):
    """The job was dead-lettered: it ended the maximum number of workers."""

    reason = "JOB_BURIED"


class InternalError(JobFailed):
    """A fault of the service; the message has an identifier that its log contains."""

    reason = "INTERNAL"


class QueueFailed(InternalError):
    """The service's queue returned an error that a retry does not fix; see the service's log."""

    reason = "QUEUE_FAILED"


def _by_reason(classes: Iterable[type[SagittalError]]) -> Mapping[str, type[SagittalError]]:
    return {cls.reason: cls for cls in classes}


#: Class of each reason that the service sends.
REASONS: Mapping[str, type[SagittalError]] = _by_reason(
    (
        InvalidRequest, InvalidImage, ArgumentRefused, MessageTooLarge, NotFound, UnknownModel, UnknownJob,
        EventsExpired, AlreadyExists, ModelExists, FailedPrecondition, ConceptSetDamaged, NotServed, Overloaded,
        Unavailable, ConnectionFailed, StreamMoved, Expired, Unauthenticated, PermissionDenied, JobCancelled, JobFailed,
        ModelFailed, JobBuried, InternalError, QueueFailed,
    )
)  # fmt: skip

#: Class of each gRPC code, for a missing or unknown reason.
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
    """Returns the error of a `google.rpc.Status`, such as that of a `failed` event."""
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
    """Returns the error of a failed call."""
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
    """Returns the metadata that the service sent at the end of a call."""
    pairs: Any = error.trailing_metadata() or ()
    return [(key, value) for key, value in pairs]

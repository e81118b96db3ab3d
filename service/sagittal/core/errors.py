"""Every expected failure. Any other exception is a bug: callers get INTERNAL without details.

    SagittalError
    ├── InvalidRequest        INVALID_ARGUMENT      the request is wrong; names the field and the remedy
    │   ├── InvalidImage
    │   └── ArgumentRefused                         a script of the queue refused a value; nothing was written
    ├── NotFound              NOT_FOUND             UnknownModel, UnknownJob, EventsExpired
    ├── AlreadyExists         ALREADY_EXISTS        a request_id reused with different content
    │   └── ModelExists                             a model version registered again with different content
    ├── FailedPrecondition    FAILED_PRECONDITION   the model or job does not support the request
    ├── NotServed             UNIMPLEMENTED         no worker serves this part of the API
    ├── Overloaded            RESOURCE_EXHAUSTED    an admission limit is exceeded; carries a retry delay
    ├── Unavailable           UNAVAILABLE           Redis cannot be reached; retry
    │   ├── StreamMoved                             the stream continues at another replica: call WatchExplanation
    │   └── QueueFailed       INTERNAL              Redis returned an error that a retry does not solve
    ├── Expired               DEADLINE_EXCEEDED     the job's deadline passed before it had a result
    ├── Unauthenticated       UNAUTHENTICATED       the token is missing or unknown
    ├── PermissionDenied      PERMISSION_DENIED     the token lacks a role
    └── JobFailed             INTERNAL              the model or its worker failed: ModelFailed, JobBuried

`code` is the gRPC code of each class. `to_status` converts an error into a `google.rpc.Status` with details.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar

from google.protobuf import duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from sagittal.core.text import shortened

#: Bytes of a message and of a field's path. A status carries each up to three times, in 8 KiB of trailing metadata.
MAX_MESSAGE, MAX_FIELD = 1_024, 256


class SagittalError(Exception):
    """Base class of expected failures.

    Attributes:
        reason: Stable identifier in capitals, for programs.
        code: gRPC status code.
        field: Path of the request's field at fault, such as `spec.target.index`; empty if no field is at fault.
        retry_after: Seconds after which a retry may succeed; None if a retry does not help.
    """

    reason: ClassVar[str] = "INTERNAL"
    code: ClassVar[int] = code_pb2.INTERNAL

    def __init__(self, message: str, *, field: str = "", retry_after: float | None = None) -> None:
        self.message = shortened(message, MAX_MESSAGE)
        super().__init__(self.message)
        self.field = shortened(field, MAX_FIELD)
        self.retry_after = retry_after


class InvalidRequest(SagittalError):
    """The request is wrong; `field` names the field at fault."""

    reason = "INVALID_REQUEST"
    code = code_pb2.INVALID_ARGUMENT


class InvalidImage(InvalidRequest):
    """The image cannot be read or exceeds the limits."""

    reason = "INVALID_IMAGE"


class ArgumentRefused(InvalidRequest):
    """A script of the queue refused an argument; `field` names it. Nothing was written."""

    reason = "ARGUMENT_REFUSED"


class NotFound(SagittalError):
    """The request names something that does not exist."""

    reason = "NOT_FOUND"
    code = code_pb2.NOT_FOUND


class UnknownModel(NotFound):
    """The model or this version of it does not exist."""

    reason = "UNKNOWN_MODEL"


class UnknownJob(NotFound):
    """The job does not exist, or its retention has passed."""

    reason = "UNKNOWN_JOB"


class EventsExpired(NotFound):
    """The reader fell behind retention: the events it still had to read are deleted."""

    reason = "EVENTS_EXPIRED"


class AlreadyExists(SagittalError):
    """The request_id was used with different content."""

    reason = "REQUEST_ID_REUSED"
    code = code_pb2.ALREADY_EXISTS


class ModelExists(AlreadyExists):
    """The model version is registered with different content."""

    reason = "MODEL_EXISTS"


class FailedPrecondition(SagittalError):
    """The model or the job does not support the request; the message names what it supports."""

    reason = "UNSUPPORTED"
    code = code_pb2.FAILED_PRECONDITION


class ConceptSetDamaged(FailedPrecondition):
    """The stored concept set is damaged and was moved aside."""

    reason = "CONCEPT_SET_DAMAGED"


class NotServed(SagittalError):
    """No worker serves this part of the API."""

    reason = "NOT_SERVED"
    code = code_pb2.UNIMPLEMENTED


class Overloaded(SagittalError):
    """An admission limit is exceeded."""

    reason = "QUEUE_FULL"
    code = code_pb2.RESOURCE_EXHAUSTED


class Unavailable(SagittalError):
    """The queue cannot be reached."""

    reason = "QUEUE_UNAVAILABLE"
    code = code_pb2.UNAVAILABLE


class StreamMoved(Unavailable):
    """This replica ended the stream but not the job; WatchExplanation continues where the stream stopped."""

    reason = "STREAM_MOVED"


class QueueFailed(Unavailable):
    """Redis returned an error caused by a bug or by damaged data; the log has the original message."""

    reason = "QUEUE_FAILED"
    code = code_pb2.INTERNAL


class Expired(SagittalError):
    """The deadline passed before the job had a result."""

    reason = "DEADLINE_PASSED"
    code = code_pb2.DEADLINE_EXCEEDED


class Unauthenticated(SagittalError):
    """The token is missing or unknown."""

    reason = "UNAUTHENTICATED"
    code = code_pb2.UNAUTHENTICATED


class PermissionDenied(SagittalError):
    """The token lacks a role."""

    reason = "PERMISSION_DENIED"
    code = code_pb2.PERMISSION_DENIED


class JobFailed(SagittalError):
    """The job failed, and the caller is not at fault."""

    reason = "JOB_FAILED"
    code = code_pb2.INTERNAL


class ModelFailed(JobFailed):
    """The model could not be loaded, raised an error, or returned values that are not scores."""

    reason = "MODEL_FAILED"


class JobBuried(JobFailed):
    """The job was dead-lettered: as many workers died during its attempts as `SAGITTAL_MAX_ATTEMPTS` allows."""

    reason = "JOB_BURIED"


#: `ErrorInfo.domain` of every error of this service.
DOMAIN = "sagittal"

#: `ErrorInfo.reason` of bugs; their text is only in the log.
INTERNAL_REASON = "INTERNAL"


def to_status(error: SagittalError) -> status_pb2.Status:
    """Returns the error as a status with its reason, the field at fault and the retry delay."""
    status = status_pb2.Status(code=error.code, message=error.message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    status.details.add().Pack(info)
    if error.field:
        status.details.add().Pack(_bad_request(error))
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(max(0.0, error.retry_after) * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def internal_status(incident: str) -> status_pb2.Status:
    """Returns the status of a bug: it has only an identifier, under which the log has the details."""
    message = f"internal error, id {incident}: give this id to the operator, whose log has the details"
    status = status_pb2.Status(code=code_pb2.INTERNAL, message=message)
    info = error_details_pb2.ErrorInfo(reason=INTERNAL_REASON, domain=DOMAIN, metadata={"incident": incident})
    status.details.add().Pack(info)
    return status


def from_status(status: status_pb2.Status) -> SagittalError:
    """Returns the error for a status: by its reason, or by its code if the reason is unknown or missing."""
    info, violations, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    retry_after = None
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(violations)
        if detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    field = violations.field_violations[0].field if violations.field_violations else ""
    return _class(info.reason, status.code)(status.message, field=field, retry_after=retry_after)


def _bad_request(error: SagittalError) -> error_details_pb2.BadRequest:
    violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
    return error_details_pb2.BadRequest(field_violations=[violation])


def _family(parent: type[SagittalError]) -> Iterator[type[SagittalError]]:
    yield parent
    for child in parent.__subclasses__():
        yield from _family(child)


_BY_REASON: Mapping[str, type[SagittalError]] = {error.reason: error for error in _family(SagittalError)}

_BY_CODE: Mapping[int, type[SagittalError]] = {error.code: error for error in SagittalError.__subclasses__()}


def _class(reason: str, code: int) -> type[SagittalError]:
    return _BY_REASON.get(reason) or _BY_CODE.get(code, SagittalError)

"""Every failure that is expected. Anything else is a bug, and callers see it as INTERNAL without its details.

    SagittalError
    ├── InvalidRequest        INVALID_ARGUMENT      the caller's request is wrong; names the field and the remedy
    │   ├── InvalidImage
    │   └── ArgumentRefused                         the queue's scripts refuse a value; nothing was written
    ├── NotFound              NOT_FOUND             UnknownModel, UnknownJob, EventsExpired
    ├── AlreadyExists         ALREADY_EXISTS        a request_id used again with another content
    │   └── ModelExists                             a model's version registered again with another content
    ├── FailedPrecondition    FAILED_PRECONDITION   the model or job cannot do what is asked
    ├── NotServed             UNIMPLEMENTED         part of the API that nothing serves yet
    ├── Overloaded            RESOURCE_EXHAUSTED    past an admission bound; says when to try again
    ├── Unavailable           UNAVAILABLE           Redis is away; try again
    │   ├── StreamMoved                             the stream goes on at another replica: WatchExplanation
    │   └── QueueFailed       INTERNAL              Redis answered with an error that trying again does not mend
    ├── Expired               DEADLINE_EXCEEDED     the job's deadline passed before there was a result
    ├── Unauthenticated       UNAUTHENTICATED       no token, or an unknown one
    ├── PermissionDenied      PERMISSION_DENIED     the token lacks a role
    └── JobFailed             INTERNAL              the model or its worker failed: ModelFailed, JobBuried

The gRPC code of each class is `code`; `core.status` turns an error into a `google.rpc.Status` with its details.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar

from google.protobuf import duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from sagittal.core.text import shortened

#: Bytes of a message and of a field's path: thrice, as a status carries them, they fit into 8 KiB of trailing metadata.
MAX_MESSAGE, MAX_FIELD = 1_024, 256


class SagittalError(Exception):
    """A failure that is expected.

    Attributes:
        reason: Stable identifier in capitals, for programs.
        code: gRPC status code.
        field: The request's field at fault, as a path such as `spec.target.index`; empty where none is.
        retry_after: Seconds after which trying again makes sense; None where it does not.
    """

    reason: ClassVar[str] = "INTERNAL"
    code: ClassVar[int] = code_pb2.INTERNAL

    def __init__(self, message: str, *, field: str = "", retry_after: float | None = None) -> None:
        self.message = shortened(message, MAX_MESSAGE)
        super().__init__(self.message)
        self.field = shortened(field, MAX_FIELD)
        self.retry_after = retry_after


class InvalidRequest(SagittalError):
    """The request is wrong; `field` names the part at fault."""

    reason = "INVALID_REQUEST"
    code = code_pb2.INVALID_ARGUMENT


class InvalidImage(InvalidRequest):
    """The image cannot be read, or is beyond the limits."""

    reason = "INVALID_IMAGE"


class ArgumentRefused(InvalidRequest):
    """A script of the queue refuses an argument; `field` names it, and nothing was written."""

    reason = "ARGUMENT_REFUSED"


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
    """A reader was so slow that what it had still to read is no longer kept."""

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
    """Past an admission bound."""

    reason = "QUEUE_FULL"
    code = code_pb2.RESOURCE_EXHAUSTED


class Unavailable(SagittalError):
    """The queue cannot be reached."""

    reason = "QUEUE_UNAVAILABLE"
    code = code_pb2.UNAVAILABLE


class StreamMoved(Unavailable):
    """This replica ends the stream, not the job: WatchExplanation goes on where it stopped."""

    reason = "STREAM_MOVED"


class QueueFailed(Unavailable):
    """Redis answered with an error that is a bug or damaged data; the log has its own words."""

    reason = "QUEUE_FAILED"
    code = code_pb2.INTERNAL


class Expired(SagittalError):
    """The deadline passed before there was a result."""

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


# Errors as `google.rpc.Status` and back: what crosses the wire, and what the workers write into `failed` events.


#: `ErrorInfo.domain` of every error of ours.
DOMAIN = "sagittal"

#: `ErrorInfo.reason` of failures that are bugs; their text stays in the log.
INTERNAL_REASON = "INTERNAL"


def to_status(error: SagittalError) -> status_pb2.Status:
    """Returns the error with its reason, the field at fault, and when to try again."""
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
    """Returns the status of a bug: nothing but an identifier that is found again in the log."""
    message = f"internal error, id {incident}: tell the operator, whose log says more under this id"
    status = status_pb2.Status(code=code_pb2.INTERNAL, message=message)
    info = error_details_pb2.ErrorInfo(reason=INTERNAL_REASON, domain=DOMAIN, metadata={"incident": incident})
    status.details.add().Pack(info)
    return status


def from_status(status: status_pb2.Status) -> SagittalError:
    """Returns the error that was meant: by its reason, or by its code where the reason is unknown or missing."""
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

"""Errors as `google.rpc.Status` and back: what crosses the wire, and what the workers write into `failed` events."""

from collections.abc import Iterator, Mapping

from google.protobuf import duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from sagittal.core.errors import SagittalError

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

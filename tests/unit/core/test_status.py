from collections.abc import Iterator

import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from sagittal.core.errors import (
    DOMAIN,
    FailedPrecondition,
    InvalidRequest,
    SagittalError,
    StreamMoved,
    Unavailable,
    from_status,
    internal_status,
    to_status,
)


def every_error(parent: type[SagittalError] = SagittalError) -> Iterator[type[SagittalError]]:
    for child in parent.__subclasses__():
        yield child
        yield from every_error(child)


@pytest.mark.parametrize("error", list(every_error()))
def test_every_error_comes_back_as_the_class_that_was_meant(error: type[SagittalError]) -> None:
    meant = error("what was wrong", field="spec.model", retry_after=1.5)
    back = from_status(status_pb2.Status.FromString(to_status(meant).SerializeToString()))
    assert type(back) is error
    assert (back.message, back.field, back.retry_after) == ("what was wrong", "spec.model", 1.5)


def test_no_two_errors_share_a_reason() -> None:
    reasons = [error.reason for error in every_error()]
    assert len(set(reasons)) == len(reasons)


@pytest.mark.parametrize("error", list(every_error()))
def test_every_error_has_a_code_of_its_parents_and_a_domain(error: type[SagittalError]) -> None:
    status = to_status(error("wrong"))
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (error.reason, DOMAIN)
    assert status.code == error.code != code_pb2.OK


def test_details_are_only_what_there_is() -> None:
    assert len(to_status(InvalidRequest("wrong")).details) == 1
    assert len(to_status(InvalidRequest("wrong", field="x")).details) == 2


@pytest.mark.parametrize(
    ("code", "meant"),
    [
        (code_pb2.UNAVAILABLE, Unavailable),
        (code_pb2.INVALID_ARGUMENT, InvalidRequest),
        (code_pb2.FAILED_PRECONDITION, FailedPrecondition),
        (code_pb2.DATA_LOSS, SagittalError),
    ],
)
def test_without_details_the_code_decides(code: int, meant: type[SagittalError]) -> None:
    assert type(from_status(status_pb2.Status(code=code, message="no details"))) is meant


def test_an_unknown_reason_falls_back_to_the_code() -> None:
    status = to_status(StreamMoved("moved"))
    info = error_details_pb2.ErrorInfo(reason="FROM_THE_FUTURE", domain=DOMAIN)
    status.details[0].Pack(info)
    assert type(from_status(status)) is Unavailable


def test_a_bug_shows_an_identifier_and_nothing_else() -> None:
    status = internal_status("abc123")
    assert status.code == code_pb2.INTERNAL
    assert "abc123" in status.message
    assert type(from_status(status)) is SagittalError

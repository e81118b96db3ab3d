"""The class that the service meant is the class that the caller gets."""

import grpc
import pytest
from google.rpc import code_pb2, status_pb2

from sagittal.client import Client, ConnectionFailed, InvalidRequest, MessageTooLarge, Options, Retry, errors
from sagittal.client.errors import CODES, REASONS, SagittalError, from_status
from sagittal.core import errors as core_errors

#: A bearer token.
TOKEN = "-".join("abc")


def core_classes(parent: type = core_errors.SagittalError) -> list[type[core_errors.SagittalError]]:
    return [each for child in parent.__subclasses__() for each in (child, *core_classes(child))]


@pytest.mark.parametrize("core", core_classes(), ids=lambda each: each.__name__)
def test_every_error_of_the_service_has_its_class(core, make_failure) -> None:
    error = from_status(make_failure(core.code, core.reason, field="spec.seed", retry_after=0.5))
    assert type(error).__name__ == core.__name__
    assert (error.reason, error.field, error.retry_after) == (core.reason, "spec.seed", 0.5)


@pytest.mark.parametrize("code", [code for code in code_pb2.Code.values() if code != code_pb2.OK])
def test_every_code_has_a_class_for_reasons_that_are_not_known(code, make_failure) -> None:
    assert type(from_status(status_pb2.Status(code=code, message="no"))) is CODES[code]
    newer = from_status(make_failure(code, "FROM_THE_FUTURE"))
    assert type(newer) is CODES[code]
    assert newer.reason == "FROM_THE_FUTURE"


def test_every_class_is_found_by_its_reason() -> None:
    public = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, SagittalError)]
    assert {each for each in public if each is not SagittalError} == set(REASONS.values())


def test_a_refused_call_raises_what_was_meant(client, script, make_failure, picture) -> None:
    script.refuse = make_failure(3, "INVALID_REQUEST", field="spec.seed", message="expected less")
    with pytest.raises(InvalidRequest, match=r"spec\.seed: expected less") as caught:
        client.submit(picture, model="lamp")
    assert caught.value.field == "spec.seed"
    with pytest.raises(InvalidRequest):
        client.explain(picture, model="lamp")


def test_a_failed_event_raises_what_was_meant(client, script, make_failure, picture, job_id) -> None:
    script.log[3:] = [script.log[3]]
    script.log[3].failed.CopyFrom(make_failure(13, "JOB_BURIED", message="took down 3 workers"))
    with pytest.raises(errors.JobBuried, match="took down 3 workers") as caught:
        client.explain(picture, model="lamp")
    assert caught.value.job_id == job_id


def test_a_cancelled_job_raises(client, script, picture) -> None:
    script.log[3:] = [script.log[3]]
    script.log[3].cancelled.reason = "requested"
    with pytest.raises(errors.JobCancelled, match="requested"):
        client.explain(picture, model="lamp")


def test_nothing_at_the_address_is_said_within_the_time_for_it() -> None:
    options = Options(retry=Retry(call_seconds=0.2))
    with Client("127.0.0.1:1", options=options) as nobody:
        with pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1:1"):
            nobody.model("lamp")
        with pytest.raises(ConnectionFailed):
            nobody.explain(b"", model="lamp")


def test_a_message_over_the_limit_is_the_callers_to_mend(address, picture) -> None:
    small = Client(address, options=Options(max_message_bytes=10))
    with small, pytest.raises(MessageTooLarge, match="smaller image"):
        small.submit(picture, model="lamp")


def test_a_call_is_repeated_while_the_service_is_away(client, script) -> None:
    script.unavailable = 3
    assert client.model("lamp").name == "lamp"


def test_a_call_is_not_repeated_for_other_errors(client, script, make_failure, picture) -> None:
    script.refuse = make_failure(9, "UNSUPPORTED")
    with pytest.raises(errors.FailedPrecondition):
        client.submit(picture, model="lamp")
    assert len(script.specs) == 1


def test_a_token_does_not_travel_in_the_clear() -> None:
    with pytest.raises(InvalidRequest, match="unencrypted"):
        Client("example.com:50051", token=TOKEN)
    Client("localhost:50051", token=TOKEN).close()
    Client("example.com:50051", token=TOKEN, options=Options(allow_plaintext_token=True)).close()


def test_errors_of_grpc_itself_are_classed() -> None:
    class Broken(grpc.RpcError):
        def code(self):
            return grpc.StatusCode.UNAUTHENTICATED

        def details(self):
            return "who are you"

        def trailing_metadata(self):
            return None

    assert isinstance(errors.from_rpc_error(Broken()), errors.Unauthenticated)

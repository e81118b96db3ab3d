"""Values at the edges of their types are refused by name, never answered with INTERNAL."""

import grpc
import pytest
from google.protobuf import struct_pb2
from google.rpc import error_details_pb2, status_pb2

from sagittal.v1 import explanation_service_pb2 as api
from sagittal.v1 import method_pb2

from .support import Stack, spec


async def refused(call: object) -> tuple[grpc.StatusCode, str]:
    """Returns the code of a refusal and the field that it names."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    details = dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
    violations = error_details_pb2.BadRequest()
    for detail in status_pb2.Status.FromString(details).details:
        detail.Unpack(violations)
    return caught.value.code(), violations.field_violations[0].field


@pytest.mark.parametrize("after", [2**53, 2**63, 2**64 - 1])
async def test_a_sequence_number_that_no_log_has_is_refused(stack: Stack, after: int) -> None:
    job = (await stack.explanations.SubmitExplanation(api.SubmitExplanationRequest(spec=spec()))).explanation
    call = stack.explanations.WatchExplanation(
        api.WatchExplanationRequest(job_id=job.job_id, after_sequence=after)
    ).read()
    assert await refused(call) == (grpc.StatusCode.INVALID_ARGUMENT, "after_sequence")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
async def test_a_custom_parameter_that_is_no_number_is_refused(stack: Stack, number: float) -> None:
    parameters = struct_pb2.Struct(fields={"mask_size": struct_pb2.Value(number_value=number)})
    method = method_pb2.Method(custom=method_pb2.CustomMethod(name="glow", parameters=parameters))
    call = stack.explanations.SubmitExplanation(api.SubmitExplanationRequest(spec=spec(method=method)))
    assert await refused(call) == (grpc.StatusCode.INVALID_ARGUMENT, "spec.method.custom.parameters.mask_size")

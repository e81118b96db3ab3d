"""A round of every RPC; `make fuzz` takes twenty minutes."""

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import MethodDescriptor

from fuzzing.rpcs import RPCS, Server, check_rpc, exists, served
from sagittal.v1 import explanation_service_pb2, model_service_pb2

#: Requests of each RPC; of those that stream, which take longer, fewer.
INPUTS, STREAMED = 100, 40

EVERY_RPC = pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A service that all tests here send to."""
    with served() as server:
        yield server


@EVERY_RPC
def test_whatever_is_sent_is_answered_as_promised(server: Server, rpc: MethodDescriptor) -> None:
    check_rpc(server, rpc, STREAMED if rpc.server_streaming else INPUTS)
    server.check_neighbour()


def test_the_fuzzer_knows_which_fields_exist() -> None:
    request = explanation_service_pb2.SubmitExplanationRequest.DESCRIPTOR
    assert exists("spec.metrics.boxes[3].left", request)
    assert exists("spec.method.custom.parameters.anything", request)
    assert not exists("spec.nosuch", request)
    assert not exists("spec.seed.more", request)
    registration = model_service_pb2.RegisterModelRequest.DESCRIPTOR
    assert exists("model.tags.team", registration)
    assert not exists("model.tags..[key]", registration)

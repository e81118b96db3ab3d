"""A minute of every RPC; `make fuzz` takes twenty."""

import itertools
import random
import time
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import MethodDescriptor
from integration.service.support import RedisQueue, RedisRegistry

from fuzzing.rpcs import RPCS, Server, check_rpc, exists, served
from sagittal.runtime.settings import QueueSettings
from sagittal.v1 import explanation_service_pb2, model_service_pb2

#: Time for all RPCs over each queue, in seconds.
SECONDS = {"memory": 45, "valkey": 15}
#: Requests in a round; an RPC has one at least, and new ones until its share of the time is over.
INPUTS = {"memory": 40, "valkey": 15}

EVERY_RPC = pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)


@pytest.fixture(scope="module", params=list(SECONDS))
def queue(request: pytest.FixtureRequest) -> str:
    """Which queue the service has."""
    return str(request.param)


@pytest.fixture(scope="module")
def server(queue: str, valkey_url: str) -> Iterator[Server]:
    """A service over it."""

    def on_valkey() -> dict[str, object]:
        settings = QueueSettings(url=valkey_url, prefix=f"fuzz-{random.getrandbits(64):x}")
        return {"queue": RedisQueue(settings), "registry": RedisRegistry(settings)}

    with served(on_valkey if queue == "valkey" else dict) as server:
        yield server


@EVERY_RPC
def test_whatever_is_sent_is_answered_as_promised(server: Server, queue: str, rpc: MethodDescriptor) -> None:
    until = time.monotonic() + SECONDS[queue] / len(RPCS)
    for number in itertools.count():
        check_rpc(server, rpc, INPUTS[queue], number)
        if time.monotonic() > until:
            break


def test_the_fuzzer_knows_which_fields_exist() -> None:
    request = explanation_service_pb2.SubmitExplanationRequest.DESCRIPTOR
    assert exists("spec.metrics.boxes[3].left", request)
    assert exists("spec.method.custom.parameters.anything", request)
    assert not exists("spec.nosuch", request)
    assert not exists("spec.seed.more", request)
    registration = model_service_pb2.RegisterModelRequest.DESCRIPTOR
    assert exists("model.tags.team", registration)
    assert not exists("model.tags..[key]", registration)

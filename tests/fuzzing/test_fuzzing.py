"""A few seconds of every fuzzing campaign; `make fuzz` gives each twenty minutes."""

import importlib.util
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.service.support import RedisQueue, RedisRegistry
from packaging_support import missing

from fuzzing.campaign import COVERED, fuzz_covered
from fuzzing.rpcs import RPCS, Server, check_rpc, exists, served
from sagittal.runtime.settings import QueueSettings
from sagittal.v1 import explanation_service_pb2, model_service_pb2

#: Time for each target that atheris fuzzes, in seconds.
SECONDS = 3
#: Requests for each RPC.
INPUTS = {"memory": 40, "valkey": 15}

EVERY_RPC = pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)


@pytest.fixture(scope="module", params=list(INPUTS))
def server(request: pytest.FixtureRequest, valkey_url: str) -> Iterator[tuple[Server, int]]:
    """A service over each queue, and how many requests an RPC of it is sent."""

    def on_valkey() -> dict[str, object]:
        settings = QueueSettings(url=valkey_url, prefix=f"fuzz-{random.getrandbits(64):x}")
        return {"queue": RedisQueue(settings), "registry": RedisRegistry(settings)}

    with served(on_valkey if request.param == "valkey" else dict) as server:
        yield server, INPUTS[request.param]


@EVERY_RPC
def test_whatever_is_sent_is_answered_as_promised(server: tuple[Server, int], rpc: object) -> None:
    check_rpc(server[0], rpc, server[1])  # type: ignore[arg-type]


@pytest.mark.parametrize("target", COVERED)
def test_whatever_is_read_is_read_or_refused(target: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        missing("atheris is not installed: it is for Linux on x86-64")
    outcome = fuzz_covered(target, SECONDS, tmp_path)
    assert not outcome.fault, outcome.fault
    assert outcome.inputs > 100


def test_the_fuzzer_knows_which_fields_exist() -> None:
    request = explanation_service_pb2.SubmitExplanationRequest.DESCRIPTOR
    assert exists("spec.metrics.boxes[3].left", request)
    assert exists("spec.method.custom.parameters.anything", request)
    assert not exists("spec.nosuch", request)
    assert not exists("spec.seed.more", request)
    registration = model_service_pb2.RegisterModelRequest.DESCRIPTOR
    assert exists("model.tags.team", registration)
    assert not exists("model.tags..[key]", registration)

"""Calls of one client go to every address of the service."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import grpc
import pytest
from scripted_service import OPTIONS, Script, served

from sagittal.client import AsyncClient, Client
from sagittal.v1 import model_service_pb2 as models_pb

CALLS = 60


@dataclass
class Replica(Script):
    """A service that counts the calls that reach it."""

    calls: int = 0

    def ListModels(self, request: models_pb.ListModelsRequest, context: grpc.ServicerContext):
        self.calls += 1
        return super().ListModels(request, context)


@pytest.fixture
def replicas() -> list[Replica]:
    return [Replica(), Replica()]


@pytest.fixture
def address(replicas: list[Replica]) -> Iterator[str]:
    """An address that stands for both, as the name of a headless Service does."""
    with ExitStack() as stack:
        yield "ipv4:" + ",".join(stack.enter_context(served(replica)) for replica in replicas)


def share(replicas: list[Replica]) -> float:
    """Returns the first one's share of the calls since both were reached for the first time."""
    return replicas[0].calls / sum(replica.calls for replica in replicas)


def test_calls_of_one_client_are_shared_by_the_replicas(replicas: list[Replica], address: str) -> None:
    with Client(address, options=OPTIONS) as client:
        while not all(replica.calls for replica in replicas):  # a replica takes part from when it is connected
            list(client.models())
        for replica in replicas:
            replica.calls = 0
        for _ in range(CALLS):
            list(client.models())
    assert 0.4 <= share(replicas) <= 0.6


async def test_calls_of_one_asyncio_client_are_shared_by_the_replicas(replicas: list[Replica], address: str) -> None:
    async with AsyncClient(address, options=OPTIONS) as client:
        while not all(replica.calls for replica in replicas):
            _ = [model async for model in client.models()]
        for replica in replicas:
            replica.calls = 0
        for _ in range(CALLS):
            _ = [model async for model in client.models()]
    assert 0.4 <= share(replicas) <= 0.6

"""A tenant's requests wait in memory within a limit, and not longer than until their jobs are stored."""

import asyncio
import weakref
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from sagittal.server.explanations import ExplanationServicer
from sagittal.server.rpc import requests
from sagittal.server.rpc.layers import Layers
from sagittal.server.rpc.requests import RequestBytes, Tenant, claim_request, release_request
from sagittal.v1 import explanation_pb2, tensor_pb2

MESSAGE = tensor_pb2.Image(encoded=bytes(1000))


@pytest.fixture
def tenant(monkeypatch: pytest.MonkeyPatch) -> Tenant:
    monkeypatch.setattr(requests, "FIRST_BYTES", 1)
    return Tenant(2 * MESSAGE.ByteSize())


async def arrive() -> tensor_pb2.Image:
    return MESSAGE


def reading(tenant: Tenant, until: asyncio.Event | None = None) -> "asyncio.Task[Any]":
    """Reads a message in a task of its own, and holds it until an event."""

    async def hold() -> None:
        await tenant.read(arrive)
        if until is not None:
            await until.wait()
        release_request()

    return asyncio.create_task(hold())


async def idle() -> None:
    """Lets all tasks go on until each waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_messages_beyond_the_limit_are_read_when_others_are_stored(tenant: Tenant) -> None:
    stored = asyncio.Event()
    held = [reading(tenant, stored) for _ in range(2)]
    await idle()
    third, left = reading(tenant), reading(tenant)
    await idle()
    assert tenant.used == 2 * MESSAGE.ByteSize()
    assert not third.done()
    left.cancel()
    stored.set()
    await asyncio.gather(*held, third)
    assert tenant.used == 0


async def test_a_message_over_the_limit_is_read_when_it_is_alone() -> None:
    tenant = Tenant(1)
    first, second = reading(tenant), reading(tenant)
    await asyncio.gather(first, second)
    assert tenant.used == 0


async def test_a_message_that_arrives_slowly_keeps_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "SLOW_SECONDS", 0.01)
    tenant = Tenant(1)
    slow = asyncio.create_task(tenant.read(asyncio.Event().wait))
    await idle()
    await reading(tenant)
    slow.cancel()
    await asyncio.gather(slow, return_exceptions=True)
    assert tenant.used == 0


async def test_the_next_message_of_a_stream_takes_the_place_of_one_that_is_not_claimed(tenant: Tenant) -> None:
    async def three() -> AsyncGenerator[Any, None]:
        for _ in range(3):
            yield MESSAGE

    used, claimed = [], None
    async for _ in tenant.read_each(three()):
        used.append(tenant.used // MESSAGE.ByteSize())
        if len(used) == 2:
            claim_request()
            claimed = requests._PLACE.get()
    assert used == [1, 1, 2]
    assert claimed is not None
    claimed.release()
    assert tenant.used == 0


class Request(SimpleNamespace):
    """A request to which there may be weak references."""


async def test_a_stream_does_not_keep_its_request_in_memory() -> None:
    job = SimpleNamespace(job_id="0" * 32)

    class Intake:
        async def explain(self, spec: Any, caller: Any) -> Any:
            return job, True

    class Relay:
        async def events(self, job: Any) -> AsyncGenerator[Any, None]:
            yield explanation_pb2.ExplanationEvent()
            await asyncio.Event().wait()

    kept: list[weakref.ref[Request]] = []

    def parse(data: bytes) -> Request:
        request = Request(spec=data, detach=True)
        kept.append(weakref.ref(request))
        return request

    unused: Any = None
    servicer = ExplanationServicer(
        unused,
        Intake(),
        Relay(),
        *(unused for _ in range(5)),
        regions_deadline=1.0,  # type: ignore[arg-type]
    )
    serialize = type(explanation_pb2.ExplanationEvent()).SerializeToString
    handlers = {"Explain": grpc.unary_stream_rpc_method_handler(servicer.Explain, parse, serialize)}
    server = grpc.aio.server(interceptors=[Layers((), RequestBytes(2**20))])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_stream("/test.Service/Explain")(b"image")
        await call.read()
        found = [each() for each in kept]
        call.cancel()
    await server.stop(None)
    assert found == [None]

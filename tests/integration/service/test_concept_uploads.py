"""Uploads of FitConcepts that are refused while the caller is still sending."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc
import pytest
from embedded_queue import Queue, own_settings
from google.rpc import status_pb2

from sagittal.client import AsyncClient, Client, Overloaded
from sagittal.core.errors import from_status
from sagittal.server.settings import ConceptLimits
from sagittal.v1 import concept_service_pb2, concept_service_pb2_grpc, tensor_pb2

from .support import Stack, quick_settings, running

MIB = 2**20
PART = MIB // 4

Requests = Iterator[concept_service_pb2.FitConceptsRequest]


def small_queue() -> Queue:
    """Returns a queue that stores one MiB of a tenant's uploads."""
    return Queue(own_settings(max_stored_bytes=8 * MIB, upload_share=0.25, tenant_share=0.5))


def serving(directory: Path, queue: Queue | None = None, **settings: Any) -> AbstractAsyncContextManager[Stack]:
    return running(quick_settings(concepts={"directory": directory}, **settings), queue=queue)


def upload(model: str, images: int | None) -> Requests:
    """Yields settings and then images, without end for None."""
    request = concept_service_pb2.FitConceptsRequest()
    request.settings.name, request.settings.model = "set", model
    request.settings.targets.add(index=1)
    yield request
    for _ in itertools.count() if images is None else range(images):
        yield concept_service_pb2.FitConceptsRequest(image=tensor_pb2.Image(encoded=os.urandom(PART)))


async def refusal_of(stack: Stack, requests: AsyncIterator[Any]) -> grpc.aio.AioRpcError:
    call = concept_service_pb2_grpc.ConceptServiceStub(stack.channel).FitConcepts(requests)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return caught.value


@pytest.mark.parametrize(
    ("model", "code", "reason"),
    [
        ("lamp", grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL"),
        ("none", grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL"),
    ],
)
async def test_a_caller_that_goes_on_sending_gets_the_reason_of_the_refusal(
    model, code, reason, tmp_path: Path
) -> None:
    async def sent() -> AsyncIterator[Any]:
        for request in upload(model, images=40):
            yield request

    async with serving(tmp_path, small_queue()) as stack:
        for _ in range(5):
            error = await refusal_of(stack, sent())
            assert error.code() is code, error.details()
            trailers = dict(error.trailing_metadata() or ())
            status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
            assert from_status(status).reason == reason


async def test_both_clients_raise_the_reason_of_the_refusal(tmp_path: Path) -> None:
    images = [os.urandom(PART) for _ in range(40)]
    asked = {"name": "set", "model": "lamp", "targets": [1]}
    async with serving(tmp_path, small_queue()) as stack:
        address = f"127.0.0.1:{stack.port}"
        async with AsyncClient(address) as client:
            with pytest.raises(Overloaded, match="bytes of uploads"):
                await client.concepts.fit(images, **asked)
        with Client(address) as client, pytest.raises(Overloaded, match="bytes of uploads"):
            await asyncio.to_thread(client.concepts.fit, images, **asked)


async def test_a_caller_that_pauses_is_answered_while_its_call_is_open(tmp_path: Path) -> None:
    answered = asyncio.Event()

    async def sent() -> AsyncIterator[Any]:
        for request in upload("none", images=2):
            yield request
        await answered.wait()

    async with serving(tmp_path) as stack:
        error = await asyncio.wait_for(refusal_of(stack, sent()), 60)
        answered.set()
        assert error.code() is grpc.StatusCode.NOT_FOUND, error.details()


async def test_no_more_of_a_refused_call_is_read_than_a_fit_may_have(tmp_path: Path) -> None:
    count = 0

    async def sent() -> AsyncIterator[Any]:
        nonlocal count
        for request in upload("none", images=None):
            count += 1
            yield request

    async with serving(tmp_path, fits=ConceptLimits(max_bytes=8 * MIB)) as stack:
        await refusal_of(stack, sent())  # with its own status, or with gRPC's about a message that could not be sent
        assert count * PART < 32 * MIB

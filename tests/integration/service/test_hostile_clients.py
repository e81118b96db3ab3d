"""Clients that trickle, flood, ask without end or never answer: they are sent away, and nobody else notices."""

import asyncio
import hashlib
import struct
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from sagittal.v1 import explanation_service_pb2 as api
from sagittal.v1 import tensor_pb2

from .http2 import (
    ACK,
    CONTINUATION,
    END_HEADERS,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    connect,
    flood,
    frame,
    header_block,
)
from .support import Stack, quick_settings, running, spec

LIST = "/sagittal.v1.ExplanationService/ListExplanations"

#: Connections of a client that has many.
CROWD = 200

#: Time within which something must have happened, in seconds, however slow the machine is.
PATIENCE = 150


def impatient(**connections: Any) -> Any:
    """Settings under which nothing takes long."""
    return quick_settings(connections={"handshake_timeout": 1.0} | connections)


async def others_are_served(stack: Stack) -> None:
    """Makes a few calls as anybody would."""
    for number in range(5):
        await stack.explanations.ListExplanations(api.ListExplanationsRequest(page_size=number), timeout=PATIENCE)


async def test_clients_that_never_shake_hands_are_sent_away() -> None:
    async with running(impatient()) as stack, AsyncExitStack() as crowd:
        silent = [await crowd.enter_async_context(connect(stack.port, polite=False)) for _ in range(CROWD)]
        for number, client in enumerate(silent):
            client.send(PREFACE[: number % len(PREFACE)])
        await others_are_served(stack)
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(client.closed() for client in silent))


async def test_headers_that_trickle_hold_nobody_up_and_end_with_the_connections_age() -> None:
    async with running(impatient(max_age=1.0, max_age_grace=0.5)) as stack, AsyncExitStack() as crowd:
        slow = [await crowd.enter_async_context(connect(stack.port)) for _ in range(CROWD)]
        block = header_block(LIST)
        for client in slow:
            client.send(frame(HEADERS, stream=1, payload=block[:20]))
        await others_are_served(stack)
        for client in slow:
            client.send(frame(CONTINUATION, stream=1, payload=block[20:21]))
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(client.closed() for client in slow))


async def test_a_message_that_never_ends_ends_with_the_connections_age() -> None:
    async with running(impatient(max_age=1.0, max_age_grace=0.5)) as stack, connect(stack.port) as client:
        client.send(frame(HEADERS, END_HEADERS, 1, header_block(LIST)), frame(0, 0, 1, struct.pack(">BI", 0, 900)))
        await others_are_served(stack)
        async with asyncio.timeout(PATIENCE):
            await client.closed()


@pytest.mark.parametrize("rpc", ["ListExplanations", "Explain", "ExplainMany"])
async def test_the_message_of_a_caller_without_a_token_is_not_waited_for(rpc: str) -> None:
    tokens = {hashlib.sha256(b"ann").hexdigest(): {"tenant": "ann"}}
    async with running(quick_settings(tokens=tokens)) as stack, connect(stack.port) as client:
        path = f"/sagittal.v1.ExplanationService/{rpc}"
        client.send(frame(HEADERS, END_HEADERS, 1, header_block(path)))
        client.send(frame(0, 0, 1, struct.pack(">BI", 0, 30 * 2**20) + bytes(999)))
        async with asyncio.timeout(PATIENCE):
            answers = [payload async for kind, flags, payload in client.frames_until(HEADERS) if kind == HEADERS]
        assert b"grpc-status" in answers[-1]
        assert stack.metric("sagittal_rpcs_handled_total", rpc=path[1:], code="UNAUTHENTICATED") == 1


async def test_a_client_that_does_not_answer_pings_is_given_up() -> None:
    async with running(impatient(keepalive_interval=0.5, keepalive_timeout=0.5)) as stack:
        async with connect(stack.port) as client, asyncio.timeout(PATIENCE):
            kinds = [kind async for kind, _, _ in client.frames()]
        assert PING in kinds, "it was asked first"


async def test_a_client_that_pings_without_end_is_sent_away() -> None:
    async with running() as stack, connect(stack.port) as client:
        client.send(*(frame(PING, payload=number.to_bytes(8)) for number in range(100)))
        async with asyncio.timeout(PATIENCE):
            goodbyes = [payload async for kind, _, payload in client.frames() if kind == GOAWAY]
        reasons = [int.from_bytes(payload[4:8]) for payload in goodbyes]
        assert ENHANCE_YOUR_CALM in reasons
        await others_are_served(stack)


async def test_a_client_that_pings_as_often_as_it_may_stays() -> None:
    interval, answered = 0.05, 0
    settings = quick_settings(connections={"min_client_keepalive": interval})
    async with running(settings) as stack, connect(stack.port) as client, asyncio.timeout(PATIENCE):
        client.send(frame(PING, payload=bytes(8)))
        async for kind, flags, payload in client.frames():
            assert kind != GOAWAY
            if kind == PING and not flags & ACK:
                client.send(frame(PING, ACK, payload=payload))
            elif kind == PING:
                answered += 1
                if answered == 6:  # it would be sent away for the third ping that comes too early
                    break
                await asyncio.sleep(2 * interval)
                client.send(frame(PING, payload=bytes(8)))
    assert answered == 6


async def test_calls_that_are_reset_at_once_hold_nobody_up() -> None:
    async with running() as stack, connect(stack.port) as client:
        block = header_block(LIST)
        for number in range(2000):
            stream = 2 * number + 1
            client.send(frame(HEADERS, END_HEADERS, stream, block), frame(RST_STREAM, 0, stream, bytes(4)))
        await others_are_served(stack)


async def test_metadata_over_the_limit_are_refused() -> None:
    async with running() as stack:
        call = stack.explanations.ListExplanations(
            api.ListExplanationsRequest(), metadata=(("long", "x" * 40_000),), timeout=PATIENCE
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        await others_are_served(stack)


async def test_a_message_that_grows_over_the_limit_when_it_is_unpacked_is_refused() -> None:
    settings, options = impatient(max_message_bytes=2**20), [("grpc.max_send_message_length", -1)]
    async with (
        running(settings) as stack,
        grpc.aio.insecure_channel(
            f"127.0.0.1:{stack.port}", options=options, compression=grpc.Compression.Gzip
        ) as channel,
    ):
        zeros = spec(image=tensor_pb2.Image(encoded=bytes(32 * 2**20)))
        packed = channel.unary_unary("/sagittal.v1.ExplanationService/SubmitExplanation")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await packed(api.SubmitExplanationRequest(spec=zeros).SerializeToString(), timeout=PATIENCE)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        await others_are_served(stack)


async def test_a_flood_of_calls_and_a_crowd_that_trickles_do_not_stop_others() -> None:
    message = api.ListExplanationsRequest(page_size=10).SerializeToString()
    async with running(impatient()) as stack, AsyncExitStack() as crowd:
        for _ in range(CROWD):
            client = await crowd.enter_async_context(connect(stack.port))
            client.send(frame(HEADERS, stream=1, payload=b"\0"))
        answered = asyncio.create_task(flood(stack.port, LIST, message, connections=20, calls=150, streams=20))
        await others_are_served(stack)
        async with asyncio.timeout(PATIENCE):
            assert await answered == 3000
        await others_are_served(stack)

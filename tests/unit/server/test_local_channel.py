"""Callers in the service's process get what callers over a connection get, and a stream waits for its reader."""

import asyncio
import gc

import grpc
import pytest

from sagittal.core.errors import NotFound
from sagittal.server.rpc.failures import answer_failures
from sagittal.server.rpc.layers import Layers
from sagittal.server.rpc.local_channel import AHEAD, LocalChannel
from sagittal.server.rpc.requests import RequestBytes
from sagittal.v1 import model_service_pb2 as pb
from sagittal.v1 import model_service_pb2_grpc

STREAM = "/test.Service/Stream"


class Models(model_service_pb2_grpc.ModelServiceServicer):
    async def GetModel(self, request, context):
        if request.name == "slow":
            await asyncio.sleep(3600)
        if request.name != "lamp":
            raise NotFound(f"no model {request.name}", field="name")
        return pb.GetModelResponse(model={"name": dict(context.invocation_metadata())["authorization"]})


def channel_to(stream=None) -> LocalChannel:
    channel = LocalChannel(Layers((answer_failures,), RequestBytes(10**6)), max_message_bytes=1000)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Models(), channel)
    if stream is not None:
        handlers = {"Stream": grpc.unary_stream_rpc_method_handler(stream)}
        channel.add_registered_method_handlers("test.Service", handlers)
    return channel


async def get(name, **options):
    stub = model_service_pb2_grpc.ModelServiceStub(channel_to())
    return await stub.GetModel(pb.GetModelRequest(name=name), **options)


async def test_a_stub_calls_through_it_with_metadata() -> None:
    answer = await get("lamp", metadata=(("authorization", "Bearer x"),))
    assert answer.model.name == "Bearer x"


async def test_an_error_arrives_with_its_status_and_details() -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="no model candle") as caught:
        await get("candle")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert [key for key, _ in caught.value.trailing_metadata()] == ["grpc-status-details-bin"]


async def test_a_call_ends_at_its_deadline() -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await get("slow", timeout=0.05)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_request_that_is_too_large_for_a_connection_is_refused() -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="MAX_MESSAGE_BYTES, 1,000") as caught:
        await get("x" * 1000)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_unknown_rpc_is_refused_when_its_call_is_awaited() -> None:
    call = channel_to().unary_unary("/test.Service/Nothing")(b"")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_failure_that_its_caller_did_not_wait_for_is_not_reported_as_a_bug() -> None:
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    async def fails(_request, _context):
        yield b"first"
        raise NotFound("no model candle", field="name")

    call = channel_to(fails).unary_stream(STREAM)(b"")
    assert await anext(call) == b"first"
    await asyncio.wait({call.task})
    call.cancel()
    del call
    gc.collect()
    await asyncio.sleep(0)
    assert reported == []


async def test_a_stream_waits_for_its_reader_and_is_closed_by_cancelling_it() -> None:
    written, closed = [], asyncio.Event()

    async def count(_request, _context):
        try:
            for number in range(10 * AHEAD):
                written.append(number)
                yield bytes([number])
        finally:
            closed.set()

    call = channel_to(count).unary_stream(STREAM)(b"")
    assert await anext(call) == b"\0"
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(written) <= AHEAD + 1
    read = [await anext(call) for _ in range(3 * AHEAD)]
    assert read == [bytes([number]) for number in range(1, 3 * AHEAD + 1)]
    call.cancel()
    await closed.wait()


async def test_closing_it_waits_for_open_calls_and_refuses_others() -> None:
    go = asyncio.Event()

    async def wait(_request, _context):
        await go.wait()
        yield b"last"

    channel = channel_to(wait)
    call = channel.unary_stream(STREAM)(b"")
    closing = asyncio.create_task(channel.close(grace=600))
    await asyncio.sleep(0)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await anext(channel.unary_stream(STREAM)(b""))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not closing.done()
    go.set()
    assert [each async for each in call] == [b"last"]
    await closing


async def test_calls_that_outlast_the_grace_end() -> None:
    async def wait(_request, _context):
        await asyncio.sleep(3600)
        yield b"last"

    channel = channel_to(wait)
    call = channel.unary_stream(STREAM)(b"")
    await channel.close(grace=0)
    with pytest.raises(grpc.aio.AioRpcError, match="is stopping"):
        await anext(call)

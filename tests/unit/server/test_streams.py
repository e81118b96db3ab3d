"""Streams that are to move end soon, and say so, whatever becomes of the first word that they should."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import pytest

from sagittal.core.errors import StreamMoved
from sagittal.server.rpc.failures import answer_failures
from sagittal.server.rpc.layers import Call, Layers
from sagittal.server.rpc.requests import RequestBytes
from sagittal.server.rpc.streams import Streams, stream_is_moving

CALL: Any = Call("/service/Stream", streams=True, context=None)  # type: ignore[arg-type]
#: Far more than anything here takes, in seconds.
PATIENCE = 30.0


async def for_ever() -> None:
    await asyncio.sleep(PATIENCE)


async def test_a_stream_that_is_moved_ends_with_the_advice_to_resume() -> None:
    streams = Streams(PATIENCE)
    serving = asyncio.create_task(streams(CALL, for_ever))
    await asyncio.sleep(0)
    assert len(streams) == 1
    streams.move_all()
    with pytest.raises(StreamMoved, match="WatchExplanation"):
        await serving
    assert len(streams) == 0
    assert serving.cancelling() == 0


async def test_a_stream_that_overhears_the_first_word_is_asked_again() -> None:
    heard = []

    async def deaf() -> None:
        for _ in range(3):  # as asyncio.wait_for before Python 3.12, where what it waits for is just done
            with contextlib.suppress(asyncio.CancelledError):
                await for_ever()
            heard.append(stream_is_moving())
        await for_ever()

    streams = Streams(PATIENCE, again=0.01)
    serving = asyncio.create_task(streams(CALL, deaf))
    await asyncio.sleep(0)
    streams.move_all()
    with pytest.raises(StreamMoved):
        await asyncio.wait_for(serving, PATIENCE / 2)
    assert heard == [True] * 3
    assert serving.cancelling() == 0


async def test_a_stream_that_begins_after_all_were_moved_is_moved_at_once() -> None:
    streams = Streams(PATIENCE)
    streams.move_all()
    with pytest.raises(StreamMoved):
        await streams(CALL, for_ever)


async def test_a_stream_that_tidies_up_is_left_to_it() -> None:
    tidied = asyncio.Event()

    async def tidy() -> None:
        try:
            await for_ever()
        finally:
            await asyncio.sleep(0.05)
            tidied.set()

    streams = Streams(PATIENCE)
    serving = asyncio.create_task(streams(CALL, tidy))
    await asyncio.sleep(0)
    streams.move_all()
    streams.move_all()
    with pytest.raises(StreamMoved):
        await serving
    assert tidied.is_set()


async def test_a_stream_that_is_moved_while_it_writes_its_first_message_says_so_to_its_caller() -> None:
    streams = Streams(PATIENCE)

    async def behaviour(_request: bytes, _context: Any) -> AsyncGenerator[bytes, None]:
        asyncio.get_running_loop().call_soon(streams.move_all)  # runs once the write is under way
        yield b"first"
        await for_ever()

    handler = grpc.unary_stream_rpc_method_handler(behaviour)
    server = grpc.aio.server(interceptors=[Layers((answer_failures, streams), RequestBytes(2**20))])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("service", {"Stream": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_stream("/service/Stream")(b"", timeout=PATIENCE / 2)
        assert await call.read() == b"first"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    await server.stop(0)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "WatchExplanation" in (caught.value.details() or "")


async def test_a_caller_that_goes_away_is_no_move() -> None:
    serving = asyncio.create_task(Streams(PATIENCE)(CALL, for_ever))
    await asyncio.sleep(0)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving

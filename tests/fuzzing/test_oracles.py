"""The oracles see what they are there for, and a short campaign on damaged records finds nothing."""

import asyncio
import mmap
import time
from collections.abc import Iterator

import pytest
import redis
from embedded_queue import valkey_url

from fuzzing.oracles import CALL_BYTES, LOOP_SECONDS, REDIS_BYTES, LoopMeter, Oracles, TooDear, bounded
from fuzzing.records import damage_and_use


@pytest.fixture
def client() -> Iterator[redis.Redis]:
    """A client of this test run's Valkey."""
    with redis.Redis.from_url(valkey_url()) as client:
        yield client


def compute(seconds: float) -> None:
    """Takes processor time."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def take_memory(size: int) -> None:
    """Takes memory that is new, whatever the allocator has kept, and gives it back."""
    with mmap.mmap(-1, size) as taken:
        for place in range(0, size, mmap.PAGESIZE):
            taken[place] = 1


async def held_loop(client: redis.Redis, seconds: float) -> None:
    """Computes on the loop that is measured."""
    meter = LoopMeter()
    measuring = asyncio.create_task(meter.run())
    await asyncio.sleep(0)
    try:
        with Oracles(meter, client).watch("a call", 0):
            await asyncio.sleep(0.05)
            compute(seconds)
            await asyncio.sleep(0.05)
    finally:
        measuring.cancel()


async def test_an_event_loop_that_is_held_is_seen(client: redis.Redis) -> None:
    await held_loop(client, 0.0)
    with pytest.raises(TooDear, match="the event loop was held"):
        await held_loop(client, LOOP_SECONDS + 0.1)


def test_memory_that_a_call_takes_is_seen_though_it_is_free_again(client: redis.Redis) -> None:
    with (
        pytest.raises(TooDear, match="peak of memory"),
        Oracles(LoopMeter(), client).watch("a call", 0),
    ):
        take_memory(CALL_BYTES + 2**20)


def test_memory_that_redis_keeps_of_a_call_is_seen(client: redis.Redis) -> None:
    try:
        with pytest.raises(TooDear, match="memory of Redis"), Oracles(LoopMeter(), client).watch("a call", 100):
            client.set("fuzzed", bytes(REDIS_BYTES + 2**20))
    finally:
        client.delete("fuzzed")


def test_an_input_that_takes_long_or_much_is_seen() -> None:
    with pytest.raises(TooDear, match="processor time"), bounded("an input", memory=2**30, seconds=0.01):
        compute(0.02)
    with pytest.raises(TooDear, match="peak of memory"), bounded("an input", memory=2**20, seconds=60.0):
        take_memory(2**26)


@pytest.mark.parametrize("number", range(12))
async def test_neighbours_go_on_though_several_records_are_damaged(number: int) -> None:
    assert await damage_and_use(number) == ""

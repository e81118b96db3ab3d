"""Batches through both clients on a real service."""

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest
from embedded_queue import Queue, own_settings

from sagittal.client import AsyncClient, BatchItem, BatchResult, Client, Options, Retry
from sagittal.client.batches import ReadItem, Window, read_item
from sagittal.client.errors import AlreadyExists, InvalidRequest, NotFound
from sagittal.client.models import parse_model
from sagittal.client.read_ahead import ReadAhead
from sagittal.core.jobs import JobState
from sagittal.v1 import batch_service_pb2 as service_pb
from sagittal.v1 import explanation_pb2

from .support import Run, Stack, eventually, explain_readably, lamp, picture, quick_settings, running


def images(*numbers: int) -> Iterator[BatchItem]:
    """Items whose images differ, so that none shares the answer of another."""
    for number in numbers:
        yield BatchItem(key=f"item-{number}", image=picture(8 + number).encoded)


def read_lamp(item: BatchItem) -> ReadItem:
    return read_item(parse_model(lamp()), 2**20, item)


def keys(results: list[BatchResult], state: str = "completed") -> list[str]:
    return sorted(each.key for each in results if each.state == state)


async def with_client(stack: Stack, use: Callable[[Client], object]) -> object:
    """Uses a synchronous client in a thread."""

    def work() -> object:
        with Client(f"127.0.0.1:{stack.port}", options=Options(retry=Retry(stream_seconds=600))) as client:
            return use(client)

    return await asyncio.to_thread(work)


async def test_a_batch_runs_over_the_asyncio_client_and_again_without_work(stack) -> None:
    async with AsyncClient(f"127.0.0.1:{stack.port}") as client, stack.worker(explain_readably).at_work() as worker:
        await client.batches.create("night", model="lamp", expected_items=3)
        first = [each async for each in client.batches.run("night", images(0, 1, 2))]
        again = [each async for each in client.batches.run("night", images(0, 1, 2))]
        found = await client.batches.get("night")
    assert keys(first) == keys(again) == ["item-0", "item-1", "item-2"]
    assert len(worker.leases) == 3
    assert {each.explanation.completed.evaluations for each in first} == {7}
    assert (found.state, found.counts.completed, found.spent.evaluations) == ("completed", 3, 21)


async def test_a_batch_runs_over_the_synchronous_client(stack) -> None:
    def use(client: Client) -> list[BatchResult]:
        client.batches.create("night", model="lamp")
        assert [each.name for each in client.batches.list()] == ["night"]
        own = {"target": "on", "labels": {"split": "test"}, "method": "glow"}
        extra = BatchItem(key="own", image=picture().encoded, options=own)
        return list(client.batches.run("night", [*images(*range(40)), extra], in_flight=4))

    requests = []

    def keep(run: Run) -> None:
        requests.append(explanation_pb2.ExplanationSpec.FromString(run.lease.request))
        explain_readably(run)

    async with stack.worker(keep).at_work():
        results = await with_client(stack, use)
    assert len(keys(results)) == 41
    own = [each for each in requests if each.labels]
    assert [(each.target.index, each.method.custom.name) for each in own] == [(1, "glow")]


async def test_an_image_that_cannot_be_read_fails_its_item_and_a_retry_runs_it(stack, tmp_path) -> None:
    path = tmp_path / "late.png"

    def use(client: Client) -> tuple[object, ...]:
        client.batches.create("night", model="lamp")
        late = [BatchItem(key="late", image=path), *images(0)]
        first = list(client.batches.run("night", late))
        failed = list(client.batches.items("night", states="failed"))
        path.write_bytes(picture().encoded)
        ignored = list(client.batches.run("night", late))
        assert client.batches.retry("night") == 1
        return first, failed, ignored, list(client.batches.run("night", late))

    async with stack.worker(explain_readably).at_work():
        first, failed, ignored, last = await with_client(stack, use)
    assert keys(first, "failed") == keys(failed, "failed") == keys(ignored, "failed") == ["late"]
    assert "late.png" in failed[0].error.message
    assert keys(last) == ["item-0", "late"]


async def test_a_run_survives_the_service_and_computes_nothing_twice(stack) -> None:
    other = Queue(stack.queue.settings)
    results: list[BatchResult] = []
    started = threading.Event()

    def use(client: Client) -> None:
        client.batches.create("night", model="lamp")
        for each in client.batches.run("night", images(*range(30)), in_flight=8):
            results.append(each)
            started.set()

    running_batch = asyncio.create_task(with_client(stack, use))
    async with stack.worker(explain_readably).at_work() as worker:
        await eventually(started.is_set)
        await stack.service.stop()
        settings = quick_settings(listen=(f"127.0.0.1:{stack.port}",))
        async with running(settings, other, stack.registry):
            await running_batch
    assert len(keys(results)) == len({each.key for each in results}) == 30
    assert len(worker.leases) == 30


async def test_a_batch_that_redis_lost_is_reported_and_can_be_created_again(stack) -> None:
    def use(client: Client) -> None:
        with pytest.raises(NotFound, match="no batch"):
            list(client.batches.run("night", images(0)))
        client.batches.create("night", model="lamp")
        with pytest.raises(AlreadyExists):
            client.batches.create("night", model="lamp", seed=7)
        with pytest.raises(InvalidRequest, match="lane"):
            client.batches.create("night", model="lamp", lane="interactive")
        client.batches.pause("night")
        assert client.batches.resume("night").state == "open"
        assert client.batches.cancel("night").state == "cancelled"
        client.batches.delete("night")

    await with_client(stack, use)


async def test_a_failed_job_is_an_error_in_its_result(stack) -> None:
    async with AsyncClient(f"127.0.0.1:{stack.port}") as client:
        await client.batches.create("night", model="lamp")
        breaking = stack.worker(lambda run: run.settle(JobState.FAILED, failed={"code": 13, "message": "broken"}))
        async with breaking.at_work():
            (found,) = [each async for each in client.batches.run("night", images(0))]
    assert (found.state, found.error.message, found.explanation) == ("failed", "broken", None)


async def test_a_deleted_result_is_not_computed_again_unless_that_is_asked() -> None:
    queue = Queue(own_settings(retention_seconds=0.01, cache_seconds=0))
    async with (
        running(queue=queue) as stack,
        AsyncClient(f"127.0.0.1:{stack.port}") as client,
        stack.worker(explain_readably).at_work(),
    ):
        await client.batches.create("night", model="lamp")
        [each async for each in client.batches.run("night", images(0), renew=False)]

        async def forgotten() -> bool:
            return [each.job_id async for each in client.batches.items("night")] == [""]

        await eventually(forgotten)
        (kept,) = [each async for each in client.batches.run("night", images(0), renew=False)]
    assert (kept.state, kept.explanation) == ("completed", None)


def test_images_are_read_in_parallel_and_a_bounded_number_ahead() -> None:
    together, most, peak, lock = threading.Barrier(8), 0, 0, threading.Lock()

    def read() -> bytes:
        nonlocal most, peak
        with lock:
            most += 1
            peak = max(peak, most)
        together.wait(timeout=120)  # returns only if eight threads read at once
        with lock:
            most -= 1
        return picture().encoded

    taken = 0

    def items() -> Iterator[BatchItem]:
        nonlocal taken
        for number in range(64):
            taken += 1
            yield BatchItem(key=str(number), image=read)

    source = ReadAhead(items(), read_lamp, readers=8, ahead=16)
    first = source.take()
    assert taken <= 16
    found = [first, *iter(source.take, None)]
    source.close()
    assert [each.request.key for each in found] == [str(number) for number in range(64)]
    assert peak == 8


def test_items_before_one_that_cannot_be_read_are_sent() -> None:
    def broken() -> Iterator[BatchItem]:
        yield from images(*range(3))
        raise ValueError("line 4 is no JSON")

    source = ReadAhead(broken(), read_lamp, readers=2, ahead=16)
    window = Window("night", source, in_flight=100, max_bytes=2**20, renew=False)
    sent = list(iter(window.next_request, None))
    source.close()
    assert [each.key for each in sent] == ["item-0", "item-1", "item-2"]
    assert str(window.failure) == "line 4 is no JSON"
    assert not window.done, "their results are awaited"


def test_a_window_is_bounded_in_bytes_and_sends_again_what_has_no_result() -> None:
    source = ReadAhead(images(*range(10)), read_lamp, readers=2, ahead=4)
    window = Window("night", source, in_flight=100, max_bytes=1, renew=False)
    sent = window.next_request()
    assert (sent.batch, sent.key, window.has_room) == ("night", "item-0", False)
    window.reopen()
    assert window.next_request() is sent
    source.close()


def test_a_sender_is_woken_for_several_items_and_when_none_is_left() -> None:
    source = ReadAhead(images(*range(17)), read_lamp, readers=2, ahead=4)
    window = Window("night", source, in_flight=16, max_bytes=2**20, renew=False)

    def end(key: str) -> bool:
        item = service_pb.BatchItem(key=key, state=service_pb.BATCH_ITEM_STATE_COMPLETED)
        assert window.admit(service_pb.AddBatchItemsResponse(item=item)) is not None
        return window.is_low

    sent = [window.next_request().key for _ in range(16)]
    assert (window.has_room, window.is_low) == (False, False)
    assert [end(key) for key in sent[:2]] == [False, True], "an eighth of the window is free"
    window.admit(service_pb.AddBatchItemsResponse(lost=sent[2]))
    assert window.is_low, "an item is to be sent again"
    assert [window.next_request().key, window.next_request().key] == [sent[2], "item-16"]
    assert window.next_request() is None
    assert [end(key) for key in (*sent[2:], "item-16")] == [False] * 14 + [True], "nothing is left to send"
    source.close()

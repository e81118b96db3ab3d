"""Batches on a real service: items, their identity, and what becomes of them in every order of events."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterable

import grpc
import pytest
from e2e_stack import free_port
from embedded_queue import Queue, Registry, own_settings

from sagittal.core.jobs import JobState
from sagittal.process.embedded import EmbeddedValkey
from sagittal.v1 import batch_service_pb2 as pb
from sagittal.v1 import batch_service_pb2_grpc, explanation_pb2, tensor_pb2

from .support import Run, Stack, eventually, explain_at_once, picture, running

IN_FLIGHT, COMPLETED = pb.BATCH_ITEM_STATE_IN_FLIGHT, pb.BATCH_ITEM_STATE_COMPLETED
FAILED, CANCELLED = pb.BATCH_ITEM_STATE_FAILED, pb.BATCH_ITEM_STATE_CANCELLED


def stub(stack: Stack) -> batch_service_pb2_grpc.BatchServiceAsyncStub:
    return batch_service_pb2_grpc.BatchServiceStub(stack.channel)


async def create(stack: Stack, name: str = "night", expected: int = 0, **common: object) -> pb.CreateBatchResponse:
    spec = explanation_pb2.ExplanationSpec(**{"model": "lamp"} | common)
    return await stub(stack).CreateBatch(pb.CreateBatchRequest(name=name, spec=spec, expected_items=expected))


async def batch(stack: Stack, name: str = "night") -> pb.Batch:
    return (await stub(stack).GetBatch(pb.GetBatchRequest(name=name))).batch


def item(
    key: str, *, batch: str = "night", renew: bool = False, width: int = 8, **own: object
) -> pb.AddBatchItemsRequest:
    spec = explanation_pb2.ExplanationSpec(**{"image": picture(width)} | own)
    return pb.AddBatchItemsRequest(batch=batch, key=key, spec=spec, renew=renew)


def items(*numbers: int, **options: object) -> list[pb.AddBatchItemsRequest]:
    """Items whose images differ, so that none shares the answer of another."""
    return [item(f"item-{number}", width=8 + number, **options) for number in numbers]


async def add(stack: Stack, requests: Iterable[pb.AddBatchItemsRequest]) -> list[pb.AddBatchItemsResponse]:
    return [response async for response in stub(stack).AddBatchItems(iter(requests))]


def ended(responses: Iterable[pb.AddBatchItemsResponse]) -> dict[str, pb.BatchItem]:
    found = [each.item for each in responses if each.HasField("item") and each.item.state != IN_FLIGHT]
    assert len({each.key for each in found}) == len(found), "an item ended twice"
    return {each.key: each for each in found}


def break_down(run: Run) -> None:
    """A script: the job fails."""
    run.settle(JobState.FAILED, failed={"code": 13, "message": "broken"})


async def failed_call(call: object) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value


async def test_items_of_a_batch_are_jobs_of_its_lane_and_each_returns_its_result(stack) -> None:
    await create(stack, expected=3)
    async with stack.worker().at_work() as worker:
        found = ended(await add(stack, items(0, 1, 2)))
    assert {key: each.state for key, each in found.items()} == {f"item-{n}": COMPLETED for n in range(3)}
    for each in found.values():
        kinds = [event.WhichOneof("event") for event in each.explanation.events]
        assert kinds == ["accepted", "started", "prediction", "mask", "completed"]  # no progress, no partial mask
    assert {lease.job.lane.value for lease in worker.leases} == {"batch"}
    assert {lease.job.deadline for lease in worker.leases} == {None}  # an item may wait for any time
    seen = await batch(stack)
    assert (seen.state, seen.counts.completed, seen.counts.in_flight) == (pb.BATCH_STATE_COMPLETED, 3, 0)
    assert (seen.spent.items, seen.spent.evaluations) == (3, 21)


async def test_sending_an_item_again_does_nothing_but_return_its_result(stack) -> None:
    await create(stack)
    async with stack.worker().at_work() as worker:
        first = ended(await add(stack, items(0, 1)))
        again = ended(await add(stack, items(0, 1, 2)))
    assert len(worker.leases) == 3
    assert {key: again[key].job_id for key in first} == {key: each.job_id for key, each in first.items()}
    assert again["item-0"].explanation.events[-1].HasField("completed")
    assert (await batch(stack)).counts.completed == 3


async def test_items_override_target_boxes_baseline_and_method_of_their_batch(stack) -> None:
    box = tensor_pb2.Box(left=0, top=0, right=4, bottom=4)
    await create(
        stack,
        target=explanation_pb2.Target(index=0),
        metrics=explanation_pb2.Metrics(boxes=[box, box], skip_curves=True),
        labels={"run": "night"},
    )
    own = item(
        "own",
        target=explanation_pb2.Target(label="on"),
        baseline=explanation_pb2.Baseline(kind=explanation_pb2.BASELINE_KIND_BLACK),
        metrics=explanation_pb2.Metrics(boxes=[box]),
        method={"igos_plus_plus": {"mask_size": 14}},
        labels={"split": "test"},
    )
    specs = {}

    def keep(run: Run) -> None:
        whole = explanation_pb2.ExplanationSpec.FromString(run.lease.request)
        specs[whole.labels.get("split", "")] = whole
        explain_at_once(run)

    async with stack.worker(keep).at_work():
        await add(stack, [*items(0), own])
    common, other = specs[""], specs["test"]
    assert (common.target.index, len(common.metrics.boxes), dict(common.labels)) == (0, 2, {"run": "night"})
    assert (other.target.index, len(other.metrics.boxes)) == (1, 1)
    assert other.baseline.kind == explanation_pb2.BASELINE_KIND_BLACK
    assert other.method.igos_plus_plus.mask_size == 14
    assert dict(other.labels) == {"run": "night", "split": "test"}


async def test_an_item_that_cannot_be_explained_fails_alone_and_is_listed_with_its_reason(stack) -> None:
    await create(stack)
    bad = [
        item("no-image", image=None),
        item("no-class", target=explanation_pb2.Target(index=7)),
        pb.AddBatchItemsRequest(batch="night", key="gone", unreadable=pb.UnreadableItem(message="no such file: a.png")),
    ]
    async with stack.worker().at_work() as worker:
        found = ended(await add(stack, [*bad, *items(0)]))
    assert {key for key, each in found.items() if each.state == FAILED} == {"no-image", "no-class", "gone"}
    assert "spec.target.index is 7" in found["no-class"].failure.message
    assert len(worker.leases) == 1
    listed = await stub(stack).ListBatchItems(pb.ListBatchItemsRequest(name="night", states=[FAILED]))
    assert {each.key: each.failure.message for each in listed.items}["gone"] == "no such file: a.png"
    assert (await batch(stack)).counts.failed == 3


async def test_failed_items_run_again_after_a_retry_and_not_before(stack) -> None:
    await create(stack)
    async with stack.worker(break_down).at_work() as worker:
        assert ended(await add(stack, items(0)))["item-0"].failure.message == "broken"
        assert ended(await add(stack, items(0)))["item-0"].failure.message == "broken"
        assert len(worker.leases) == 1
        retried = await stub(stack).RetryBatchItems(pb.RetryBatchItemsRequest(name="night"))
        assert (retried.items, (await batch(stack)).counts.failed) == (1, 0)
        worker.script = explain_at_once
        assert ended(await add(stack, items(0)))["item-0"].state == COMPLETED


async def test_a_full_queue_slows_a_batch_and_fails_no_item() -> None:
    settings = own_settings(
        max_queued={"interactive": 1, "batch": 2}, max_queued_per_tenant={"batch": 2}, overload_retry_after=0.05
    )
    async with running(queue=Queue(settings)) as stack:
        await create(stack)
        responses = aiter(stub(stack).AddBatchItems(iter(items(*range(8)))))
        first = [await anext(responses)]
        while not first[-1].waiting.reason:
            first.append(await anext(responses))
        assert first[-1].waiting.reason == "QUEUE_FULL"
        assert (await batch(stack)).counts.in_flight == 2
        async with stack.worker().at_work():
            found = ended([*first, *[each async for each in responses]])
        assert stack.metric("sagittal_tenant_refusals_total", tenant="default") == 0
    assert {each.state for each in found.values()} == {COMPLETED}
    assert len(found) == 8


async def test_a_paused_batch_queues_nothing_until_it_is_resumed(stack) -> None:
    await create(stack)
    paused = await stub(stack).PauseBatch(pb.PauseBatchRequest(name="night"))
    assert paused.batch.state == pb.BATCH_STATE_PAUSED
    call = aiter(stub(stack).AddBatchItems(iter(items(0, 1))))
    async with stack.worker().at_work() as worker:
        told = await anext(call)
        assert told.waiting.reason == "BATCH_PAUSED"
        assert not worker.leases
        await stub(stack).ResumeBatch(pb.ResumeBatchRequest(name="night"))
        assert len(ended([each async for each in call])) == 2


async def test_a_cancelled_batch_ends_its_jobs_and_takes_no_items(stack) -> None:
    await create(stack)
    adding = asyncio.create_task(add(stack, items(0, 1)))
    await eventually(lambda: _in_flight(stack, 2))
    cancelled = await stub(stack).CancelBatch(pb.CancelBatchRequest(name="night"))
    assert {each.state for each in ended(await adding).values()} == {CANCELLED}
    assert cancelled.batch.state == pb.BATCH_STATE_CANCELLED
    error = await failed_call(_collect(stub(stack).AddBatchItems(iter(items(5)))))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    resumed = await stub(stack).ResumeBatch(pb.ResumeBatchRequest(name="night"))
    assert resumed.batch.state == pb.BATCH_STATE_CANCELLED


async def test_a_dropped_call_affects_no_item_and_the_next_one_gets_the_results(stack) -> None:
    await create(stack)
    call = stub(stack).AddBatchItems(_endless(items(0, 1)))
    await eventually(lambda: _in_flight(stack, 2))
    call.cancel()
    async with stack.worker().at_work() as worker:
        await eventually(lambda: _completed(stack, 2))
        assert len(ended(await add(stack, items(0, 1)))) == 2
        assert len(worker.leases) == 2


async def test_items_survive_a_kill_of_redis_and_run_once(tmp_path) -> None:
    with EmbeddedValkey(tmp_path, port=free_port(), persist=True) as server:
        settings = own_settings(url=server.url, operation_timeout=60)
        async with running(queue=Queue(settings), registry=Registry(settings)) as stack:
            await create(stack)
            call = stub(stack).AddBatchItems(_endless(items(0, 1)))
            await eventually(lambda: _in_flight(stack, 2))
            os.kill(server.pid, signal.SIGKILL)
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            call.cancel()
            async with stack.worker().at_work() as worker:
                found = ended(await add(stack, items(0, 1)))
            assert {each.state for each in found.values()} == {COMPLETED}
            assert len(worker.leases) == 2
            assert (await batch(stack)).counts.completed == 2


async def test_two_calls_with_the_same_items_run_each_once(stack) -> None:
    await create(stack)
    both = asyncio.gather(add(stack, items(*range(6))), add(stack, items(*range(6))))
    async with stack.worker().at_work() as worker:
        first, second = await both
    assert len(worker.leases) == 6
    assert len(ended(first)) == len(ended(second)) == 6


async def test_a_result_that_is_deleted_is_computed_again_only_if_that_is_asked() -> None:
    async with running(queue=Queue(own_settings(retention_seconds=0.01, cache_seconds=0))) as stack:
        await create(stack)
        async with stack.worker().at_work() as worker:
            await stub(stack).AddBatchItems(iter(items(0))).read()
            await eventually(lambda: _forgotten(stack))
            again = ended(await add(stack, items(0)))["item-0"]
            assert (again.state, again.job_id, again.HasField("explanation")) == (COMPLETED, "", False)
            assert len(worker.leases) == 1
            call = stub(stack).AddBatchItems(iter(items(0, renew=True)))
            await call.read()
            await eventually(lambda: len(worker.leases) == 2)


async def test_batches_are_listed_and_one_with_another_specification_is_refused(stack) -> None:
    assert (await create(stack, "b", expected=5)).created
    await create(stack, "a")
    again = await create(stack, "b")
    assert (again.created, again.batch.expected_items) == (False, 5)
    error = await failed_call(create(stack, "b", seed=7))
    assert error.code() is grpc.StatusCode.ALREADY_EXISTS
    first = await stub(stack).ListBatches(pb.ListBatchesRequest(page_size=1))
    rest = await stub(stack).ListBatches(pb.ListBatchesRequest(page_token=first.next_page_token))
    assert [each.name for page in (first, rest) for each in page.batches] == ["a", "b"]
    await stub(stack).DeleteBatch(pb.DeleteBatchRequest(name="a"))
    gone = await failed_call(stub(stack).GetBatch(pb.GetBatchRequest(name="a")))
    assert gone.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("name", "common", "field"),
    [
        ("a b", {}, "name"),
        ("a", {"image": picture()}, "spec.image"),
        ("a", {"request_id": "x"}, "spec.request_id"),
        ("a", {"lane": explanation_pb2.LANE_INTERACTIVE}, "spec.lane"),
        ("a", {"target": explanation_pb2.Target(index=9)}, "spec.target.index"),
    ],
)
async def test_a_wrong_batch_is_refused_by_its_field(stack, name, common, field) -> None:
    error = await failed_call(create(stack, name, **common))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in (error.details() or "")


async def test_a_cancellation_of_one_job_cancels_its_item(stack) -> None:
    await create(stack)
    call = stub(stack).AddBatchItems(iter(items(0)))
    job_id = (await call.read()).item.job_id
    await stack.queue.jobs.cancel(job_id, "why")
    assert (await call.read()).item.state == CANCELLED


async def test_a_batch_is_deleted_after_its_retention() -> None:
    async with running(queue=Queue(own_settings(batch_retention_seconds=0.01))) as stack:
        await create(stack)
        await eventually(lambda: _gone(stack))


async def test_items_past_the_tenants_limit_wait(stack) -> None:
    async with running(queue=Queue(own_settings(max_batch_items=1, overload_retry_after=0.05))) as small:
        await create(small)
        async with small.worker().at_work():
            await add(small, items(0))
            call = stub(small).AddBatchItems(iter(items(1)))
            assert "max_batch_items" in (await call.read()).waiting.message
            call.cancel()


async def _in_flight(stack: Stack, number: int) -> bool:
    return (await batch(stack)).counts.in_flight == number


async def _completed(stack: Stack, number: int) -> bool:
    return (await batch(stack)).counts.completed == number


async def _forgotten(stack: Stack) -> bool:
    listed = await stub(stack).ListBatchItems(pb.ListBatchItemsRequest(name="night"))
    return [each.job_id for each in listed.items if each.state == COMPLETED] == [""]


async def _gone(stack: Stack) -> bool:
    return not (await stub(stack).ListBatches(pb.ListBatchesRequest())).batches


async def _collect(call: AsyncIterator[pb.AddBatchItemsResponse]) -> list[pb.AddBatchItemsResponse]:
    return [each async for each in call]


async def _endless(requests: Iterable[pb.AddBatchItemsRequest]) -> AsyncIterator[pb.AddBatchItemsRequest]:
    for each in requests:
        yield each
    await asyncio.Event().wait()

"""Lists that a dashboard filters, counts and watches without polling."""

import asyncio
import contextlib
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import timestamp_pb2

from sagittal.client import AsyncClient, InvalidRequest
from sagittal.v1 import explanation_pb2
from sagittal.v1 import explanation_service_pb2 as api

from .support import Stack, quick_settings, running, spec
from .test_operation import TOKENS, bearer

QUEUED, COMPLETED = explanation_pb2.JOB_STATE_QUEUED, explanation_pb2.JOB_STATE_COMPLETED


async def submit(stack: Stack, **changes: Any) -> explanation_pb2.Explanation:
    request = api.SubmitExplanationRequest(spec=spec(**changes))
    return (await stack.explanations.SubmitExplanation(request)).explanation


async def listed(stack: Stack, **conditions: Any) -> list[str]:
    request = api.ListExplanationsRequest(filter=api.JobFilter(**conditions))
    return [job.job_id for job in (await stack.explanations.ListExplanations(request)).explanations]


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value


async def test_jobs_are_found_by_their_labels(stack: Stack) -> None:
    night = await submit(stack, seed=1, labels={"run": "night", "split/a": "ä & ö = 1"})
    day = await submit(stack, seed=2, labels={"run": "day"})
    plain = await submit(stack, seed=3)
    assert dict(night.labels) == {"run": "night", "split/a": "ä & ö = 1"}
    assert await listed(stack, labels={"run": "night"}) == [night.job_id]
    assert await listed(stack, labels={"run": "night", "split/a": "ä & ö = 1"}) == [night.job_id]
    assert await listed(stack, labels={"run": "nigh"}) == []
    assert await listed(stack) == [plain.job_id, day.job_id, night.job_id]


async def test_labels_are_no_part_of_what_is_asked(stack: Stack) -> None:
    async with stack.worker().at_work():
        first = await submit(stack, labels={"run": "1"})
        stream = stack.explanations.WatchExplanation(api.WatchExplanationRequest(job_id=first.job_id))
        assert [answer async for answer in stream]
        second = await submit(stack, labels={"run": "2"})
    assert second.state == COMPLETED, "the stored answer was given"
    assert dict(second.labels) == {"run": "2"}


async def test_jobs_are_found_by_method_request_id_and_time(stack: Stack) -> None:
    first = await submit(stack, seed=1, request_id="mine")
    second = await submit(stack, seed=2)
    assert await listed(stack, request_id="mine") == [first.job_id]
    assert await listed(stack, method="igos++") == [second.job_id, first.job_id]
    assert await listed(stack, method="rise") == []
    later = second.create_time
    assert await listed(stack, create_after=later) == [second.job_id]
    assert await listed(stack, create_before=later) == [first.job_id]
    assert await listed(stack, create_after=first.create_time, create_before=later) == [first.job_id]


async def test_wrong_conditions_are_named(stack: Stack) -> None:
    for conditions, field in (
        ({"states": [99]}, "filter.states[0]"),
        ({"create_after": timestamp_pb2.Timestamp(seconds=-5)}, "filter.create_after"),
    ):
        request = api.CountExplanationsRequest(filter=api.JobFilter(**conditions))
        error = await refused(stack.explanations.CountExplanations(request))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert field.removeprefix("filter.") in error.details()
    twice = api.ListExplanationsRequest(model="lamp", filter=api.JobFilter(model="lamp"))
    assert "given twice" in (await refused(stack.explanations.ListExplanations(twice))).details()
    many = {f"key{number}": "v" for number in range(17)}
    for labels in ({"white space": "1"}, {"k": "v" * 129}, many):
        assert (await refused(submit(stack, labels=labels))).code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_jobs_are_counted_by_state(stack: Stack) -> None:
    for seed in range(3):
        await submit(stack, seed=seed, labels={"run": "a" if seed else "b"})
    cancelled = await submit(stack, seed=9)
    await stack.explanations.CancelExplanation(api.CancelExplanationRequest(job_id=cancelled.job_id))
    answer = await stack.explanations.CountExplanations(api.CountExplanationsRequest())
    counts = {each.state: each.count for each in answer.counts}
    assert counts == {QUEUED: 3, explanation_pb2.JOB_STATE_CANCELLED: 1}
    assert not answer.next_page_token
    labelled = api.CountExplanationsRequest(filter=api.JobFilter(labels={"run": "a"}))
    answer = await stack.explanations.CountExplanations(labelled)
    assert [each.count for each in answer.counts] == [2]


@asynccontextmanager
async def watching(stack: Stack, options: Any = None, **conditions: Any):
    """Gives the changes, after `listening`."""
    request = api.WatchJobsRequest(filter=api.JobFilter(**conditions))
    call = stack.explanations.WatchJobs(request, **(options or {}))
    async with asyncio.timeout(60):
        assert (await call.read()).WhichOneof("change") == "listening"
        yield call
    call.cancel()


async def until(call: Any, holds: Any) -> Any:
    """Reads changes until one holds."""
    while True:
        change = await call.read()
        if holds(change):
            return change


async def test_changes_are_watched_from_submission_to_deletion(stack: Stack) -> None:
    async with watching(stack) as changes:
        job_id = (await submit(stack)).job_id
        assert (await changes.read()).changed.state == QUEUED
        async with stack.worker().at_work():
            done = await until(changes, lambda change: change.changed.state == COMPLETED)
        assert done.changed.job_id == job_id
        await stack.explanations.DeleteExplanation(api.DeleteExplanationRequest(job_id=job_id))
        assert (await until(changes, lambda change: change.gone)).gone == job_id


async def test_a_filter_holds_for_changes(stack: Stack) -> None:
    async with watching(stack, labels={"run": "b"}) as changes:
        await submit(stack, seed=1, labels={"run": "a"})
        wanted = await submit(stack, seed=2, labels={"run": "b"})
        assert (await changes.read()).changed.job_id == wanted.job_id


async def test_a_tenant_sees_its_own_changes_alone() -> None:
    async with running(quick_settings(tokens=TOKENS)) as stack, watching(stack, bearer("bob")) as changes:
        await stack.explanations.SubmitExplanation(api.SubmitExplanationRequest(spec=spec()), **bearer("ann"))
        own = api.SubmitExplanationRequest(spec=spec())
        job = (await stack.explanations.SubmitExplanation(own, **bearer("bob"))).explanation
        assert (await changes.read()).changed.job_id == job.job_id


async def test_watching_too_often_is_refused(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagittal.server.job_lists.MOST_WATCHED", 1)
    async with watching(stack):
        call = stack.explanations.WatchJobs(api.WatchJobsRequest())
        error = await refused(call.read())
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_stream_that_may_have_missed_a_change_ends_and_says_so(stack: Stack) -> None:
    async with watching(stack) as changes:
        stack.queue.jobs._notifications._wake_all()  # as after a lost connection
        error = await refused(changes.read())
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert "list again" in error.details()


async def test_the_sdk_lists_counts_and_watches_by_labels(stack: Stack) -> None:
    async with AsyncClient(f"127.0.0.1:{stack.port}") as client, asyncio.timeout(60):
        async with contextlib.aclosing(client.watch_jobs(labels={"run": "b"})) as changes:
            assert (await anext(changes)).kind == "listening"
            job = await client.submit(np.zeros((8, 8, 3), np.uint8), model="lamp", labels={"run": "b"})
            change = await anext(changes)
        assert (change.kind, change.job_id, change.job.labels) == ("changed", job.job_id, {"run": "b"})
        now = datetime.now(UTC)
        found = [each.job_id async for each in client.list(labels={"run": "b"}, before=now + timedelta(hours=1))]
        assert found == [job.job_id]
        assert not [each async for each in client.list(after=now + timedelta(hours=1))]
        assert await client.count(labels={"run": "b"}) == {"queued": 1}
        with pytest.raises(InvalidRequest, match="colour"):
            await client.count(colour="red")
        with pytest.raises(InvalidRequest) as wrong:
            await client.count(after="yesterday")
        assert wrong.value.field == "after"

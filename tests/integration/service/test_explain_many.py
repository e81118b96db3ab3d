import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import pytest

from sagittal.core.errors import Unavailable
from sagittal.core.jobs import JobState
from sagittal.core.status import from_status
from sagittal.v1 import explanation_service_pb2 as api

from .support import Event, Run, Stack, eventually, explain_at_once, quick_settings, running, spec, wait_for_cancel


def requests(count: int) -> list[api.ExplainManyRequest]:
    return [request(f"r{index}", seed=index) for index in range(count)]


def request(request_id: str, **fields: Any) -> api.ExplainManyRequest:
    return api.ExplainManyRequest(spec=spec(request_id=request_id, **fields))


async def explain_many(stack: Stack, asked: Iterable[api.ExplainManyRequest]) -> list[Event]:
    call = stack.explanations.ExplainMany(iter(asked))
    return [response.event async for response in call]


def of(events: list[Event], request_id: str) -> list[Event]:
    return [event for event in events if event.request_id == request_id]


async def test_every_request_is_answered_in_full(stack: Stack) -> None:
    async with stack.worker().at_work():
        events = await explain_many(stack, requests(100))
    for index in range(100):
        mine = of(events, f"r{index}")
        assert [event.sequence for event in mine] == list(range(1, 8))
        assert mine[-1].HasField("completed")


async def test_no_request_is_no_event(stack: Stack) -> None:
    assert await explain_many(stack, []) == []


async def test_a_refused_request_fails_alone(stack: Stack) -> None:
    async with stack.worker().at_work():
        events = await explain_many(stack, [request("bad", model="nosuch"), request("good")])
    (bad,) = of(events, "bad")
    assert bad.job_id == ""
    assert from_status(bad.failed).reason == "UNKNOWN_MODEL"
    assert of(events, "good")[-1].HasField("completed")


async def test_every_request_needs_an_id(stack: Stack) -> None:
    (event,) = await explain_many(stack, [request("")])
    assert from_status(event.failed).field == "spec.request_id"


async def test_two_requests_in_flight_need_two_ids(stack: Stack) -> None:
    def later(run: Run) -> None:
        while not any(seen):
            pass
        explain_at_once(run)

    seen: list[Event] = []
    async with stack.worker(later).at_work():
        call = stack.explanations.ExplainMany(iter([request("twin"), request("twin")]))
        seen.extend([response.event async for response in counted(call, seen)])
    kinds = [event.WhichOneof("event") for event in seen]
    assert kinds.count("failed") == 1
    assert kinds.count("completed") == 1


async def counted(call: Any, seen: list[Event]) -> AsyncIterator[Any]:
    async for response in call:
        if response.event.HasField("failed"):
            seen.append(response.event)
        else:
            yield response


async def test_answers_come_as_they_are_ready(stack: Stack) -> None:
    def later(run: Run) -> None:
        if run.lease.job.request_id == "slow":
            held.append(run)
        else:
            explain_at_once(run)
            if held:
                explain_at_once(held.pop())

    held: list[Run] = []
    async with stack.worker(later).at_work():
        events = await explain_many(stack, [request("slow", seed=1), request("fast", seed=2)])
    ends = [event.request_id for event in events if event.HasField("completed")]
    assert ends == ["fast", "slow"]


async def test_at_most_so_many_jobs_are_in_flight() -> None:
    settings = quick_settings(jobs={"max_in_flight": 3})
    async with running(settings) as stack:
        sent = 0

        async def stream() -> AsyncIterator[api.ExplainManyRequest]:
            nonlocal sent
            for one in requests(20):
                yield one
                sent += 1

        call = stack.explanations.ExplainMany(stream())
        accepted = [(await call.read()).event for _ in range(3)]
        assert [event.WhichOneof("event") for event in accepted] == ["accepted"] * 3
        assert len((await stack.queue.jobs.list(model="", states=(), limit=99, page_token=""))[0]) == 3
        call.cancel()


async def test_a_dropped_call_cancels_all_that_it_began(stack: Stack) -> None:
    async with stack.worker(wait_for_cancel).at_work():
        call = stack.explanations.ExplainMany(iter(requests(4)))
        for _ in range(4):
            await call.read()
        call.cancel()

        async def all_cancelled() -> bool:
            jobs, _ = await stack.queue.jobs.list(model="", states=(), limit=99, page_token="")
            return [job.state for job in jobs] == [JobState.CANCELLED] * 4

        while not await all_cancelled():
            await asyncio.sleep(0.01)
    assert stack.metric("sagittal_jobs_dropped_total", rpc="ExplainMany") == 4


async def test_a_request_that_cannot_be_queued_fails_alone(stack: Stack) -> None:
    async def away(*_: Any) -> Any:
        raise Unavailable("the queue cannot be reached", retry_after=1)

    stack.queue.jobs.submit = away  # type: ignore[method-assign]
    (event,) = await explain_many(stack, [request("one")])
    assert from_status(event.failed).retry_after == 1


async def test_a_queue_that_goes_away_in_between_ends_the_call_and_not_the_jobs(stack: Stack) -> None:
    async def broken(job_id: str, after_sequence: int = 0) -> AsyncIterator[Any]:
        for stored in await stack.queue.jobs.stored_events(job_id):
            yield stored
        raise Unavailable("the queue cannot be reached", retry_after=1)

    stack.queue.jobs.events = broken  # type: ignore[assignment, method-assign]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await explain_many(stack, requests(2))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    jobs, _ = await stack.queue.jobs.list(model="", states=(), limit=9, page_token="")
    assert {job.state for job in jobs} == {JobState.QUEUED}


async def test_a_pipeline_that_stops_reading_holds_the_others_back_and_nothing_is_lost(stack: Stack) -> None:
    async with stack.worker().at_work():
        call = stack.explanations.ExplainMany(iter(requests(30)))
        events = [(await call.read()).event]
        await eventually(lambda: stack.metric("sagittal_jobs_accepted_total", model="lamp", method="igos++", lane="interactive"))
        while (response := await call.read()) is not grpc.aio.EOF:
            events.append(response.event)
    assert sum(event.HasField("completed") for event in events) == 30

import threading
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import pytest
from embedded_queue import stored_events

from sagittal.core.errors import Unavailable, from_status
from sagittal.core.jobs import JobState
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
    refused = threading.Event()

    def later(run: Run) -> None:
        refused.wait(20)
        explain_at_once(run)

    ends = []
    async with stack.worker(later).at_work():
        async for response in stack.explanations.ExplainMany(iter([request("twin"), request("twin")])):
            ends.append(response.event.WhichOneof("event"))
            if response.event.HasField("failed"):
                refused.set()
    assert ends.count("failed") == 1
    assert ends[-1] == "completed"


async def test_answers_come_as_they_are_ready(stack: Stack) -> None:
    answered = threading.Event()
    waiting: dict[str, Run] = {}

    def slow_last(run: Run) -> None:
        waiting[run.lease.job.request_id] = run
        if len(waiting) == 2:
            explain_at_once(waiting["fast"])
            answered.wait(20)
            explain_at_once(waiting["slow"])

    ends = []
    async with stack.worker(slow_last).at_work():
        asked = iter([request("slow", seed=1), request("fast", seed=2)])
        async for response in stack.explanations.ExplainMany(asked):
            if response.event.HasField("completed"):
                ends.append(response.event.request_id)
                answered.set()
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
        assert len((await stack.queue.jobs.list(limit=99, page_token=""))[0]) == 3
        call.cancel()


async def test_a_dropped_call_cancels_all_that_it_began(stack: Stack) -> None:
    async with stack.worker(wait_for_cancel).at_work():
        call = stack.explanations.ExplainMany(iter(requests(4)))
        for _ in range(4):
            await call.read()
        call.cancel()

        async def all_cancelled() -> bool:
            jobs, _ = await stack.queue.jobs.list(limit=99, page_token="")
            return [job.state for job in jobs] == [JobState.CANCELLED] * 4

        await eventually(all_cancelled)
    assert stack.metric("sagittal_jobs_dropped_total", rpc="ExplainMany") == 4


async def test_a_request_that_cannot_be_queued_fails_alone(stack: Stack) -> None:
    async def away(*_: Any) -> Any:
        raise Unavailable("the queue cannot be reached", retry_after=1)

    stack.queue.jobs.submit = away  # type: ignore[method-assign]
    (event,) = await explain_many(stack, [request("one")])
    assert from_status(event.failed).retry_after == 1


async def test_a_queue_that_goes_away_in_between_ends_the_call_and_not_the_jobs(stack: Stack) -> None:
    async def broken(job_id: str, after_sequence: int = 0) -> AsyncIterator[Any]:
        for stored in await stored_events(stack.queue.jobs, job_id):
            yield stored
        raise Unavailable("the queue cannot be reached", retry_after=1)

    stack.queue.jobs.events = broken  # type: ignore[assignment, method-assign]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await explain_many(stack, requests(2))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    jobs, _ = await stack.queue.jobs.list(limit=9, page_token="")
    assert {job.state for job in jobs} == {JobState.QUEUED}


async def test_a_pipeline_that_stops_reading_holds_the_others_back_and_nothing_is_lost(stack: Stack) -> None:
    async with stack.worker().at_work():
        call = stack.explanations.ExplainMany(iter(requests(30)))
        events = [(await call.read()).event]
        await eventually(
            lambda: stack.metric("sagittal_jobs_accepted_total", model="lamp", method="igos++", lane="interactive")
        )
        while (response := await call.read()) is not grpc.aio.EOF:
            events.append(response.event)
    assert sum(event.HasField("completed") for event in events) == 30

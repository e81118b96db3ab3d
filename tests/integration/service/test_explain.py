import asyncio
from contextlib import suppress
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from sagittal.core.errors import ModelFailed, from_status, to_status
from sagittal.core.jobs import JobState
from sagittal.v1 import explanation_pb2, explanation_service_pb2_grpc, model_pb2
from sagittal.v1 import explanation_service_pb2 as api

from .support import Event, Run, Stack, eventually, picture, spec, wait_for_cancel


async def explain(stack: Stack, detach: bool = False, **fields: Any) -> list[Event]:
    call = stack.explanations.Explain(api.ExplainRequest(spec=spec(**fields), detach=detach))
    return [response.event async for response in call]


def kinds(events: Any) -> list[str]:
    return [str(event.WhichOneof("event")) for event in events]


async def state(stack: Stack, job_id: str) -> JobState:
    return (await stack.queue.jobs.get(job_id)).state


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def first(call: Any) -> Event:
    return (await call.read()).event


ALL = ["accepted", "started", "prediction", "progress", "mask", "mask", "completed"]


async def test_a_job_is_explained_from_accepted_to_completed(stack: Stack) -> None:
    async with stack.worker().at_work():
        events = await explain(stack, request_id="mine")
    assert kinds(events) == ALL
    assert [event.sequence for event in events] == list(range(1, 8))
    assert {event.request_id for event in events} == {"mine"}
    assert len({event.job_id for event in events}) == 1


async def test_accepted_says_who_is_ahead_and_how_many_workers_are_ready(stack: Stack) -> None:
    ahead = stack.explanations.Explain(api.ExplainRequest(spec=spec(seed=1)))
    assert (await first(ahead)).accepted.queue_position == 0
    behind = stack.explanations.Explain(api.ExplainRequest(spec=spec(seed=2)))
    accepted = (await first(behind)).accepted
    assert (accepted.queue_position, accepted.ready_workers) == (1, 1)


async def test_accepted_says_what_the_job_will_cost_once_such_jobs_have_ended(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_half_a_second(run: Run) -> None:
        done = explanation_pb2.Completed(evaluations=40, run_time={"nanos": 500_000_000})
        run.settle(completed=done)

    async def accepted(**changes: object) -> explanation_pb2.Accepted:
        return (await first(stack.explanations.Explain(api.ExplainRequest(spec=spec(**changes))))).accepted

    monkeypatch.setattr("sagittal.server.intake.REFRESH", 0.0)
    unknown = await accepted()
    assert (unknown.estimated_evaluations, unknown.HasField("estimated_run_time")) == (0, False)
    assert (await accepted(max_evaluations=30)).estimated_evaluations == 130  # with two curves of 50 steps
    async with stack.worker(take_half_a_second).at_work():
        await explain(stack, seed=1)
    known = await accepted(seed=2)
    assert (known.estimated_evaluations, known.estimated_run_time.ToMilliseconds()) == (40, 500)


async def test_without_a_worker_the_job_waits_and_says_so(stack: Stack) -> None:
    stack.registry.workers.withdraw("scripted")
    call = stack.explanations.Explain(api.ExplainRequest(spec=spec()))
    accepted = await first(call)
    assert accepted.accepted.ready_workers == 0
    assert await state(stack, accepted.job_id) == JobState.QUEUED


async def test_the_worker_gets_a_resolved_request_without_pictures(stack: Stack) -> None:
    worker = stack.worker()
    baseline = explanation_pb2.Baseline(kind=explanation_pb2.BASELINE_KIND_IMAGE, image=picture(4, 4))
    async with worker.at_work():
        await explain(stack, target=explanation_pb2.Target(label="ON"), baseline=baseline, seed=5)
    lease = worker.leases[0]
    asked = explanation_pb2.ExplanationSpec.FromString(lease.request)
    assert (asked.model_version, asked.target.index, asked.seed) == ("1", 1, 5)
    assert not asked.HasField("image")
    assert not asked.baseline.HasField("image")
    assert lease.images == {"image": picture().SerializeToString(), "baseline": picture(4, 4).SerializeToString()}
    assert lease.job.method == "igos++"
    assert lease.trace_context.startswith("00-")


async def test_the_callers_trace_goes_with_the_job(stack: Stack) -> None:
    worker = stack.worker()
    trace = f"00-{'ab' * 16}-{'cd' * 8}-01"
    async with worker.at_work():
        told = (("traceparent", trace), ("tracestate", "vendor=a:b"))
        call = stack.explanations.Explain(api.ExplainRequest(spec=spec()), metadata=told)
        assert [_ async for _ in call]
    assert worker.leases[0].trace_context == f"{trace} vendor=a:b"


async def test_a_failed_job_ends_with_its_error_as_an_event(stack: Stack) -> None:
    def fail(run: Run) -> None:
        run.settle(JobState.FAILED, failed=to_status(ModelFailed("the model raised ValueError")))

    async with stack.worker(fail).at_work():
        events = await explain(stack)
    assert kinds(events) == ["accepted", "failed"]
    assert isinstance(from_status(events[-1].failed), ModelFailed)


async def test_a_dropped_call_cancels_its_running_job(stack: Stack) -> None:
    async with stack.worker(wait_for_cancel).at_work():
        call = stack.explanations.Explain(api.ExplainRequest(spec=spec()))
        accepted = await first(call)
        assert (await first(call)).HasField("started")
        call.cancel()
        watch = stack.explanations.WatchExplanation(api.WatchExplanationRequest(job_id=accepted.job_id))
        last = [response.event async for response in watch][-1]
    assert last.cancelled.reason == "caller went away"


async def test_a_dropped_call_cancels_its_queued_job(stack: Stack) -> None:
    call = stack.explanations.Explain(api.ExplainRequest(spec=spec()))
    accepted = await first(call)
    call.cancel()
    await eventually_in_state(stack, accepted.job_id, JobState.CANCELLED)
    assert stack.metric("sagittal_jobs_dropped_total", rpc="Explain") == 1


async def test_a_call_past_its_deadline_cancels_its_job(stack: Stack) -> None:
    accepted = None
    for seconds in (0.5, 5.0, 50.0):  # on a busy machine, the first event may come too late
        call = stack.explanations.Explain(api.ExplainRequest(spec=spec()), timeout=seconds)
        with suppress(grpc.aio.AioRpcError):
            accepted = await first(call)
            break
    assert accepted is not None
    await eventually_in_state(stack, accepted.job_id, JobState.CANCELLED)


async def test_a_lost_connection_cancels_the_job(stack: Stack) -> None:
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{stack.port}")
    explanations = Stack(**{**vars(stack), "channel": channel}).explanations
    call = explanations.Explain(api.ExplainRequest(spec=spec()))
    accepted = await first(call)
    await channel.close()
    await eventually_in_state(stack, accepted.job_id, JobState.CANCELLED)


async def test_a_detached_job_goes_on_without_its_caller(stack: Stack) -> None:
    call = stack.explanations.Explain(api.ExplainRequest(spec=spec(), detach=True))
    accepted = await first(call)
    call.cancel()
    async with stack.worker().at_work():
        await eventually_in_state(stack, accepted.job_id, JobState.COMPLETED)


async def test_a_call_that_joins_anothers_job_does_not_cancel_it(stack: Stack) -> None:
    owner = stack.explanations.Explain(api.ExplainRequest(spec=spec(request_id="same")))
    job_id = (await first(owner)).job_id
    joined = stack.explanations.Explain(api.ExplainRequest(spec=spec(request_id="same")))
    assert (await first(joined)).job_id == job_id
    joined.cancel()
    async with stack.worker().at_work():
        while (event := await first(owner)).WhichOneof("event") not in ("completed", "cancelled"):
            pass
    assert event.HasField("completed")


async def test_a_caller_who_leaves_while_the_job_is_accepted_leaves_no_job(stack: Stack) -> None:
    submit, entered, go_on = stack.queue.jobs.submit, asyncio.Event(), asyncio.Event()

    async def slow_submit(*arguments: Any) -> Any:
        entered.set()
        await go_on.wait()
        return await submit(*arguments)

    stack.queue.jobs.submit = slow_submit  # type: ignore[method-assign]
    call = stack.explanations.Explain(api.ExplainRequest(spec=spec()))
    await entered.wait()
    call.cancel()
    await eventually(lambda: handled(stack, "Explain", "CANCELLED"))
    go_on.set()
    await eventually(lambda: stack.metric("sagittal_jobs_dropped_total", rpc="Explain"))
    jobs, _ = await stack.queue.jobs.list(limit=10, page_token="")
    assert [job.state for job in jobs] == [JobState.CANCELLED]


def handled(stack: Stack, rpc: str, code: str) -> float:
    name = f"sagittal.v1.ExplanationService/{rpc}"
    return stack.metric("sagittal_rpcs_handled_total", rpc=name, code=code)


async def eventually_in_state(stack: Stack, job_id: str, wanted: JobState) -> None:
    async def arrived() -> bool:
        return await state(stack, job_id) == wanted

    await eventually(arrived)


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"model": ""}, grpc.StatusCode.INVALID_ARGUMENT, "spec.model"),
        ({"model": "nosuch"}, grpc.StatusCode.NOT_FOUND, "spec.model"),
        ({"model_version": "9"}, grpc.StatusCode.NOT_FOUND, "spec.model_version"),
        ({"image": {"encoded": b"not a picture"}}, grpc.StatusCode.INVALID_ARGUMENT, "spec.image.encoded"),
        ({"target": {"index": 2}}, grpc.StatusCode.INVALID_ARGUMENT, "spec.target.index"),
        (
            {"method": {"igos_plus_plus": {"mask_size": 1}}},
            grpc.StatusCode.INVALID_ARGUMENT,
            "spec.method.igos_plus_plus.mask_size",
        ),
        ({"method": {"occlusion": {}}}, grpc.StatusCode.UNIMPLEMENTED, "spec.method.occlusion"),
        ({"method": {"grad_cam": {}}}, grpc.StatusCode.FAILED_PRECONDITION, "spec.method.grad_cam"),
        ({"method": {"custom": {"name": "dream"}}}, grpc.StatusCode.INVALID_ARGUMENT, "spec.method.custom.name"),
    ],
)
async def test_a_refused_request_has_its_code_its_field_and_no_job(
    stack: Stack, fields: dict[str, Any], code: grpc.StatusCode, field: str
) -> None:
    error = await refusal(stack.explanations.SubmitExplanation(api.SubmitExplanationRequest(spec=spec(**fields))))
    assert error.code() == code
    assert details(error).field == field
    jobs, _ = await stack.queue.jobs.list(limit=10, page_token="")
    assert not jobs


def details(error: grpc.aio.AioRpcError) -> Any:
    trailers = dict(error.trailing_metadata() or ())
    return from_status(status_pb2.Status.FromString(trailers["grpc-status-details-bin"]))


async def test_a_request_id_with_another_content_is_refused(stack: Stack) -> None:
    await submit(stack, request_id="one")
    again = api.SubmitExplanationRequest(spec=spec(request_id="one", seed=9))
    error = await refusal(stack.explanations.SubmitExplanation(again))
    assert error.code() == grpc.StatusCode.ALREADY_EXISTS


async def test_a_request_id_with_the_same_content_gives_the_same_job(stack: Stack) -> None:
    assert (await submit(stack, request_id="one")).job_id == (await submit(stack, request_id="one")).job_id


async def submit(stack: Stack, **fields: Any) -> explanation_pb2.Explanation:
    request = api.SubmitExplanationRequest(spec=spec(**fields))
    return (await stack.explanations.SubmitExplanation(request)).explanation


async def test_a_submitted_job_is_returned_without_events(stack: Stack) -> None:
    job = await submit(stack, request_id="k", lane=explanation_pb2.LANE_BATCH)
    assert (job.model, job.model_version, job.method, job.request_id) == ("lamp", "1", "igos++", "k")
    assert (job.state, job.lane) == (explanation_pb2.JOB_STATE_QUEUED, explanation_pb2.LANE_BATCH)
    assert job.create_time.seconds > 0
    assert not job.events


async def test_watching_goes_on_after_a_sequence_number(stack: Stack) -> None:
    job = await submit(stack)
    async with stack.worker().at_work():
        for after in (0, 1, 5, 6):
            request = api.WatchExplanationRequest(job_id=job.job_id, after_sequence=after)
            events = [response.event async for response in stack.explanations.WatchExplanation(request)]
            # a job that has ended may have let go of its progress and its masks on the way
            assert [event.sequence for event in events] == sorted({event.sequence for event in events})
            assert all(event.sequence > after for event in events)
            assert events[-1].HasField("completed")


async def test_dropping_a_watch_leaves_the_job_alone(stack: Stack) -> None:
    job = await submit(stack)
    watch = stack.explanations.WatchExplanation(api.WatchExplanationRequest(job_id=job.job_id))
    await first(watch)
    watch.cancel()
    await eventually(lambda: handled(stack, "WatchExplanation", "CANCELLED"))
    assert await state(stack, job.job_id) == JobState.QUEUED


async def test_a_running_job_shows_all_its_events_and_an_ended_one_those_that_last(stack: Stack) -> None:
    def pause(run: Run) -> None:
        run.send(progress=explanation_pb2.Progress(fraction=0.5))
        run.send(mask=explanation_pb2.Mask(final=False))
        wait_for_cancel(run)

    async def four_events() -> bool:
        return len((await get(stack, job.job_id)).events) == 4

    job = await submit(stack)
    async with stack.worker(pause).at_work():
        await eventually(four_events)
        running = await get(stack, job.job_id)
        assert kinds(running.events) == ["accepted", "progress", "mask", "started"]
        assert running.state == explanation_pb2.JOB_STATE_RUNNING
        await stack.explanations.CancelExplanation(api.CancelExplanationRequest(job_id=job.job_id))
        await eventually_in_state(stack, job.job_id, JobState.CANCELLED)
    ended = await get(stack, job.job_id)
    assert kinds(ended.events) == ["accepted", "started", "cancelled"]
    assert ended.state == explanation_pb2.JOB_STATE_CANCELLED
    assert ended.end_time.seconds >= ended.create_time.seconds


async def get(stack: Stack, job_id: str) -> explanation_pb2.Explanation:
    return (await stack.explanations.GetExplanation(api.GetExplanationRequest(job_id=job_id))).explanation


def write_forty_mebibytes(run: Run) -> None:
    for number in range(40):
        mask = explanation_pb2.Mask(final=True, index=number)
        mask.saliency.data = bytes(2**20)
        run.send(progress=explanation_pb2.Progress(fraction=0.5))
        run.send(mask=mask)
    run.settle(completed=explanation_pb2.Completed(evaluations=7))


async def test_a_log_larger_than_any_message_is_got_page_by_page(stack: Stack) -> None:
    job_id = (await submit(stack)).job_id
    async with stack.worker(write_forty_mebibytes).at_work():
        await eventually_in_state(stack, job_id, JobState.COMPLETED)
    request, events = api.GetExplanationRequest(job_id=job_id), []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{stack.port}") as channel:  # with the limits that gRPC has
        stub = explanation_service_pb2_grpc.ExplanationServiceStub(channel)
        while True:
            page = await stub.GetExplanation(request)
            assert page.explanation.state == explanation_pb2.JOB_STATE_COMPLETED
            events += page.explanation.events
            request.page_token = page.next_page_token
            if not request.page_token:
                break
    assert kinds(events) == ["accepted", *["mask"] * 40, "completed"]
    assert [event.mask.index for event in events[1:-1]] == list(range(40))
    assert {event.job_id for event in events} == {job_id}


async def test_a_page_has_as_many_events_as_are_asked_for(stack: Stack) -> None:
    async with stack.worker().at_work():
        job_id = (await explain(stack))[0].job_id
    tokens, events = [""], []
    while tokens[-1] or not events:
        request = api.GetExplanationRequest(job_id=job_id, page_size=2, page_token=tokens[-1])
        page = await stack.explanations.GetExplanation(request)
        assert len(page.explanation.events) <= 2
        events += page.explanation.events
        tokens.append(page.next_page_token)
    assert kinds(events) == ["accepted", "started", "prediction", "mask", "completed"]


@pytest.mark.parametrize(
    ("fields", "at_fault"),
    [
        ({"page_size": 1001}, "page_size"),
        *(({"page_token": text}, "page_token") for text in ("x", "-1", "9" * 30, "\n")),
    ],
)
async def test_a_page_that_cannot_be_is_refused(stack: Stack, fields: dict[str, Any], at_fault: str) -> None:
    job = await submit(stack)
    error = await refusal(stack.explanations.GetExplanation(api.GetExplanationRequest(job_id=job.job_id, **fields)))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert at_fault in (error.details() or "")


async def test_cancelling_a_queued_job_ends_it_now(stack: Stack) -> None:
    job = await submit(stack)
    answer = await stack.explanations.CancelExplanation(api.CancelExplanationRequest(job_id=job.job_id))
    assert answer.explanation.state == explanation_pb2.JOB_STATE_CANCELLED
    assert (await get(stack, job.job_id)).events[-1].cancelled.reason == "requested"


async def test_cancelling_an_ended_job_leaves_it_as_it_is(stack: Stack) -> None:
    async with stack.worker().at_work():
        job_id = (await explain(stack))[0].job_id
    answer = await stack.explanations.CancelExplanation(api.CancelExplanationRequest(job_id=job_id))
    assert answer.explanation.state == explanation_pb2.JOB_STATE_COMPLETED


async def test_a_deleted_job_is_gone_and_a_queued_one_cannot_be_deleted(stack: Stack) -> None:
    job = await submit(stack)
    delete = api.DeleteExplanationRequest(job_id=job.job_id)
    assert (await refusal(stack.explanations.DeleteExplanation(delete))).code() == grpc.StatusCode.FAILED_PRECONDITION
    await stack.explanations.CancelExplanation(api.CancelExplanationRequest(job_id=job.job_id))
    await stack.explanations.DeleteExplanation(delete)
    error = await refusal(stack.explanations.GetExplanation(api.GetExplanationRequest(job_id=job.job_id)))
    assert error.code() == grpc.StatusCode.NOT_FOUND


async def test_jobs_are_listed_in_pages_newest_first(stack: Stack) -> None:
    made = [(await submit(stack, seed=seed)).job_id for seed in range(3)]
    page = await stack.explanations.ListExplanations(api.ListExplanationsRequest(page_size=2))
    rest = await stack.explanations.ListExplanations(
        api.ListExplanationsRequest(page_size=2, page_token=page.next_page_token)
    )
    listed = [job.job_id for job in (*page.explanations, *rest.explanations)]
    assert listed == made[::-1]
    assert not rest.next_page_token


async def test_jobs_are_listed_by_state_and_model(stack: Stack) -> None:
    kept, gone = [(await submit(stack, seed=seed)).job_id for seed in range(2)]
    await stack.explanations.CancelExplanation(api.CancelExplanationRequest(job_id=gone))
    for request, expected in (
        (api.ListExplanationsRequest(states=[explanation_pb2.JOB_STATE_QUEUED]), [kept]),
        (api.ListExplanationsRequest(states=[explanation_pb2.JOB_STATE_CANCELLED]), [gone]),
        (api.ListExplanationsRequest(model="another"), []),
    ):
        answer = await stack.explanations.ListExplanations(request)
        assert [job.job_id for job in answer.explanations] == expected


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (api.ListExplanationsRequest(page_size=1001), "page_size"),
        (api.ListExplanationsRequest(states=[99]), "states[0]"),
    ],
)
async def test_a_list_that_makes_no_sense_is_refused(
    stack: Stack, request_: api.ListExplanationsRequest, field: str
) -> None:
    error = await refusal(stack.explanations.ListExplanations(request_))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert details(error).field == field


@pytest.mark.parametrize("job_id", ["0" * 32, "../secrets", "A" * 32, "x"])
async def test_an_unknown_job_is_not_found_by_any_rpc(stack: Stack, job_id: str) -> None:
    stub = stack.explanations
    for call in (
        stub.GetExplanation(api.GetExplanationRequest(job_id=job_id)),
        stub.CancelExplanation(api.CancelExplanationRequest(job_id=job_id)),
        stub.DeleteExplanation(api.DeleteExplanationRequest(job_id=job_id)),
        stub.WatchExplanation(api.WatchExplanationRequest(job_id=job_id)).read(),
    ):
        error = await refusal(call)
        assert error.code() == grpc.StatusCode.NOT_FOUND
        assert details(error).reason == "UNKNOWN_JOB"


async def test_a_missing_job_id_is_named(stack: Stack) -> None:
    error = await refusal(stack.explanations.GetExplanation(api.GetExplanationRequest()))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert details(error).field == "job_id"


async def test_error_details_are_googles(stack: Stack) -> None:
    error = await refusal(stack.explanations.SubmitExplanation(api.SubmitExplanationRequest(spec=spec(model=""))))
    status = status_pb2.Status.FromString(dict(error.trailing_metadata() or ())["grpc-status-details-bin"])
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details)
    assert bad.field_violations[0].description == error.details()


async def test_new_workers_are_seen_without_a_restart(stack: Stack) -> None:
    ready = model_pb2.WorkerModel(state=model_pb2.MODEL_STATE_READY)
    stack.registry.workers.announce("second", [("lamp", "1", ready)], ttl=60)
    event = await first(stack.explanations.Explain(api.ExplainRequest(spec=spec())))
    assert event.accepted.ready_workers == 2

"""Events come once and in order, whatever happens to the connection."""

import asyncio
import gc
from contextlib import nullcontext
from dataclasses import replace

import grpc
import numpy as np
import pytest
from scripted_service import event, failure

from sagittal.client import (
    Accepted,
    AsyncClient,
    Client,
    Completed,
    JobCancelled,
    Mask,
    Progress,
    SagittalError,
    Unavailable,
)

#: How a call ends whose connection, service or proxy went away.
BREAKS = [
    (grpc.StatusCode.UNAVAILABLE, "Socket closed"),
    (grpc.StatusCode.CANCELLED, "Cancelling all calls"),
    (grpc.StatusCode.UNKNOWN, "Stream removed"),
    (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"),
    (grpc.StatusCode.INTERNAL, "Internal error from Core"),
]


@pytest.mark.parametrize("page", [1, 4, 15])
async def test_a_stored_explanation_is_got_page_by_page(address, client, script, options, job_id, page: int) -> None:
    whole = client.get(job_id)
    script.page = page
    assert client.get(job_id) == whole
    async with AsyncClient(address, options=options) as other:
        assert await other.get(job_id) == whole


def test_an_explanation_holds_everything(client, picture) -> None:
    result = client.explain(picture, model="lamp")
    assert result.mask.dtype == np.float32
    assert np.array_equal(result.mask, np.linspace(0, 1, 49, dtype=np.float16).reshape(7, 7).astype(np.float32))
    assert (result.target.label, result.score, result.baseline_score) == ("lamp", 0.75, 0.25)
    assert (result.insertion, result.deletion) == (0.4375, 0.3125)
    assert (result.relative_insertion, result.relative_deletion) == (0.4375 / 0.75, 0.3125 / 0.75)
    assert [curve.kind for curve in result.curves] == ["insertion", "deletion"]
    assert result.sufficient_sets[0].patches.cells == ((1, 1), (1, 2))
    assert result.sufficient_sets[0].certificate.level == "subset-minimal"
    assert result.sufficient_sets[0].causal.without == 0.25
    assert [node.id for node in result.graph.roots] == ["300"]
    assert result.graph.edges[0].removed_patch == 9
    assert result.concepts[0].name == "eye"
    assert result.warnings[0].reason == "BASELINE_STILL_CONFIDENT"
    assert (result.evaluations, result.gradient_evaluations, result.seconds) == (20, 8, 1.5)
    assert (result.method, result.parameters, result.seed) == ("igos++", {"mask_size": 7}, 7)
    assert (result.model, result.model_version, result.model_digest) == ("lamp", "1", "d1")


def test_events_are_typed_and_in_order(client, picture) -> None:
    with client.stream(picture, model="lamp") as events:
        seen = list(events)
    assert [each.sequence for each in seen] == list(range(1, 16))
    assert isinstance(seen[0], Accepted)
    assert isinstance(seen[3], Progress)
    assert seen[3].objective == -1.5
    assert isinstance(seen[4], Mask)
    assert not seen[4].final
    assert isinstance(seen[-1], Completed)


def failed_log(log):
    return [log[0], event(2, failed=failure(13, "MODEL_FAILED"))]


@pytest.mark.parametrize("fails", [False, True])
def test_a_stream_is_heard_out_so_that_the_service_counts_no_cancellation(client, script, picture, fails) -> None:
    script.lingers = 0.2
    script.log = failed_log(script.log) if fails else script.log
    with client.stream(picture, model="lamp") as events, pytest.raises(SagittalError) if fails else nullcontext():
        while not isinstance(next(events), Completed):
            pass
    assert script.heard_out == [True]


@pytest.mark.parametrize("fails", [False, True])
async def test_an_asynchronous_stream_is_heard_out_too(address, script, picture, options, fails) -> None:
    script.lingers = 0.2
    script.log = failed_log(script.log) if fails else script.log
    async with AsyncClient(address, options=options) as client, await client.stream(picture, model="lamp") as events:
        with pytest.raises(SagittalError) if fails else nullcontext():
            while not isinstance(await anext(events), Completed):
                pass
    assert script.heard_out == [True]


@pytest.mark.parametrize(("code", "text"), BREAKS)
def test_a_broken_stream_goes_on_where_it_broke(client, script, picture, code, text) -> None:
    script.breaks = [(3, code, text), (1, code, text), (2, code, text)]
    with client.stream(picture, model="lamp") as events:
        assert [each.sequence for each in events] == list(range(1, 16))
    assert script.watched_after == [3, 4, 6]
    assert len(script.specs) == 1


def test_a_stream_broken_before_its_first_event_asks_again_with_the_same_key(client, script, picture) -> None:
    script.breaks = [(0, grpc.StatusCode.UNAVAILABLE, "gone"), (0, grpc.StatusCode.UNAVAILABLE, "gone")]
    with client.stream(picture, model="lamp") as events:
        assert [each.sequence for each in events] == list(range(1, 16))
    assert len(script.specs) == 3
    assert len({spec.request_id for spec in script.specs}) == 1


def test_events_sent_twice_are_handed_on_once(client, script, picture) -> None:
    script.log = [each for each in script.log for _ in range(2)]
    with client.stream(picture, model="lamp") as events:
        assert [each.sequence for each in events] == list(range(1, 16))


def test_a_gap_is_asked_for_again(client, script, picture) -> None:
    whole, script.log = script.log, [script.log[0], script.log[2]]
    with client.stream(picture, model="lamp") as events:
        assert next(events).sequence == 1
        script.log = whole
        assert [each.sequence for each in events] == list(range(2, 16))
    assert script.watched_after == [1]


def test_patience_ends(address, script, picture, options) -> None:
    script.breaks = [(1, grpc.StatusCode.UNAVAILABLE, "gone")]
    script.log = script.log[:1]
    short = replace(options, retry=replace(options.retry, stream_seconds=0.1))
    with Client(address, options=short) as client, pytest.raises(Unavailable, match="ended the stream before the job"):
        client.explain(picture, model="lamp")


def test_closing_a_stream_drops_the_call_and_cancels_the_job(client, script, picture, job_id) -> None:
    script.hang_after = 2
    with client.stream(picture, model="lamp") as events:
        next(events)
    assert script.dropped.wait(10)
    assert script.cancelled_jobs == [job_id]


def test_a_stream_that_nobody_holds_cancels_the_job(client, script, picture, job_id) -> None:
    script.hang_after = 2
    for _ in client.stream(picture, model="lamp"):
        break
    gc.collect()
    assert script.dropped.wait(10)
    assert script.cancelled_jobs == [job_id]


def test_an_interrupt_while_explaining_cancels_the_job(client, script, picture, job_id) -> None:
    def interrupt(event) -> None:
        raise KeyboardInterrupt

    script.hang_after = 2
    with pytest.raises(KeyboardInterrupt):
        client.explain(picture, model="lamp", on_event=interrupt)
    assert script.cancelled_jobs == [job_id]


def test_a_detached_or_watched_job_is_left_alone(client, script, picture, job_id) -> None:
    script.hang_after = 2
    with client.stream(picture, model="lamp", detach=True) as events:
        next(events)
    with client.watch(job_id) as events:
        next(events)
    assert script.cancelled_jobs == []


def test_watching_goes_on_after_a_sequence(client, job_id) -> None:
    assert [each.sequence for each in client.watch(job_id, after_sequence=12)] == [13, 14, 15]


def test_a_finished_job_is_not_cancelled(client, script, picture) -> None:
    client.explain(picture, model="lamp")
    assert script.cancelled_jobs == []


@pytest.mark.parametrize("attempt", [1, 2], ids=["handed-back", "worker-lost"])
def test_a_worker_that_begins_again_starts_the_gathering_anew(client, script, picture, attempt) -> None:
    again = list(script.log)
    retried = type(again[1])()
    retried.CopyFrom(again[1])
    retried.started.attempt = attempt
    script.log = [*again[:14], retried, *again[2:]]
    for number, each in enumerate(script.log, start=1):
        copy = type(each)()
        copy.CopyFrom(each)
        copy.sequence = number
        script.log[number - 1] = copy
    result = client.explain(picture, model="lamp")
    assert (len(result.masks), len(result.curves), len(result.warnings)) == (1, 2, 1)


async def test_the_asyncio_client_does_the_same(address, script, picture, options, job_id) -> None:
    script.breaks = [(3, grpc.StatusCode.UNAVAILABLE, "gone")]
    async with AsyncClient(address, options=options) as client:
        async with await client.stream(picture, model="lamp") as events:
            assert [each.sequence async for each in events] == list(range(1, 16))
        assert script.watched_after == [3]
        result = await client.explain(picture, model="lamp")
        assert result.insertion == 0.4375
        script.hang_after = 2
        async with await client.stream(picture, model="lamp") as events:
            await anext(events)
        assert script.cancelled_jobs == [job_id]
        assert (await client.get(job_id)).mask.shape == (7, 7)
        assert [job.job_id async for job in client.list()] == ["job-0-0", "job-0-1", "job-1-0", "job-1-1"]
        assert [model.name async for model in client.models()] == ["lamp"]
        assert (await client.predict(picture, model="lamp"))[0].label == "lamp"
        assert (await client.cancel(job_id)).state == "cancelled"
        await client.delete(job_id)
        assert (await client.retry(job_id)).job_id == f"again-{job_id}"
        assert [job.failure_reason async for job in client.list(reason="JOB_BURIED")] == ["JOB_BURIED"]


async def test_cancelling_the_task_cancels_the_job(address, script, picture, options, job_id) -> None:
    script.hang_after = 2
    async with AsyncClient(address, options=options) as client:
        seen = asyncio.Event()
        task = asyncio.create_task(client.explain(picture, model="lamp", on_event=lambda _: seen.set()))
        await seen.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert script.cancelled_jobs == [job_id]


def test_a_job_that_was_cancelled_is_known_by_its_error(client, script, job_id) -> None:
    script.log[3:] = [script.log[3]]
    script.log[3].cancelled.reason = "requested"
    assert isinstance(client.get(job_id).error, JobCancelled)

"""ScoreRegions: "what if", of an image or of a job, from the job's own events where they say it."""

from typing import Any

import grpc
import pytest
from embedded_queue import Queue, own_settings
from google.rpc import status_pb2

from sagittal.core.errors import ModelFailed, from_status, to_status
from sagittal.core.jobs import JobKind, JobState, Lane
from sagittal.v1 import explanation_pb2, method_pb2, model_pb2
from sagittal.v1 import explanation_service_pb2 as api

from .support import (
    Run,
    ScriptedWorker,
    Stack,
    eventually,
    images_are_gone,
    lamp,
    picture,
    quick_settings,
    running,
    spec,
)

TARGET = explanation_pb2.ClassScore(index=1, label="on", score=0.5)
OTHER = explanation_pb2.ClassScore(index=0, label="off", score=0.75)


def patches(*indices: int, grid: int = 7) -> explanation_pb2.PatchSet:
    return explanation_pb2.PatchSet(grid=grid, patches=indices)


def score(stack: Stack, *sets: explanation_pb2.PatchSet, hide: bool = False, **subject: Any) -> Any:
    subject = subject or {"image": {"model": "lamp", "image": picture()}}
    return stack.explanations.ScoreRegions(api.ScoreRegionsRequest(sets=sets, hide=hide, **subject))


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def details(error: grpc.aio.AioRpcError) -> Any:
    trailers = dict(error.trailing_metadata() or ())
    return from_status(status_pb2.Status.FromString(trailers["grpc-status-details-bin"]))


def answer(run: Run) -> None:
    """A script: a sixteenth for each patch of a set; of an explanation, one sufficient set and one node."""
    run.send(prediction=explanation_pb2.Prediction(target=TARGET, top=[TARGET]))
    if run.lease.job.kind == JobKind.REGIONS:
        sets = api.ScoreRegionsRequest.FromString(run.lease.request).sets
        scores = [len(each.patches) / 16 for each in sets]
        run.send(region_scores=explanation_pb2.RegionScores(full=TARGET, scores=scores, top=[OTHER] * len(sets)))
    else:
        causal = explanation_pb2.CausalTriple(sufficiency=0.4375, without=0.125, top_without=OTHER)
        found = explanation_pb2.SufficientSet(patches=patches(1, 2), score=0.4375, top=TARGET, causal=causal)
        found.certificate.model_digest = "d" * 64
        run.send(sufficient_set=found)
        run.send(graph_node=explanation_pb2.GraphNode(patches=patches(1), score=0.25, top=OTHER))
    run.settle(completed=explanation_pb2.Completed(model_digest="d" * 64))


def publish_patchy(stack: Stack) -> None:
    """Publishes the model with a method by patches."""
    model = lamp()
    grid = model_pb2.ParameterDescription(name="grid", type="int", minimum=3, maximum=14)
    grid.default.number_value = 7
    shape = model_pb2.ParameterDescription(name="patch_shape", type="str", choices=["box", "tent"])
    shape.default.string_value = "box"
    field = "minimal_sufficient_explanations"
    model.methods.append(model_pb2.MethodDescription(name="mse", field=field, parameters=[grid, shape]))
    stack.registry.workers.publish(model)


async def explained(stack: Stack, **method: Any) -> str:
    """Returns the identifier of a job that has ended, explained by patches."""
    parameters = method_pb2.MinimalSufficientExplanations(**method)
    asked = spec(method={"minimal_sufficient_explanations": parameters}, seed=5, target={"index": 1})
    job = await stack.explanations.SubmitExplanation(api.SubmitExplanationRequest(spec=asked))
    job_id = job.explanation.job_id
    async for _ in stack.queue.jobs.events(job_id):
        pass
    return str(job_id)


def asked(worker: ScriptedWorker) -> api.ScoreRegionsRequest:
    """Returns what the worker was asked last."""
    return api.ScoreRegionsRequest.FromString(worker.leases[-1].request)


async def test_regions_of_an_image_are_an_interactive_job_that_is_waited_for(stack: Stack) -> None:
    worker = stack.worker(answer)
    async with worker.at_work():
        response = await score(stack, patches(0, 1, 2, 3), patches(), hide=True)
    assert [(one.score, one.relative_score, one.cached) for one in response.scores] == [
        (0.25, 0.5, False),
        (0.0, 0.0, False),
    ]
    assert (response.full, response.scores[0].top) == (TARGET, OTHER)
    (lease,) = worker.leases
    assert (lease.job.kind, lease.job.lane, set(lease.images)) == (JobKind.REGIONS, Lane.INTERACTIVE, {"image"})
    request = asked(worker)
    assert (request.hide, request.image.model_version, request.image.HasField("image")) == (True, "1", False)


async def test_of_a_job_what_its_events_say_is_not_evaluated_again(stack: Stack) -> None:
    publish_patchy(stack)
    worker = stack.worker(answer)
    async with worker.at_work():
        job_id = await explained(stack)
        response = await score(stack, patches(3), patches(2, 1), patches(1), job_id=job_id)
    assert [(one.score, one.cached) for one in response.scores] == [(0.0625, False), (0.4375, True), (0.25, True)]
    assert [one.top for one in response.scores] == [OTHER, TARGET, OTHER]
    assert list(asked(worker).sets) == [patches(3)]


async def test_what_a_job_knows_in_full_is_answered_without_a_worker(stack: Stack) -> None:
    publish_patchy(stack)
    worker = stack.worker(answer)
    async with worker.at_work():
        job_id = await explained(stack)
    response = await score(stack, patches(1, 2), job_id=job_id, hide=True)
    assert [(one.score, one.relative_score, one.top, one.cached) for one in response.scores] == [
        (0.125, 0.25, OTHER, True)
    ]
    assert response.full == TARGET
    assert len(worker.leases) == 1


async def test_a_job_is_asked_about_with_its_own_image_target_seed_and_patches(stack: Stack) -> None:
    publish_patchy(stack)
    worker = stack.worker(answer)
    async with worker.at_work():
        job_id = await explained(stack, patch_shape=method_pb2.PATCH_SHAPE_TENT)
        await score(stack, patches(9), job_id=job_id)
    about = asked(worker).image
    assert (about.model, about.target.index, about.seed) == ("lamp", 1, 5)
    assert about.patch_shape == method_pb2.PATCH_SHAPE_TENT
    assert worker.leases[1].images == worker.leases[0].images


async def test_another_grid_than_the_jobs_is_evaluated(stack: Stack) -> None:
    publish_patchy(stack)
    worker = stack.worker(answer)
    async with worker.at_work():
        job_id = await explained(stack)
        response = await score(stack, patches(1, 2, grid=8), job_id=job_id)
    assert not response.scores[0].cached


async def test_regions_that_fail_fail_the_call(stack: Stack) -> None:
    def fail(run: Run) -> None:
        run.settle(JobState.FAILED, failed=to_status(ModelFailed("the model raised ValueError")))

    async with stack.worker(fail).at_work():
        assert isinstance(details(await refusal(score(stack, patches(1)))), ModelFailed)


async def test_a_dropped_question_is_cancelled(stack: Stack) -> None:
    call = score(stack, patches(1))

    async def jobs() -> Any:
        return (await stack.queue.jobs.list(limit=9, page_token=""))[0]

    await eventually(jobs)
    call.cancel()

    async def cancelled() -> bool:
        return (await jobs())[0].state == JobState.CANCELLED

    await eventually(cancelled)


async def test_a_question_without_a_worker_ends_at_its_deadline() -> None:
    async with running(quick_settings(jobs={"regions_deadline": 0.1})) as stack:
        error = await refusal(score(stack, patches(1)))
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("sets", "subject", "field"),
    [
        ([], {}, "sets"),
        ([patches(49)], {}, "sets[0].patches[0]"),
        ([patches(1)], {"image": {"image": picture()}}, "image.model"),
        ([patches(1)], {"image": {"model": "lamp"}}, "image.image"),
        ([patches(1)], {"image": {"model": "lamp", "image": {"encoded": b"x"}}}, "image.image.encoded"),
        ([patches(1)], {"image": {"model": "lamp", "image": picture(), "target": {"index": 2}}}, "image.target.index"),
        ([patches(1)], {"image": {"model": "lamp", "image": picture(), "patch_shape": 9}}, "image.patch_shape"),
        (
            [patches(1)],
            {"image": {"model": "lamp", "image": picture(), "baseline": {"kind": 5}}},
            "image.baseline.image",
        ),
    ],
)
async def test_a_wrong_question_names_its_field(stack: Stack, sets: Any, subject: dict[str, Any], field: str) -> None:
    error = await refusal(score(stack, *sets, **subject))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert details(error).field == field


async def test_a_question_about_nothing_is_refused(stack: Stack) -> None:
    error = await refusal(stack.explanations.ScoreRegions(api.ScoreRegionsRequest(sets=[patches(1)])))
    assert (error.code(), details(error).field) == (grpc.StatusCode.INVALID_ARGUMENT, "subject")


async def test_a_job_that_nobody_knows_is_refused(stack: Stack) -> None:
    error = await refusal(score(stack, patches(1), job_id="0" * 32))
    assert (error.code(), details(error).field) == (grpc.StatusCode.NOT_FOUND, "job_id")


async def test_a_job_whose_images_are_gone_is_refused_and_says_so() -> None:
    queue = Queue(own_settings(image_retention_seconds=0.001, sweep_seconds=0.02))
    async with running(queue=queue) as stack:
        publish_patchy(stack)
        async with stack.worker(answer).at_work():
            job_id = await explained(stack)
        await images_are_gone(stack, job_id)
        error = await refusal(score(stack, patches(9), job_id=job_id))
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert "send the image again" in (error.details() or "")

from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2

from sagittal.core.errors import ModelFailed, from_status, to_status
from sagittal.core.jobs import Job, JobKind, JobState, Lane
from sagittal.v1 import explanation_service_pb2, model_pb2
from sagittal.v1 import model_service_pb2 as api

from .support import Run, Stack, eventually, lamp, picture, quick_settings, running


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def details(error: grpc.aio.AioRpcError) -> Any:
    trailers = dict(error.trailing_metadata() or ())
    return from_status(status_pb2.Status.FromString(trailers["grpc-status-details-bin"]))


def predict(stack: Stack, **fields: Any) -> Any:
    request = api.PredictRequest(**{"model": "lamp", "image": picture()} | fields)
    return stack.models.Predict(request)


async def test_models_are_listed_in_pages_without_labels_and_methods(stack: Stack) -> None:
    for name in ("candle", "torch"):
        model = lamp()
        model.name = name
        stack.registry.workers.publish(model)
    page = await stack.models.ListModels(api.ListModelsRequest(page_size=2))
    rest = await stack.models.ListModels(api.ListModelsRequest(page_size=2, page_token=page.next_page_token))
    assert [model.name for model in (*page.models, *rest.models)] == ["candle", "lamp", "torch"]
    assert not rest.next_page_token
    assert not any(model.labels or model.methods for model in page.models)


async def test_a_model_is_returned_whole(stack: Stack) -> None:
    model = (await stack.models.GetModel(api.GetModelRequest(name="lamp"))).model
    assert list(model.labels) == ["off", "on"]
    assert model.latest
    assert [method.name for method in model.methods] == ["igos++", "glow", "grad-cam"]
    assert model.workers[0].state == model_pb2.MODEL_STATE_READY


async def test_an_unknown_model_is_answered_with_those_that_exist(stack: Stack) -> None:
    error = await refusal(stack.models.GetModel(api.GetModelRequest(name="nosuch")))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert "lamp" in (error.details() or "")
    assert details(error).field == "name"


async def test_a_prediction_is_an_interactive_job_that_is_waited_for(stack: Stack) -> None:
    worker = stack.worker()
    async with worker.at_work():
        answer = await predict(stack, top=1)
    assert [(score.index, score.label) for score in answer.top] == [(1, "on")]
    assert (answer.model_version, answer.model_digest) == ("1", "d" * 64)
    job = worker.leases[0].job
    assert (job.kind, job.lane) == (JobKind.PREDICTION, Lane.INTERACTIVE)
    asked = api.PredictRequest.FromString(worker.leases[0].request)
    assert (asked.model_version, asked.top, asked.HasField("image")) == ("1", 1, False)
    assert set(worker.leases[0].images) == {"image"}


async def test_a_prediction_is_not_listed_among_explanations(stack: Stack) -> None:
    async with stack.worker().at_work():
        await predict(stack)
    answer = await stack.explanations.ListExplanations(explanation_service_pb2.ListExplanationsRequest())
    assert not answer.explanations


async def test_a_prediction_that_fails_fails_the_call(stack: Stack) -> None:
    def fail(run: Run) -> None:
        run.settle(JobState.FAILED, failed=to_status(ModelFailed("the model raised ValueError")))

    async with stack.worker(fail).at_work():
        error = await refusal(predict(stack))
    assert error.code() == grpc.StatusCode.INTERNAL
    assert isinstance(details(error), ModelFailed)


async def test_a_prediction_without_a_worker_ends_at_its_deadline_and_says_why() -> None:
    async with running(quick_settings(jobs={"predict_deadline": 0.1})) as stack:
        stack.registry.workers.withdraw("scripted")
        error = await refusal(predict(stack))
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert "no worker has lamp ready" in (error.details() or "") or details(error).reason == "DEADLINE_PASSED"
        await eventually(lambda: only_job_ended(stack))


async def test_a_dropped_prediction_is_cancelled(stack: Stack) -> None:
    call = predict(stack)
    await eventually(lambda: jobs(stack))
    call.cancel()
    await eventually(lambda: only_job_ended(stack))
    assert (await jobs(stack))[0].state == JobState.CANCELLED


async def jobs(stack: Stack) -> Sequence[Job]:
    return (await stack.queue.jobs.list(limit=9, page_token=""))[0]


async def only_job_ended(stack: Stack) -> bool:
    (job,) = await jobs(stack)
    return job.state.ended


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"model": ""}, "model"),
        ({"image": None}, "image"),
        ({"image": {"encoded": b"x"}}, "image.encoded"),
        ({"top": 1001}, "top"),
    ],
)
async def test_a_wrong_prediction_names_its_field(stack: Stack, fields: dict[str, Any], field: str) -> None:
    error = await refusal(predict(stack, **fields))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert details(error).field == field

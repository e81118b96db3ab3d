"""Administrators change what can be explained; whatever is wrong with a registration is said of its field."""

import asyncio
import hashlib
import math
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2, field_mask_pb2
from google.rpc import status_pb2

from sagittal.core.errors import from_status
from sagittal.core.jobs import JobState
from sagittal.v1 import explanation_pb2, explanation_service_pb2, method_pb2, model_pb2
from sagittal.v1 import model_service_pb2 as api

from .support import Stack, lamp, picture, quick_settings, running, spec

UNENDING = model_pb2.ModelSource(kind="torchvision")
UNENDING.settings.fields["classes"].number_value = math.inf


def candle(**fields: Any) -> model_pb2.Model:
    source = model_pb2.ModelSource(kind="torchvision")
    source.settings.update({"model": "resnet18", "classes": 2})
    return model_pb2.Model(**{"name": "candle", "version": "1", "source": source, "labels": ["off", "on"]} | fields)


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def details(error: grpc.aio.AioRpcError) -> Any:
    trailers = dict(error.trailing_metadata() or ())
    return from_status(status_pb2.Status.FromString(trailers["grpc-status-details-bin"]))


async def register(stack: Stack, model: model_pb2.Model) -> model_pb2.Model:
    return (await stack.models.RegisterModel(api.RegisterModelRequest(model=model))).model


async def get(stack: Stack, name: str, version: str = "") -> model_pb2.Model:
    return (await stack.models.GetModel(api.GetModelRequest(name=name, version=version))).model


async def test_a_registered_model_shows_what_was_declared_with_its_defaults(stack: Stack) -> None:
    answer = await register(stack, candle(digest="made up", classes=9))
    assert answer == await get(stack, "candle")
    assert (answer.latest, answer.origin, answer.digest, answer.classes) == (True, model_pb2.MODEL_ORIGIN_API, "", 0)
    assert answer.preprocessing.input_size == 224
    assert answer.preprocessing.interpolation == "bilinear"
    assert answer.output == model_pb2.OUTPUT_KIND_LOGITS
    assert answer.load_policy == model_pb2.LOAD_POLICY_PRELOAD
    assert answer.source.settings["classes"] == 2


async def test_jobs_of_a_model_that_no_worker_has_loaded_wait_for_one(stack: Stack) -> None:
    await register(stack, candle())
    method = method_pb2.Method(custom=method_pb2.CustomMethod(name="glow"))
    target = explanation_pb2.Target(label="on")
    request = explanation_service_pb2.ExplainRequest(spec=spec(model="candle", method=method, target=target))
    watching = stack.explanations.Explain(request)
    accepted = (await watching.read()).event
    assert accepted.accepted.ready_workers == 0, "the caller is told"
    lease = await asyncio.to_thread(
        lambda: stack.queue.worker("candle-maker").lease([("candle", "1")], block_seconds=20)
    )
    assert lease is not None
    asked = explanation_pb2.ExplanationSpec.FromString(lease.request)
    assert (asked.target.label, asked.method) == ("on", method), "the worker checks what the service could not"


async def test_what_is_known_of_a_model_that_no_worker_has_loaded_is_checked(stack: Stack) -> None:
    await register(stack, candle())
    wrong = spec(model="candle", deadline=duration_pb2.Duration(seconds=-1))
    request = explanation_service_pb2.SubmitExplanationRequest(spec=wrong)
    error = await refusal(stack.explanations.SubmitExplanation(request))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        pytest.param({"name": ""}, "model.name", id="no name"),
        pytest.param({"name": "Candle"}, "model.name", id="capitals"),
        pytest.param({"version": "a/b"}, "model.version", id="version"),
        pytest.param({"source": None}, "model.source", id="no source"),
        pytest.param({"labels": ["off", " "]}, "model.labels", id="blank label"),
        pytest.param({"output": 77}, "model.output", id="output"),
        pytest.param({"load_policy": 77}, "model.load_policy", id="load policy"),
        pytest.param({"weights_digest": "abc"}, "model.weights_digest", id="digest"),
        pytest.param({"tags": {"team": "a b"}}, "model.tags.team", id="tag"),
        pytest.param({"tags": {"": "vision"}}, "model.tags", id="tag without a name"),
        pytest.param({"device": {"kind": "tpu"}}, "model.device.kind", id="device"),
        pytest.param({"preprocessing": {"input_size": 3}}, "model.preprocessing.input_size", id="input size"),
        pytest.param({"preprocessing": {"mean": [0.5]}}, "model.preprocessing.mean.1", id="one mean"),
        pytest.param({"preprocessing": {"mean": [0, math.nan, 0]}}, "model.preprocessing.mean.1", id="mean NaN"),
        pytest.param({"preprocessing": {"std": [1, math.inf, 1]}}, "model.preprocessing.std.1", id="std infinite"),
        pytest.param({"source": UNENDING}, "model.source.settings", id="setting infinite"),
        pytest.param({"preprocessing": {"std": [1, 0, 1]}}, "model.preprocessing.std.1", id="std of zero"),
        pytest.param({"preprocessing": {"interpolation": "magic"}}, "model.preprocessing.interpolation", id="resizing"),
        pytest.param({"preprocessing": {"layout": "HWC"}}, "model.preprocessing.layout", id="layout"),
        pytest.param({"preprocessing": {"input_size": 300}}, "model.preprocessing", id="crop beyond the picture"),
    ],
)
async def test_a_wrong_registration_names_its_field(stack: Stack, fields: dict[str, Any], field: str) -> None:
    error = await refusal(register(stack, candle(**fields)))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert details(error).field == field


async def test_a_version_is_registered_once_and_again_with_the_same_content(stack: Stack) -> None:
    first = await register(stack, candle())
    assert await register(stack, candle()) == first
    error = await refusal(register(stack, candle(labels=["no", "yes"])))
    assert error.code() == grpc.StatusCode.ALREADY_EXISTS
    assert details(error).reason == "MODEL_EXISTS"


async def test_versions_live_side_by_side_and_the_latest_is_explicit(stack: Stack) -> None:
    await register(stack, candle())
    assert not (await register(stack, candle(version="2"))).latest
    assert (await get(stack, "candle")).version == "1"
    mask = field_mask_pb2.FieldMask(paths=["latest"])
    changed = model_pb2.Model(name="candle", version="2", latest=True)
    answer = await stack.models.UpdateModel(api.UpdateModelRequest(model=changed, update_mask=mask))
    assert answer.model.latest
    assert (await get(stack, "candle")).version == "2"
    assert not (await get(stack, "candle", "1")).latest


async def test_an_update_replaces_all_or_what_its_mask_names(stack: Stack) -> None:
    await register(stack, candle(tags={"team": "vision"}))
    changed = candle(labels=["no", "yes"])
    mask = field_mask_pb2.FieldMask(paths=["labels"])
    masked = (await stack.models.UpdateModel(api.UpdateModelRequest(model=changed, update_mask=mask))).model
    assert (list(masked.labels), dict(masked.tags)) == (["no", "yes"], {"team": "vision"})
    whole = (await stack.models.UpdateModel(api.UpdateModelRequest(model=changed))).model
    assert (list(whole.labels), dict(whole.tags)) == (["no", "yes"], {})
    assert whole.revision > masked.revision
    mask.paths[:] = ["digest"]
    error = await refusal(stack.models.UpdateModel(api.UpdateModelRequest(model=changed, update_mask=mask)))
    assert details(error).field == "update_mask"
    assert "preprocessing" in (error.details() or "")


async def test_what_get_model_returns_can_be_changed_and_sent_back(stack: Stack) -> None:
    await register(stack, candle(labels=(), labels_from="imagenet-1k"))
    model = await get(stack, "candle")
    found = model_pb2.Model(labels=["off", "on"], classes=2, digest="d" * 64)
    found.MergeFrom(model)
    stack.registry.workers.publish(found)
    model = (await stack.models.UpdateModel(api.UpdateModelRequest(model=await get(stack, "candle")))).model
    assert model.digest == "d" * 64, "nothing that was declared has changed"
    model.tags["team"] = "vision"
    model = (await stack.models.UpdateModel(api.UpdateModelRequest(model=model))).model
    assert (model.labels_from, list(model.labels), model.digest) == ("imagenet-1k", [], "")


async def test_an_unregistered_model_is_gone_and_its_queued_jobs_are_cancelled(stack: Stack) -> None:
    request = explanation_service_pb2.SubmitExplanationRequest(spec=spec(model="lamp"))
    job = (await stack.explanations.SubmitExplanation(request)).explanation
    await stack.models.UnregisterModel(api.UnregisterModelRequest(name="lamp", version="1"))
    assert (await refusal(get(stack, "lamp"))).code() == grpc.StatusCode.NOT_FOUND
    assert (await stack.queue.jobs.get(job.job_id)).state == JobState.CANCELLED


@pytest.mark.parametrize(
    ("name", "version", "code", "field"),
    [
        ("lamp", "", grpc.StatusCode.INVALID_ARGUMENT, "version"),
        ("", "1", grpc.StatusCode.INVALID_ARGUMENT, "name"),
        ("lamp", "9", grpc.StatusCode.NOT_FOUND, "version"),
        ("nosuch", "1", grpc.StatusCode.NOT_FOUND, "name"),
    ],
)
async def test_what_is_removed_must_be_named_whole(
    stack: Stack, name: str, version: str, code: grpc.StatusCode, field: str
) -> None:
    error = await refusal(stack.models.UnregisterModel(api.UnregisterModelRequest(name=name, version=version)))
    assert (error.code(), details(error).field) == (code, field)


async def test_load_and_unload_reach_the_workers(stack: Stack) -> None:
    await register(stack, candle())
    for call, request, wish in (
        (stack.models.LoadModel, api.LoadModelRequest(name="candle"), "load"),
        (stack.models.UnloadModel, api.UnloadModelRequest(name="candle"), "unload"),
    ):
        await call(request)
        seen = {each.model.name: each.wish for each in stack.registry.workers.registrations()}
        assert seen["candle"] == wish
    error = await refusal(stack.models.LoadModel(api.LoadModelRequest(name="nosuch")))
    assert error.code() == grpc.StatusCode.NOT_FOUND


async def test_a_model_that_no_worker_can_load_takes_no_jobs_and_says_why(stack: Stack) -> None:
    failed = model_pb2.WorkerModel(state=model_pb2.MODEL_STATE_FAILED, message="the weights w.pt do not exist")
    stack.registry.workers.announce("scripted", [("lamp", "1", failed)], ttl=600)
    stack.service._catalogue.forget("lamp")
    assert (await get(stack, "lamp")).workers[0].message == failed.message
    request = explanation_service_pb2.SubmitExplanationRequest(spec=spec(model="lamp"))
    for call in (
        stack.explanations.SubmitExplanation(request),
        stack.models.Predict(api.PredictRequest(model="lamp", image=picture())),
    ):
        error = await refusal(call)
        assert details(error).reason == "MODEL_FAILED"
        assert failed.message in (error.details() or "")


@pytest.mark.parametrize(
    "rpc", ["RegisterModel", "UpdateModel", "UnregisterModel", "LoadModel", "UnloadModel", "SetCanary"]
)
async def test_changes_are_for_administrators(rpc: str) -> None:
    tokens = {hashlib.sha256(b"secret").hexdigest(): {"tenant": "a"}}
    async with running(quick_settings(tokens=tokens)) as stack:
        call = getattr(stack.models, rpc)(
            getattr(api, f"{rpc}Request")(), metadata=(("authorization", "Bearer secret"),)
        )
        assert (await refusal(call)).code() == grpc.StatusCode.PERMISSION_DENIED


def test_the_model_of_these_tests_declares_nothing() -> None:
    assert not lamp().HasField("source"), "a worker published it without registering it"

"""Labels of metrics take values from small sets, whatever callers make up."""

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import Iterator

import grpc
from google.protobuf.message import Message

from sagittal.v1 import (
    concept_service_pb2,
    concept_service_pb2_grpc,
    explanation_pb2,
    explanation_service_pb2,
    method_pb2,
    model_pb2,
    model_service_pb2,
)

from .support import Stack, eventually, picture, quick_settings, running, spec

#: Labels whose values callers may have a say in, and all that they may be here.
PERMITTED = {"model": {"lamp"}, "method": {"igos++", "glow", "prediction"}, "lane": {"interactive", "batch"}}

TENANTS = 5


def series(stack: Stack) -> set[tuple[str, ...]]:
    """Name and labels of everything that `/metrics` shows but the bounds of histograms."""
    samples = [sample for metric in stack.metrics.collect() for sample in metric.samples]
    return {
        (sample.name, *map("=".join, sorted(sample.labels.items()))) for sample in samples if "le" not in sample.labels
    }


def labels(stack: Stack, label: str) -> set[str]:
    samples = [sample for metric in stack.metrics.collect() for sample in metric.samples]
    return {sample.labels[label] for sample in samples if label in sample.labels}


def hostile(name: str) -> Iterator[tuple[str, Message]]:
    """Calls in which everything that a caller may name is made up."""
    made_up = spec(model=name, model_version=name, request_id=name)
    custom = method_pb2.Method(custom=method_pb2.CustomMethod(name=name))
    api = explanation_service_pb2
    for each in (made_up, spec(model_version=name), spec(method=custom), spec(request_id=name)):
        yield "ExplanationService/SubmitExplanation", api.SubmitExplanationRequest(spec=each)
    for rpc in ("GetExplanation", "CancelExplanation", "DeleteExplanation", "RetryExplanation"):
        yield f"ExplanationService/{rpc}", getattr(api, f"{rpc}Request")(job_id=name)
    yield "ExplanationService/ListExplanations", api.ListExplanationsRequest(model=name, page_token=name)
    subject = api.RegionSubject(model=name, image=picture())
    sets = [explanation_pb2.PatchSet(grid=4, patches=[1])]
    yield "ExplanationService/ScoreRegions", api.ScoreRegionsRequest(image=subject, sets=sets)
    yield "ModelService/Predict", model_service_pb2.PredictRequest(model=name, image=picture())
    yield "ModelService/GetModel", model_service_pb2.GetModelRequest(name=name)
    yield "ModelService/RegisterModel", model_service_pb2.RegisterModelRequest(model=model_pb2.Model(name=name))
    yield "ModelService/LoadModel", model_service_pb2.LoadModelRequest(name=name)
    yield "ConceptService/GetConceptSet", concept_service_pb2.GetConceptSetRequest(model=name, name=name)
    yield f"ExplanationService/{name}", api.GetExplanationRequest(job_id=name)
    yield f"{name}/Explain", api.GetExplanationRequest(job_id=name)


async def make_up(stack: Stack, name: str, token: str) -> None:
    """Calls everything with a made-up name, as a known tenant and as nobody."""
    for rpc, request in hostile(name):
        for bearer in (token, name):
            call = stack.channel.unary_unary(f"/sagittal.v1.{rpc}")
            metadata = (("authorization", f"Bearer {bearer}"), ("x-request-id", name), ("user-agent-of", name))
            with contextlib.suppress(grpc.aio.AioRpcError):
                await asyncio.wait_for(call(request.SerializeToString(), metadata=metadata), 30)
    await _streams(stack, name, token)


async def _streams(stack: Stack, name: str, token: str) -> None:
    stub = concept_service_pb2_grpc.ConceptServiceStub(stack.channel)
    settings = concept_service_pb2.FitConceptsSettings(name=name, model=name)
    request = concept_service_pb2.FitConceptsRequest(settings=settings)
    watch = explanation_service_pb2.WatchExplanationRequest(job_id=name)
    metadata = (("authorization", f"Bearer {token}"),)
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for _ in stub.FitConcepts(iter([request]), metadata=metadata):
            pass
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for _ in stack.explanations.WatchExplanation(watch, metadata=metadata):
            pass


async def test_names_that_callers_make_up_become_no_labels() -> None:
    bearers = [secrets.token_hex(16) for _ in range(TENANTS)]
    tokens = {
        hashlib.sha256(token.encode()).hexdigest(): {"tenant": f"tenant-{number}", "roles": ["explain", "admin"]}
        for number, token in enumerate(bearers)
    }
    settings = quick_settings(tokens=tokens, logins={"attempts": 100_000})
    async with running(settings) as stack, stack.worker().at_work():
        await make_up(stack, "made-up", bearers[0])
        await eventually(lambda: stack.metric("sagittal_queue_up") == 1)
        before = series(stack)
        for number in range(4 * TENANTS):
            await make_up(stack, f"made-up-{number}-{secrets.token_hex(8)}", bearers[number % TENANTS])
        await asyncio.sleep(0.2)  # the queue is looked at meanwhile
        assert series(stack) == before
        accepted = {"model": "lamp", "method": "igos++", "lane": "interactive"}
        assert stack.metric("sagittal_jobs_accepted_total", **accepted) > 4 * TENANTS
        for label, values in PERMITTED.items():
            assert labels(stack, label) <= values
        assert len(labels(stack, "rpc")) < 30
        assert not any("made-up" in text or "tenant-" in text for row in before for text in row)

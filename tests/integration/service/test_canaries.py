"""A share of the explanations tries another version of a model, until that turns out to be worse."""

import hashlib

import grpc
import pytest

from sagittal.registry.protocol import Outcomes
from sagittal.server.intake import is_among
from sagittal.v1 import explanation_service_pb2, model_pb2
from sagittal.v1 import model_service_pb2 as api

from .support import Stack, eventually, lamp, quick_settings, running, spec
from .test_registration import details, refusal


def ready(stack: Stack, *versions: str) -> None:
    state = model_pb2.WorkerModel(state=model_pb2.MODEL_STATE_READY)
    stack.registry.workers.announce("scripted", [("lamp", version, state) for version in versions], ttl=600)


def second_lamp() -> model_pb2.Model:
    model = lamp()
    model.version = "2"
    return model


async def versions(stack: Stack, seeds: range, **changes: object) -> list[str]:
    """Returns the version that each of so many different explanations gets."""
    found = []
    for seed in seeds:
        request = explanation_service_pb2.SubmitExplanationRequest(spec=spec(seed=seed, **changes))
        submitted = (await stack.explanations.SubmitExplanation(request)).explanation
        found.append((await stack.queue.jobs.get(submitted.job_id)).version)
    return found


async def start(stack: Stack, **settings: float) -> model_pb2.Model:
    stack.registry.workers.publish(second_lamp())
    ready(stack, "1", "2")
    canary = model_pb2.Canary(**{"share": 0.5, "min_jobs": 4} | settings)
    response = await stack.models.SetCanary(api.SetCanaryRequest(name="lamp", version="2", canary=canary))
    return response.model


@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_a_share_of_the_explanations_is_that_share_and_always_the_same_ones(share: float) -> None:
    keys = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(10_000)]
    among = [is_among(key, share) for key in keys]
    assert sum(among) / len(keys) == pytest.approx(share, abs=0.01)
    assert [is_among(key, share) for key in keys] == among
    assert all(is_among(key, 1.0) for key in keys)
    assert not is_among("", 1.0), "what is never shared stays with the latest version"


async def test_a_canary_gets_equal_explanations_together_and_none_that_name_a_version() -> None:
    async with running(quick_settings(model_refresh=0.05)) as stack:
        assert await versions(stack, range(3)) == ["1", "1", "1"]
        started = await start(stack)
        assert (started.version, started.canary.share, started.canary.max_failed) == ("2", 0.5, pytest.approx(0.1))
        first = await versions(stack, range(100, 130))
        assert set(first) == {"1", "2"}
        assert await versions(stack, range(100, 130)) == first
        assert set(await versions(stack, range(100, 130), model_version="1")) == {"1"}
        ready(stack, "1")
        await eventually(lambda: _all_first(stack))
        ended = await stack.models.SetCanary(api.SetCanaryRequest(name="lamp", version="2"))
        assert not ended.model.HasField("canary")


async def _all_first(stack: Stack) -> bool:
    """Returns whether a version that no worker has ready gets nothing."""
    return set(await versions(stack, range(200, 212))) == {"1"}


async def test_a_canary_that_fails_is_rolled_back_and_everyone_sees_why() -> None:
    async with running(quick_settings(model_refresh=0.05)) as stack:
        await start(stack, share=1)
        assert await versions(stack, range(3)) == ["2", "2", "2"]
        gauge = {"model": "lamp", "version": "2"}
        assert stack.metric("sagittal_canary_rolled_back", **gauge) == 0
        worse = Outcomes(name="lamp", version="2", completed=3, failed=1)
        reason = stack.registry.workers.report("scripted", 1, worse)
        assert reason == "1 of 4 jobs failed; at most 10 % may"
        await eventually(lambda: _all_first(stack))
        shown = (await stack.models.GetModel(api.GetModelRequest(name="lamp", version="2"))).model
        assert shown.canary.rolled_back == reason
        assert shown.canary.outcomes == model_pb2.CanaryOutcomes(completed=3, failed=1)
        await eventually(lambda: stack.metric("sagittal_canary_rolled_back", **gauge) == 1)
        listed = (await stack.models.ListModels(api.ListModelsRequest())).models
        assert [model.canary.rolled_back for model in listed] == ["", reason]


@pytest.mark.parametrize(
    ("version", "canary", "field"),
    [
        ("2", {"share": 1.5}, "canary.share"),
        ("2", {"share": -0.1}, "canary.share"),
        ("2", {}, "canary.share"),
        ("2", {"share": 0.1, "max_failed": 2}, "canary.max_failed"),
        ("2", {"share": 0.1, "min_faithfulness": float("nan")}, "canary.min_faithfulness"),
        ("", {"share": 0.1}, "version"),
    ],
)
async def test_a_canary_that_makes_no_sense_is_refused_by_its_field(
    stack: Stack, version: str, canary: dict[str, float], field: str
) -> None:
    request = api.SetCanaryRequest(name="lamp", version=version, canary=model_pb2.Canary(**canary))
    error = await refusal(stack.models.SetCanary(request))
    assert (error.code(), details(error).field) == (grpc.StatusCode.INVALID_ARGUMENT, field)

"""Estimates are learned from ended jobs, count what is queued, and queue nothing."""

import asyncio

import grpc
import pytest

from sagittal.client import AsyncClient
from sagittal.core.jobs import Cost
from sagittal.server.estimates import wall_seconds
from sagittal.v1 import explanation_pb2
from sagittal.v1 import explanation_service_pb2 as api

from .support import Run, picture


def answer(evaluations: int, seconds: float) -> object:
    """A script: an explanation at this cost."""

    def script(run: Run) -> None:
        done = explanation_pb2.Completed(evaluations=evaluations)
        done.run_time.FromNanoseconds(int(seconds * 1e9))
        run.settle(completed=done)

    return script


async def test_an_estimate_is_the_cost_of_jobs_like_these_times_the_images(stack) -> None:
    async with AsyncClient(f"127.0.0.1:{stack.port}") as client:
        nothing = await client.estimate(images=100, model="lamp", method="igos++")
        assert (nothing.basis, nothing.evaluations, nothing.wall_seconds) == ("", 0, None)
        async with stack.worker(answer(70, 0.5)).at_work():
            await client.explain(picture().encoded, model="lamp", method="igos++")
        estimates = [await client.estimate(images=images, model="lamp", method="igos++") for images in (1, 100)]
        while not estimates[0].basis:  # the service reads learned costs every five seconds
            await asyncio.sleep(0.1)
            estimates = [await client.estimate(images=images, model="lamp", method="igos++") for images in (1, 100)]
        one, many = estimates
        assert (one.basis, one.evaluations, one.ready_workers) == ("same_setting", 70, 1)
        assert (many.evaluations, many.worker_seconds) == (7000, pytest.approx(100 * one.worker_seconds, abs=0.1))
        assert many.wall_seconds == pytest.approx(many.worker_seconds, abs=0.1)
        await client.submit(picture(9).encoded, model="lamp", method="igos++")
        behind = await client.estimate(images=100, model="lamp", method="igos++")
        assert behind.queued_evaluations == 70
        assert behind.wall_seconds == pytest.approx(many.wall_seconds + one.worker_seconds, abs=0.1)
        assert len([job async for job in client.list()]) == 2  # of which none is of an estimate


async def test_an_estimate_has_no_image_and_names_wrong_fields(stack) -> None:
    for field, request in (
        ("spec.image", api.EstimateExplanationsRequest(spec={"model": "lamp", "image": picture()})),
        ("images", api.EstimateExplanationsRequest(spec={"model": "lamp"}, images=10**10)),
        ("spec.target.index", api.EstimateExplanationsRequest(spec={"model": "lamp", "target": {"index": 7}})),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stack.explanations.EstimateExplanations(request)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert field in error.value.details()


def test_the_wall_time_is_shared_by_the_workers_and_at_least_that_of_one_image() -> None:
    cost = Cost(100, 2.0, 0.5)
    assert wall_seconds(cost, images=100, queued=0, workers=2) == 25
    assert wall_seconds(cost, images=100, queued=400, workers=2) == 26
    assert wall_seconds(cost, images=1, queued=0, workers=8) == 2.0

"""What a dashboard is given of a job: its request, its image, and what is drawn from it."""

import io
from typing import Any

import grpc
import numpy as np
import PIL.Image
import pytest
import torch
from embedded_queue import Queue, own_settings

from sagittal.client import AsyncClient, InvalidRequest
from sagittal.core.jobs import JobState
from sagittal.core.models import Preprocessing
from sagittal.core.tensors import tensor_of
from sagittal.engine.masking import gaussian_blur
from sagittal.models.preprocessing import to_input
from sagittal.v1 import explanation_pb2, model_pb2, tensor_pb2
from sagittal.v1 import explanation_service_pb2 as api

from .support import Run, Stack, eventually, images_are_gone, quick_settings, running, spec

ORIGINAL, INPUT, BASELINE, THUMBNAIL, OVERLAY = (
    getattr(api, f"JOB_IMAGE_{name}") for name in ("ORIGINAL", "MODEL_INPUT", "BASELINE", "THUMBNAIL", "OVERLAY")
)
HOW = {"input_size": 32, "resize": 40, "interpolation": "bilinear", "fit": "crop"}
PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
PIXELS = np.random.default_rng(9).integers(0, 256, (60, 90, 3), np.uint8)
SALIENCY = np.eye(4, dtype=np.float16)


def jpeg() -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(PIXELS).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def report(
    run: Run, *, baseline: int = explanation_pb2.BASELINE_KIND_BLUR, sigma: float = 6.0, fit: str = "crop"
) -> None:
    """Reports what a worker does: the prediction with the preprocessing, and a mask."""
    how = model_pb2.Preprocessing(**HOW | {"fit": fit}, **PLAIN, channel_order="RGB")
    prediction = explanation_pb2.Prediction(baseline=baseline, blur_sigma=sigma, preprocessing=how)
    prediction.target.score = 0.5
    run.send(prediction=prediction)
    run.send(mask=explanation_pb2.Mask(saliency=tensor_of(SALIENCY, tensor_pb2.DATA_TYPE_FLOAT16), final=True))
    run.settle(completed=explanation_pb2.Completed(evaluations=1))


async def ended(stack: Stack, script: Any = report, **changes: Any) -> str:
    """Returns a job that has ended."""
    request = api.SubmitExplanationRequest(spec=spec(**{"image": tensor_pb2.Image(encoded=jpeg())} | changes))
    job_id = (await stack.explanations.SubmitExplanation(request)).explanation.job_id

    async def has_ended() -> bool:
        return (await stack.queue.jobs.get(job_id)).state is JobState.COMPLETED

    async with stack.worker(script).at_work():
        await eventually(has_ended)
    return job_id


async def image(stack: Stack, job_id: str, kind: int, **fields: Any) -> api.GetExplanationImageResponse:
    request = api.GetExplanationImageRequest(job_id=job_id, image=kind, **fields)
    return await stack.explanations.GetExplanationImage(request)


def pixels(response: api.GetExplanationImageResponse) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(response.image.encoded), formats=["PNG"]))


def seen_by_the_worker(fit: str) -> torch.Tensor:
    """The model's input, made by the worker's own code."""
    decoded = np.asarray(PIL.Image.open(io.BytesIO(jpeg())))
    return to_input(decoded, Preprocessing(**HOW | {"fit": fit}, **PLAIN))


async def test_the_request_of_a_job_comes_without_its_images(stack: Stack) -> None:
    job_id = await ended(stack, seed=7, target=explanation_pb2.Target(label="on"))
    found = (await stack.explanations.GetExplanationSpec(api.GetExplanationSpecRequest(job_id=job_id))).spec
    assert (found.model, found.model_version, found.seed) == ("lamp", "1", 7)
    assert not found.HasField("image")


async def test_an_image_comes_as_it_was_sent(stack: Stack) -> None:
    found = await image(stack, await ended(stack), ORIGINAL)
    assert found.image.encoded == jpeg()
    assert found.exact


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
async def test_the_models_input_and_the_baseline_are_those_of_the_worker(stack: Stack, fit: str) -> None:
    job_id = await ended(stack, lambda run: report(run, fit=fit))
    seen = await image(stack, job_id, INPUT)
    expected = seen_by_the_worker(fit)
    assert seen.exact
    assert np.array_equal(pixels(seen), (expected * 255).round().byte().permute(1, 2, 0).numpy())
    baseline = await image(stack, job_id, BASELINE)
    blurred = gaussian_blur(expected, 6.0).permute(1, 2, 0).numpy() * 255
    assert baseline.exact
    assert np.abs(pixels(baseline) - blurred).max() <= 1


@pytest.mark.parametrize(("kind", "exact"), [("BLACK", True), ("MEAN", True), ("NOISE", False)])
async def test_other_baselines_say_whether_they_are_the_jobs(stack: Stack, kind: str, exact: bool) -> None:
    number = explanation_pb2.BaselineKind.Value(f"BASELINE_KIND_{kind}")
    job_id = await ended(stack, lambda run: report(run, baseline=number, sigma=0.0))
    found = await image(stack, job_id, BASELINE)
    assert found.exact is exact
    assert pixels(found).shape == (32, 32, 3)


async def test_a_given_baseline_is_fitted_like_the_image(stack: Stack) -> None:
    given = tensor_pb2.Image(pixels=tensor_of(np.full((50, 50, 3), 77, np.uint8), tensor_pb2.DATA_TYPE_UINT8))
    kind = explanation_pb2.BASELINE_KIND_IMAGE
    asked = explanation_pb2.Baseline(kind=kind, image=given)
    job_id = await ended(stack, lambda run: report(run, baseline=kind, sigma=0.0), baseline=asked)
    found = await image(stack, job_id, BASELINE)
    assert found.exact
    assert (pixels(found) == 77).all()


async def test_a_thumbnail_and_an_overlay_keep_the_images_proportions(stack: Stack) -> None:
    job_id = await ended(stack)
    assert pixels(await image(stack, job_id, THUMBNAIL, longest=30)).shape == (20, 30, 3)
    overlay = pixels(await image(stack, job_id, OVERLAY))
    assert overlay.shape == (60, 90, 3)
    assert len(set(overlay[0, 0].tolist())) == 1, "what the model did not see is grey"
    original = np.asarray(PIL.Image.open(io.BytesIO(jpeg())))
    assert np.array_equal(overlay[10, 65], original[10, 65]), "saliency is 0 in this corner"
    assert not np.array_equal(overlay[10, 25], original[10, 25])


@pytest.mark.parametrize(("fit", "first_row_ends", "last_row_starts"), [("squash", 33, 56), ("pad", 55, 34)])
async def test_an_overlay_of_a_whole_image_has_the_mask_where_the_model_saw_it(
    stack: Stack, fit: str, first_row_ends: int, last_row_starts: int
) -> None:
    """Squashed, the image has the mask's whole diagonal; padded, that from a sixth to five sixths of its height."""
    job_id = await ended(stack, lambda run: report(run, fit=fit))
    overlay = pixels(await image(stack, job_id, OVERLAY)).astype(int)
    painted = np.abs(overlay - np.asarray(PIL.Image.open(io.BytesIO(jpeg())), int)).sum(2) > 0
    assert abs(np.flatnonzero(painted[0])[-1] - first_row_ends) <= 2
    assert abs(np.flatnonzero(painted[-1])[0] - last_row_starts) <= 2


async def test_a_models_input_is_drawn_by_the_models_preprocessing(stack: Stack) -> None:
    values = np.full((3, 224, 224), 0.5, np.float32)
    given = tensor_pb2.Image(model_input=tensor_of(values, tensor_pb2.DATA_TYPE_FLOAT32))
    found = await image(stack, await ended(stack, image=given), INPUT)
    assert not found.exact
    assert (pixels(found) == 128).all()


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value


async def test_what_there_is_not_is_refused_with_what_to_do(stack: Stack) -> None:
    job_id = await ended(stack)
    for fields, code, text in (
        ({"kind": 0}, grpc.StatusCode.INVALID_ARGUMENT, "JOB_IMAGE_OVERLAY"),
        ({"kind": 99}, grpc.StatusCode.INVALID_ARGUMENT, "JOB_IMAGE_OVERLAY"),
        ({"kind": THUMBNAIL, "longest": 4096}, grpc.StatusCode.INVALID_ARGUMENT, "at most 2,048"),
        ({"kind": OVERLAY, "mask": 1}, grpc.StatusCode.FAILED_PRECONDITION, "1 final masks so far"),
    ):
        error = await refused(image(stack, job_id, **fields))
        assert error.code() == code
        assert text in error.details()
    waiting = api.SubmitExplanationRequest(spec=spec(seed=3))
    job_id = (await stack.explanations.SubmitExplanation(waiting)).explanation.job_id
    error = await refused(image(stack, job_id, OVERLAY))
    assert (error.code(), "ask again when it runs" in error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, True)
    assert pixels(await image(stack, job_id, THUMBNAIL)).shape == (8, 8, 3)


async def test_images_that_are_no_longer_kept_are_said_to_be_gone() -> None:
    queue = Queue(own_settings(image_retention_seconds=0.001, sweep_seconds=0.02))
    async with running(queue=queue) as stack:
        job_id = await ended(stack)
        await images_are_gone(stack, job_id)
        error = await refused(image(stack, job_id, ORIGINAL))
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert "are deleted" in error.details()


async def test_a_job_shows_its_images_to_its_tenant_alone() -> None:
    from .test_operation import TOKENS as tokens
    from .test_operation import bearer

    async with running(quick_settings(tokens=tokens)) as stack:
        request = api.SubmitExplanationRequest(spec=spec())
        job_id = (await stack.explanations.SubmitExplanation(request, **bearer("ann"))).explanation.job_id
        asked = api.GetExplanationImageRequest(job_id=job_id, image=ORIGINAL)
        assert (await stack.explanations.GetExplanationImage(asked, **bearer("ann"))).image.encoded
        error = await refused(stack.explanations.GetExplanationImage(asked, **bearer("bob")))
        assert error.code() == grpc.StatusCode.NOT_FOUND
        error = await refused(
            stack.explanations.GetExplanationSpec(api.GetExplanationSpecRequest(job_id=job_id), **bearer("bob"))
        )
        assert error.code() == grpc.StatusCode.NOT_FOUND


async def test_the_sdk_draws_a_stored_job_on_its_image(stack: Stack) -> None:
    job_id = await ended(stack)
    async with AsyncClient(f"127.0.0.1:{stack.port}") as client:
        found = await client.get(job_id, with_image=True)
        assert found.overlay().size == (90, 60)
        assert found.view().exact
        assert (await client.spec(job_id)).model == "lamp"
        assert (await client.image(job_id, "thumbnail", longest=30)).pixels.shape == (20, 30, 3)
        with pytest.raises(InvalidRequest, match="model-input, baseline, thumbnail, overlay"):
            await client.image(job_id, "poster")

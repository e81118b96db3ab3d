"""The images of a job, for dashboards: the original, the model's input, the baseline, thumbnails and overlays.

Model inputs are computed by the code that workers use (`sagittal.imaging`), and baselines by the same formula, with
the preprocessing that the job's prediction event reports. So they equal the tested images.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import FailedPrecondition, InvalidRequest
from sagittal.core.jobs import Job, JobKind
from sagittal.core.tensors import array_of, tensor_of
from sagittal.imaging.fitting import Frame, fit_to_input, frame_of, picture_of_input, shrink
from sagittal.imaging.masks import place_mask
from sagittal.imaging.overlays import overlay, to_image, to_png
from sagittal.imaging.view import Picture, view_of
from sagittal.queue.protocol import JobQueue
from sagittal.server.images import Pictures
from sagittal.server.relay import stored_events
from sagittal.v1 import explanation_pb2, explanation_service_pb2, model_pb2, tensor_pb2

#: Largest length of the longer side of a drawing in pixels, and the defaults.
MAX_LONGEST, THUMBNAIL, OVERLAY = 2_048, 256, 1_024

#: Largest side of a model input whose baseline is computed here, in pixels: blurring a larger one takes seconds.
MAX_BASELINE = 1_024

_BASELINES: Mapping[int, str] = {
    number: name.removeprefix("BASELINE_KIND_").lower() for name, number in explanation_pb2.BaselineKind.items()
}

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Drawing:
    """A way to draw an image, and whether the result equals the tested image."""

    draw: Callable[[Pixels], Picture | Pixels]
    """Draws from the decoded image; runs in a thread."""
    exact: bool
    source: str = "image"
    """Name of the stored image from which it is drawn."""


class JobImages:
    """Serves GetExplanationSpec and GetExplanationImage for jobs that the caller may read."""

    def __init__(self, queue: JobQueue, pictures: Pictures) -> None:
        self._queue = queue
        self._pictures = pictures

    async def spec(self, job: Job) -> explanation_pb2.ExplanationSpec:
        """Returns a job's request without its images.

        Raises:
            FailedPrecondition: the job is not an explanation, or its request is deleted.
        """
        _check_kind(job)
        return explanation_pb2.ExplanationSpec.FromString((await self._queue.request_of(job.job_id)).request)

    async def image(
        self, job: Job, request: explanation_service_pb2.GetExplanationImageRequest
    ) -> explanation_service_pb2.GetExplanationImageResponse:
        """Returns one image of a job.

        Raises:
            InvalidRequest: no image is named, or `longest` is too large.
            FailedPrecondition: the images are deleted, or the job has no such image yet.
        """
        _check_kind(job)
        _check_request(request)
        images = (await self._queue.request_of(job.job_id)).images
        source = tensor_pb2.Image.FromString(images["image"])
        if request.image == explanation_service_pb2.JOB_IMAGE_ORIGINAL:
            return explanation_service_pb2.GetExplanationImageResponse(image=source, exact=True)
        prediction, masks = await self._reported(job)
        if request.image == explanation_service_pb2.JOB_IMAGE_THUMBNAIL:
            drawing = _Drawing(lambda pixels: shrink(pixels, request.longest or THUMBNAIL), exact=False)
        else:
            fitted = _Fitted(_how(job, prediction), source.WhichOneof("source") == "model_input")
            drawing = self._drawing(job, request, fitted, prediction, masks)
        if drawing.source not in images:
            raise FailedPrecondition("the image of the baseline is no longer kept", field="image")
        source = tensor_pb2.Image.FromString(images[drawing.source])
        if source.WhichOneof("source") == "model_input":
            source = await asyncio.to_thread(_as_pixels, source, _how(job, prediction))
        data = await self._pictures.draw(source, lambda pixels: _png(drawing.draw(pixels)), job.tenant)
        return explanation_service_pb2.GetExplanationImageResponse(
            image=tensor_pb2.Image(encoded=data), exact=drawing.exact
        )

    def _drawing(
        self,
        job: Job,
        request: explanation_service_pb2.GetExplanationImageRequest,
        fitted: "_Fitted",
        prediction: explanation_pb2.Prediction,
        masks: Mapping[int, explanation_pb2.Mask],
    ) -> _Drawing:
        """Returns the drawing of a model input, a baseline or an overlay."""
        match request.image:
            case explanation_service_pb2.JOB_IMAGE_MODEL_INPUT:
                return _Drawing(fitted.picture, exact=not fitted.is_input)
            case explanation_service_pb2.JOB_IMAGE_BASELINE:
                return fitted.baseline(prediction)
        if request.mask not in masks:
            text = f"job {job.job_id} has {len(masks)} final masks so far; there is none with number {request.mask}"
            raise FailedPrecondition(text, field="mask")
        saliency = array_of(masks[request.mask].saliency, "mask").astype(np.float32)
        return _Drawing(lambda pixels: fitted.overlay(pixels, saliency, request.longest or OVERLAY), exact=False)

    async def _reported(self, job: Job) -> tuple[explanation_pb2.Prediction, Mapping[int, explanation_pb2.Mask]]:
        """Returns the latest attempt's prediction and its final masks by index."""
        prediction, masks = explanation_pb2.Prediction(), dict[int, explanation_pb2.Mask]()
        async with aclosing(stored_events(self._queue, job)) as events:
            async for event in events:
                match event.WhichOneof("event"):
                    case "started":
                        prediction, masks = explanation_pb2.Prediction(), {}
                    case "prediction":
                        prediction = event.prediction
                    case "mask" if event.mask.final:
                        masks[event.mask.index] = event.mask
        return prediction, masks


@dataclass(frozen=True, slots=True)
class _Fitted:
    """Draws from an image whose preprocessing is known."""

    how: model_pb2.Preprocessing
    is_input: bool
    """True if the caller did the preprocessing."""

    def picture(self, pixels: Pixels) -> Pixels:
        """Returns the image fitted to the model's input."""
        return pixels if self.is_input else fit_to_input(pixels, self.how)

    def baseline(self, prediction: explanation_pb2.Prediction) -> _Drawing:
        """Returns the baseline."""
        kind = _BASELINES[prediction.baseline] if prediction.baseline else ""
        if not kind:
            raise FailedPrecondition("nothing was hidden in this job: it has no baseline", field="image")
        if self.how.input_size > MAX_BASELINE:
            text = f"the input has {self.how.input_size} pixels a side; baselines are drawn up to {MAX_BASELINE}"
            raise FailedPrecondition(text, field="image")
        if kind == "image":
            return _Drawing(self.picture, exact=not self.is_input, source="baseline")

        def draw(pixels: Pixels) -> Picture:
            picture = np.asarray(self.picture(pixels) / 255, np.float32)
            return view_of(picture, kind, prediction.blur_sigma).baseline

        return _Drawing(draw, exact=kind != "noise" and not self.is_input)

    def overlay(self, pixels: Pixels, saliency: NDArray[np.float32], longest: int) -> Picture:
        """Returns the image with a mask over it."""
        frame = Frame() if self.is_input else frame_of(pixels.shape[:2], self.how)
        small = np.asarray(shrink(pixels, longest) / 255, np.float32)
        return overlay(small, place_mask(saliency, frame, small.shape[:2]))


def _how(job: Job, prediction: explanation_pb2.Prediction) -> model_pb2.Preprocessing:
    if not prediction.HasField("preprocessing"):
        text = f"job {job.job_id} has not reported how its image became the model's input: ask again when it runs"
        raise FailedPrecondition(text, field="image")
    return prediction.preprocessing


def _as_pixels(source: tensor_pb2.Image, how: model_pb2.Preprocessing) -> tensor_pb2.Image:
    """Returns a model's input as an image, with the normalisation undone."""
    values = array_of(source.model_input, "image").astype(np.float32)
    return tensor_pb2.Image(pixels=tensor_of(picture_of_input(values, how), tensor_pb2.DATA_TYPE_UINT8))


def _png(found: Picture | Pixels) -> bytes:
    picture = found / np.float32(255) if found.dtype == np.uint8 else found
    return to_png(to_image(np.asarray(picture, np.float32)))


def _check_kind(job: Job) -> None:
    if job.kind is not JobKind.EXPLANATION:
        raise FailedPrecondition(f"job {job.job_id} is a {job.kind.value}, not an explanation", field="job_id")


def _check_request(request: explanation_service_pb2.GetExplanationImageRequest) -> None:
    known = explanation_service_pb2.JobImage.values()
    if not request.image or request.image not in known:
        names = ", ".join(explanation_service_pb2.JobImage.Name(number) for number in known if number)
        raise InvalidRequest(f"image is {request.image}; give one of {names}", field="image")
    if request.longest > MAX_LONGEST:
        raise InvalidRequest(f"longest is {request.longest}; give at most {MAX_LONGEST:,}", field="longest")

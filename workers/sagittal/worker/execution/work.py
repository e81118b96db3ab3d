"""Converts a leased job to steps for the engine, by a table of job kinds."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from google.protobuf.message import DecodeError

from sagittal.core.errors import JobFailed
from sagittal.core.images import ImageLimits
from sagittal.core.jobs import JobKind, Lease
from sagittal.core.patch_sets import check_patch_shape, check_sets
from sagittal.engine.requests import Upsampling
from sagittal.engine.task import Usage
from sagittal.explain import Concepts, explanation_steps
from sagittal.explain.explanation import measurements
from sagittal.explain.problem import predict
from sagittal.explain.sets.regions import ask_regions
from sagittal.models.loaded import LoadedModel
from sagittal.v1 import explanation_service_pb2, method_pb2, model_pb2, model_service_pb2
from sagittal.worker.concepts.jobs import ConceptShelf, fit_steps, with_concepts
from sagittal.worker.execution.checkpoints import unpack
from sagittal.worker.execution.requests import PROGRESS_SECONDS, read_image, read_question, read_request

#: Default number of classes in a prediction.
DEFAULT_TOP = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """Steps for the engine, with the data that the job's events need."""

    steps: Generator[Any, Any, Any]
    method: str = ""
    method_field: str = ""
    """Field of `Method` that contains the method; empty for jobs that are no explanations."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    max_evaluations: int | None = None
    measurements: int = 0
    """Approximate number of evaluations that measure the result."""
    used: Usage = field(default_factory=Usage)
    """Usage of an earlier attempt's search, from which this one resumes."""
    ran: float = 0.0
    """Run time of that attempt in seconds, including earlier ones."""
    progress_seconds: float = PROGRESS_SECONDS
    partial_masks: bool = False


def read_work(
    lease: Lease,
    loaded: LoadedModel,
    described: model_pb2.Model,
    limits: ImageLimits,
    shelf: ConceptShelf,
) -> Work:
    """Decodes a job.

    Raises:
        InvalidRequest or a related error: the request cannot be executed.
        JobFailed: the stored request is damaged.
    """
    try:
        if lease.job.kind is JobKind.FIT:
            restored = unpack(lease, loaded)
            return Work(steps=fit_steps(lease, loaded, limits, shelf), used=restored.usage, ran=restored.seconds)
        return _KINDS[lease.job.kind](lease, loaded, described, limits, shelf)
    except DecodeError as error:
        text = f"the stored request of this job is damaged ({error}): submit it again"
        raise JobFailed(text) from error


def _explanation(
    lease: Lease, loaded: LoadedModel, described: model_pb2.Model, limits: ImageLimits, shelf: ConceptShelf
) -> Work:
    request = read_request(lease.request, lease.images, loaded, described, limits)
    restored = unpack(lease, loaded)
    question, explainer = replace(request.question, restored=restored.state), request.explainer
    if isinstance(explainer, Concepts):
        explainer, question = with_concepts(explainer, question, lease, loaded, shelf)
    return Work(
        steps=explanation_steps(question, explainer, request.metrics),
        method=request.method.name,
        method_field=request.method.field,
        parameters=request.method.parameters,
        seed=request.question.seed,
        max_evaluations=request.max_evaluations,
        measurements=measurements(request.metrics, loaded.entry.preprocessing.input_size),
        used=restored.usage,
        ran=restored.seconds,
        progress_seconds=request.progress_seconds,
        partial_masks=request.partial_masks,
    )


def _prediction(
    lease: Lease, loaded: LoadedModel, _described: model_pb2.Model, limits: ImageLimits, _shelf: ConceptShelf
) -> Work:
    request = model_service_pb2.PredictRequest.FromString(lease.request)
    image = read_image(lease.images["image"], loaded, limits, "image")
    return Work(steps=predict(image, request.top or DEFAULT_TOP))


def _regions(
    lease: Lease, loaded: LoadedModel, described: model_pb2.Model, limits: ImageLimits, _shelf: ConceptShelf
) -> Work:
    request = explanation_service_pb2.ScoreRegionsRequest.FromString(lease.request)
    check_sets(request.sets, loaded.entry.preprocessing.input_size)
    check_patch_shape(request.image.patch_shape, "image.patch_shape")
    question = read_question(request.image, lease.images, loaded, described, limits, "image")
    sets = [tuple(each.patches) for each in request.sets]
    shape = _SHAPES[request.image.patch_shape]
    steps = ask_regions(question, request.sets[0].grid, sets, hide=request.hide, upsampling=shape)
    return Work(steps=steps, seed=question.seed)


_SHAPES: Mapping[int, Upsampling] = {
    method_pb2.PATCH_SHAPE_UNSPECIFIED: Upsampling.BOX,
    method_pb2.PATCH_SHAPE_BOX: Upsampling.BOX,
    method_pb2.PATCH_SHAPE_TENT: Upsampling.ALIGNED,
}

_KINDS: Mapping[JobKind, Callable[[Lease, LoadedModel, model_pb2.Model, ImageLimits, ConceptShelf], Work]] = {
    JobKind.EXPLANATION: _explanation,
    JobKind.PREDICTION: _prediction,
    JobKind.REGIONS: _regions,
}

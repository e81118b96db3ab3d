"""What a caller asks, as the API's messages."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Required, TypedDict, Unpack

from sagittal.client.building import (
    build,
    build_durations,
    check_kind,
    check_names,
    check_several,
    enum_value,
    split_model,
)
from sagittal.client.errors import InvalidRequest
from sagittal.client.events import PatchSet
from sagittal.client.images import ImageLike, encode_image
from sagittal.client.methods import MethodLike
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import explanation_service_pb2 as service_pb
from sagittal.v1 import method_pb2, tensor_pb2

LaneName = Literal["interactive", "batch"]
CacheName = Literal["use", "refresh", "bypass"]
BaselineName = Literal["blur", "black", "mean", "noise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What replaces the hidden part of the image. A name alone is enough for most: `baseline="black"`."""

    kind: Literal["blur", "black", "mean", "noise", "image"] = "blur"
    image: ImageLike | None = None
    """For the kind "image", what replaces the hidden part: an image of another class, for instance."""
    blur_sigma: float = 0.0
    """For the kind "blur", in pixels of the model's input; 0 means one chosen for its size."""


@dataclass(frozen=True, slots=True)
class Box:
    """Where the object is, in pixels of the model's input: left and top inclusive, right and bottom exclusive."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """What is measured on the result."""

    curves: bool = True
    """Measures insertion and deletion."""
    protocol: Literal["mask", "pixel"] = "mask"
    """Resolution of the curves: cells of the mask, or pixels of the upsampled mask (RISE)."""
    curve_steps: int = 0
    """Steps of each curve at mask resolution; 0 means 50."""
    boxes: Sequence[Box] = ()
    """Where the object is: the pointing game is played when there is at least one."""


class BatchOptions(TypedDict, total=False):
    """What is asked of each of many images."""

    model: Required[str]
    """Name of a registered model, or "name@version"."""
    model_version: str
    """Empty means the latest."""
    method: MethodLike | None
    """None means iGOS++ with its defaults."""
    target: int | str | None
    """Index or label of the class to explain; None means the model's top class."""
    baseline: Baseline | BaselineName
    metrics: Metrics
    seed: int
    lane: LaneName
    """"interactive" (a person waits) or "batch"."""
    deadline: float | None
    """Seconds that the job may take from its acceptance, waiting included; None means the service's limit."""
    max_evaluations: int
    """Most model evaluations of the search; the best result so far is returned, marked. 0 means no bound,
    and 1,000,000,000 is the most that a service takes."""
    cache: CacheName
    partial_masks: bool
    """Streams the mask as it forms."""
    progress_interval: float
    """Least time between two progress events in seconds."""


class ExplainOptions(BatchOptions, total=False):
    """What is asked besides the image."""

    request_id: str
    """Key of the caller's: the same key and content give the same job."""


def checked_options(options: ExplainOptions) -> ExplainOptions:
    """Returns options whose model is split from its version. Raises InvalidRequest for one that there is not."""
    known = ExplainOptions.__required_keys__ | ExplainOptions.__optional_keys__
    check_names(options, known, ExplainOptions.__required_keys__)
    model, version = split_model(options["model"], options.get("model_version", ""), "spec")
    return {**options, "model": model, "model_version": version}


def build_spec(
    packed_method: method_pb2.Method | None,
    *,
    model: str,
    model_version: str = "",
    method: MethodLike | None = None,  # noqa: ARG001 - the caller resolved it into `packed_method`
    target: int | str | None = None,
    baseline: Baseline | BaselineName = "blur",
    metrics: Metrics | None = None,
    seed: int = 0,
    lane: LaneName = "interactive",
    deadline: float | None = None,
    max_evaluations: int = 0,
    request_id: str = "",
    cache: CacheName = "use",
    partial_masks: bool = False,
    progress_interval: float = 0.0,
) -> pb.ExplanationSpec:
    """Returns the request of one explanation, without its image. Raises InvalidRequest, naming the field."""
    spec = build(
        pb.ExplanationSpec,
        "spec",
        model=model,
        model_version=model_version,
        method=packed_method,
        baseline=_baseline(baseline, "spec.baseline"),
        metrics=_metrics(metrics or Metrics()),
        lane=enum_value(pb.Lane, "LANE_", lane, "spec.lane"),
        request_id=request_id or f"client-{uuid.uuid4().hex}",
        cache_policy=enum_value(pb.CachePolicy, "CACHE_POLICY_", cache, "spec.cache_policy"),
        partial_masks=partial_masks,
        seed=seed,
        max_evaluations=max_evaluations,
        target=None if target is None else build_target(target, "spec.target"),
    )
    build_durations(spec, "spec", {"deadline": deadline, "progress_interval": progress_interval})
    return spec


def with_image(spec: pb.ExplanationSpec, image: ImageLike) -> pb.ExplanationSpec:
    """Returns a copy of a request with its image."""
    copy = pb.ExplanationSpec()
    copy.CopyFrom(spec)
    copy.image.CopyFrom(encode_image(image))
    return copy


def build_target(target: int | str, path: str) -> pb.Target:
    """Returns a class by index or label."""
    if isinstance(target, str):
        return build(pb.Target, path, label=target)
    return build(pb.Target, path, index=target)


class RegionOptions(TypedDict, total=False):
    """What the patches belong to: a job, or an image with its model."""

    job_id: str
    image: ImageLike | None
    model: str
    model_version: str
    target: int | str | None
    baseline: Baseline | BaselineName
    hide: bool
    """Hides the sets instead of showing only them."""


def build_regions(sets: Sequence[PatchSet], **options: Unpack[RegionOptions]) -> service_pb.ScoreRegionsRequest:
    """Returns the request to score sets of patches, of a job or of an image and a model."""
    check_names(options, RegionOptions.__optional_keys__)
    job_id, image = options.get("job_id", ""), options.get("image")
    if bool(job_id) == (image is not None):
        raise InvalidRequest("give either a job_id, or an image with its model", field="subject")
    request = build(service_pb.ScoreRegionsRequest, hide=options.get("hide", False))
    for number, each in enumerate(check_several(sets, "sets", "PatchSet(grid, patches)")):
        patches = check_kind(each, PatchSet, f"sets[{number}]", "PatchSet(grid, patches)")
        request.sets.append(build(pb.PatchSet, f"sets[{number}]", grid=patches.grid, patches=patches.patches))
    if image is None:
        request.MergeFrom(build(service_pb.ScoreRegionsRequest, job_id=job_id))
        return request
    subject, target = request.image, options.get("target")
    model, version = split_model(options.get("model", ""), options.get("model_version", ""), "image")
    subject.model, subject.model_version = model, version
    subject.image.CopyFrom(encode_image(image, field="image.image"))
    subject.baseline.CopyFrom(_baseline(options.get("baseline", "blur"), "image.baseline"))
    if target is not None:
        subject.target.CopyFrom(build_target(target, "image.target"))
    return request


def build_states(states: Sequence[str] | str) -> Sequence[pb.JobState.ValueType]:
    """Returns states by name, such as "running"; one name stands for itself."""
    names = [states] if isinstance(states, str) else check_several(states, "states", "names such as 'running'")
    return [enum_value(pb.JobState, "JOB_STATE_", name, "states") for name in names]


def _baseline(baseline: Baseline | str, path: str) -> pb.Baseline:
    if isinstance(baseline, str):
        return pb.Baseline(kind=enum_value(pb.BaselineKind, "BASELINE_KIND_", baseline, f"{path}.kind"))
    given = check_kind(baseline, Baseline, path, "a name such as 'black', or Baseline(...)")
    message = _baseline(given.kind, path)
    message.MergeFrom(build(pb.Baseline, path, blur_sigma=given.blur_sigma))
    if given.image is not None:
        message.image.CopyFrom(encode_image(given.image, field=f"{path}.image"))
    return message


def _metrics(metrics: Metrics) -> pb.Metrics:
    path = "spec.metrics"
    given = check_kind(metrics, Metrics, path, "Metrics(...)")
    return build(
        pb.Metrics,
        path,
        skip_curves=not given.curves,
        curve_protocol=enum_value(pb.CurveProtocol, "CURVE_PROTOCOL_", given.protocol, f"{path}.curve_protocol"),
        curve_steps=given.curve_steps,
        boxes=[_box(box, f"{path}.boxes") for box in check_several(given.boxes, f"{path}.boxes", "Box(...)")],
    )


def _box(box: Box, path: str) -> tensor_pb2.Box:
    given = check_kind(box, Box, path, "Box(left, top, right, bottom)")
    return build(tensor_pb2.Box, path, left=given.left, top=given.top, right=given.right, bottom=given.bottom)

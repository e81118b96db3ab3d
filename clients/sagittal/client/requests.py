"""What a caller asks, as the API's messages."""

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Required, TypedDict

from google.protobuf import duration_pb2

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


class ExplainOptions(TypedDict, total=False):
    """What is asked besides the image."""

    model: Required[str]
    """Name of a registered model."""
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
    request_id: str
    """Key of the caller's: the same key and content give the same job."""
    cache: CacheName
    partial_masks: bool
    """Streams the mask as it forms."""
    progress_interval: float
    """Least time between two progress events in seconds."""


def build_spec(
    image: ImageLike,
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
    """Returns the request of one explanation. Raises InvalidRequest, naming the field."""
    for name, value in (("seed", seed), ("max_evaluations", max_evaluations)):
        if not 0 <= value < 2**64:
            raise InvalidRequest(f"got {value}; expected 0 to 2**64 - 1", field=f"spec.{name}")
    spec = pb.ExplanationSpec(
        model=model,
        model_version=model_version,
        image=encode_image(image),
        method=packed_method,
        baseline=_baseline(baseline),
        metrics=_metrics(metrics or Metrics()),
        lane=_enum_value(pb.Lane, "LANE_", lane, "spec.lane"),
        request_id=request_id or f"client-{uuid.uuid4().hex}",
        cache_policy=_enum_value(pb.CachePolicy, "CACHE_POLICY_", cache, "spec.cache_policy"),
        partial_masks=partial_masks,
        seed=seed,
        max_evaluations=max_evaluations,
    )
    _set_durations(spec, {"deadline": deadline or 0.0, "progress_interval": progress_interval})
    if target is not None:
        spec.target.CopyFrom(build_target(target))
    return spec


def build_target(target: int | str) -> pb.Target:
    """Returns a class by index or label."""
    if isinstance(target, str):
        return pb.Target(label=target)
    if not 0 <= target < 2**32:
        raise InvalidRequest(f"got {target}; expected the index of a class, from 0", field="spec.target.index")
    return pb.Target(index=target)


def build_regions(
    sets: Sequence[PatchSet],
    *,
    job_id: str = "",
    image: ImageLike | None = None,
    model: str = "",
    model_version: str = "",
    target: int | str | None = None,
    baseline: Baseline | BaselineName = "blur",
    hide: bool = False,
) -> service_pb.ScoreRegionsRequest:
    """Returns the request to score sets of patches, of a job or of an image and a model."""
    if bool(job_id) == (image is not None):
        raise InvalidRequest("give either a job_id, or an image with its model", field="subject")
    request = service_pb.ScoreRegionsRequest(
        sets=[pb.PatchSet(grid=each.grid, patches=each.patches) for each in sets], hide=hide
    )
    if image is None:
        request.job_id = job_id
        return request
    subject = request.image
    subject.model, subject.model_version = model, model_version
    subject.image.CopyFrom(encode_image(image, field="image.image"))
    subject.baseline.CopyFrom(_baseline(baseline))
    if target is not None:
        subject.target.CopyFrom(build_target(target))
    return request


def build_states(states: Sequence[str]) -> Sequence[pb.JobState.ValueType]:
    """Returns states by name, such as "running"."""
    return [_enum_value(pb.JobState, "JOB_STATE_", state, "states") for state in states]


def _baseline(baseline: Baseline | str) -> pb.Baseline:
    if isinstance(baseline, str):
        return pb.Baseline(kind=_enum_value(pb.BaselineKind, "BASELINE_KIND_", baseline, "spec.baseline.kind"))
    message = _baseline(baseline.kind)
    message.blur_sigma = baseline.blur_sigma
    if baseline.image is not None:
        message.image.CopyFrom(encode_image(baseline.image, field="spec.baseline.image"))
    return message


def _metrics(metrics: Metrics) -> pb.Metrics:
    return pb.Metrics(
        skip_curves=not metrics.curves,
        curve_protocol=_enum_value(
            pb.CurveProtocol, "CURVE_PROTOCOL_", metrics.protocol, "spec.metrics.curve_protocol"
        ),
        curve_steps=metrics.curve_steps,
        boxes=[_box(box) for box in metrics.boxes],
    )


def _box(box: Box) -> tensor_pb2.Box:
    return tensor_pb2.Box(left=box.left, top=box.top, right=box.right, bottom=box.bottom)


def _set_durations(spec: pb.ExplanationSpec, durations: Mapping[str, float]) -> None:
    for name, seconds in durations.items():
        if not (math.isfinite(seconds) and seconds >= 0):
            raise InvalidRequest(f"got {seconds}; expected seconds, at least 0", field=f"spec.{name}")
        if seconds:
            whole, part = divmod(round(seconds * 1e9), 10**9)
            getattr(spec, name).CopyFrom(duration_pb2.Duration(seconds=whole, nanos=part))


def _enum_value(wrapper: Any, prefix: str, name: str, field: str) -> Any:
    full = prefix + name.upper().replace("-", "_")
    known = [each for each in wrapper.keys() if not each.endswith("_UNSPECIFIED")]  # noqa: SIM118 - no dict
    if full not in known:
        names = ", ".join(each.removeprefix(prefix).lower() for each in known)
        raise InvalidRequest(f"got {name!r}; expected one of: {names}", field=field)
    return wrapper.Value(full)

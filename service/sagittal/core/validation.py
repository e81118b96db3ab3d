"""An explanation's specification, checked field by field against the model it is about.

Every fault raises InvalidRequest with the path of the field, what was given and what is admitted.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import duration_pb2
from google.protobuf.descriptor import EnumDescriptor

from sagittal.core.costs import MAX_EVALUATIONS, setting_of
from sagittal.core.errors import InvalidRequest
from sagittal.core.methods import ResolvedMethod, resolve
from sagittal.core.parameters import shortest
from sagittal.core.targets import is_described, resolve_target
from sagittal.v1 import explanation_pb2, model_pb2, tensor_pb2

#: Characters of `request_id`.
MAX_REQUEST_ID = 128

#: Steps of a curve at mask resolution.
MAX_CURVE_STEPS = 1_000

#: Steps of a curve where the request does not say.
DEFAULT_CURVE_STEPS = 50

#: Boxes of the pointing game.
MAX_BOXES = 1_000

#: Standard deviation of a blurred baseline, in pixels.
MAX_BLUR_SIGMA = 1_000.0

#: Time between two progress events, in seconds.
MAX_PROGRESS_INTERVAL = 3_600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLimits:
    """How long jobs may take, waiting included, in seconds."""

    default: float
    """For a job whose request names no deadline."""
    maximum: float
    """Longest deadline that a request may name."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CheckedSpec:
    """A valid specification, resolved: nothing in it is left to the defaults of whoever reads it later."""

    model: model_pb2.Model
    request: explanation_pb2.ExplanationSpec
    """The specification without its images, with every parameter, the class's index and all that was left out."""
    images: Mapping[str, tuple[str, tensor_pb2.Image]]
    """The images by name, each with its path in the request."""
    method: ResolvedMethod | None
    """None if no worker has loaded the model yet: the worker that does checks method and label."""
    target: int | None
    """Index of the class; None for the model's top class, and for a label that only a worker knows."""
    deadline: float
    """Seconds from acceptance to the end."""

    @property
    def method_name(self) -> str:
        """The method as the catalogue lists it; empty if it is not known yet."""
        return self.method.name if self.method is not None else ""

    @property
    def question(self) -> Mapping[str, Any] | None:
        """Everything but the images that the answer depends on; None for an answer that is never shared."""
        if self.method is None or self.method.stateful:
            return None
        request, model = self.request, self.model
        return {
            "model": [model.name, model.version, model.revision, model.digest],
            "method": [self.method.name, dict(self.method.parameters)],
            "target": self.target,
            "baseline": [request.baseline.kind, shortest(request.baseline.blur_sigma)],
            "metrics": self._metrics,
            "seed": request.seed,
            "max_evaluations": request.max_evaluations,
            "partial_masks": request.partial_masks,
        }

    @property
    def setting(self) -> str:
        """What of the request decides its cost; empty if the method is not known yet."""
        if self.method is None:
            return ""
        skip, protocol, steps, _ = self._metrics
        return setting_of(self.method.parameters, curve_steps=0 if skip else steps, curve_protocol=str(protocol))

    @property
    def most_evaluations(self) -> int:
        """The evaluations within which its budget keeps a job, two curves included; 0 for no bound."""
        skip, _, steps, _ = self._metrics
        bound = self.request.max_evaluations
        return bound + (0 if skip else 2 * steps) if bound else 0

    @property
    def _metrics(self) -> list[Any]:
        metrics = self.request.metrics
        boxes = [[box.left, box.top, box.right, box.bottom] for box in metrics.boxes]
        return [metrics.skip_curves, metrics.curve_protocol, metrics.curve_steps, boxes]


def check_spec(
    spec: explanation_pb2.ExplanationSpec, model: model_pb2.Model, limits: TimeLimits, *, field: str = "spec"
) -> CheckedSpec:
    """Checks and resolves everything but the content of the images; method and label if a worker has loaded the model.

    Takes the images out of `spec`.

    Raises:
        InvalidRequest: a field is wrong.
        NotServed, FailedPrecondition: the method is not to be had for this model.
    """
    check_image_set(spec.image, f"{field}.image")
    check_request_id(spec.request_id, f"{field}.request_id")
    _check_enum(explanation_pb2.Lane.DESCRIPTOR, spec.lane, f"{field}.lane")
    _check_enum(explanation_pb2.CachePolicy.DESCRIPTOR, spec.cache_policy, f"{field}.cache_policy")
    check_baseline(spec.baseline, f"{field}.baseline")
    _check_metrics(spec.metrics, model.preprocessing.input_size, f"{field}.metrics")
    if spec.max_evaluations > MAX_EVALUATIONS:
        text = f"{field}.max_evaluations is {spec.max_evaluations}; give 1 to {MAX_EVALUATIONS:,}, or 0 for no bound"
        raise InvalidRequest(text, field=f"{field}.max_evaluations")
    if spec.HasField("progress_interval"):
        _seconds(spec.progress_interval, 0.0, MAX_PROGRESS_INTERVAL, f"{field}.progress_interval")
    described = is_described(model)
    target_known = spec.HasField("target") and (described or spec.target.WhichOneof("target") != "label")
    method = resolve(spec.method, model.methods, field=f"{field}.method") if described else None
    target = resolve_target(spec.target, model, f"{field}.target") if target_known else None
    deadline = _deadline(spec, limits, f"{field}.deadline")
    images = _take_images(spec, field)
    return CheckedSpec(
        model=model,
        request=_resolved(spec, model, method, target),
        images=images,
        method=method,
        target=target,
        deadline=deadline,
    )


def _take_images(spec: explanation_pb2.ExplanationSpec, field: str) -> Mapping[str, tuple[str, tensor_pb2.Image]]:
    images = {"image": (f"{field}.image", spec.image)}
    spec.ClearField("image")
    if spec.baseline.HasField("image"):
        images["baseline"] = (f"{field}.baseline.image", spec.baseline.image)
        spec.baseline.ClearField("image")
    return images


def _resolved(
    spec: explanation_pb2.ExplanationSpec, model: model_pb2.Model, method: ResolvedMethod | None, target: int | None
) -> explanation_pb2.ExplanationSpec:
    """Returns a specification without images in which nothing that is known is left to a default."""
    resolved = explanation_pb2.ExplanationSpec()
    resolved.CopyFrom(spec)
    resolved.model_version = model.version
    if method is not None:
        resolved.method.CopyFrom(method.message())
    if target is not None:
        resolved.target.index = target
    resolved.baseline.kind = spec.baseline.kind or explanation_pb2.BASELINE_KIND_BLUR
    resolved.metrics.curve_protocol = spec.metrics.curve_protocol or explanation_pb2.CURVE_PROTOCOL_MASK
    resolved.metrics.curve_steps = spec.metrics.curve_steps or DEFAULT_CURVE_STEPS
    return resolved


def check_image_set(image: tensor_pb2.Image, field: str) -> None:
    """Raises InvalidRequest where there is no picture."""
    if image.WhichOneof("source") is None:
        text = f"{field} is not set; give a JPEG, PNG or WebP file in `encoded`, or a tensor"
        raise InvalidRequest(text, field=field)


def check_baseline(baseline: explanation_pb2.Baseline, field: str) -> None:
    """Checks everything of a baseline but the content of its picture. Raises InvalidRequest."""
    _check_enum(explanation_pb2.BaselineKind.DESCRIPTOR, baseline.kind, f"{field}.kind")
    by_image = baseline.kind == explanation_pb2.BASELINE_KIND_IMAGE
    if by_image:
        check_image_set(baseline.image, f"{field}.image")
    elif baseline.HasField("image"):
        text = f"{field}.image is set; that needs BASELINE_KIND_IMAGE in {field}.kind"
        raise InvalidRequest(text, field=f"{field}.image")
    blurred = baseline.kind in (explanation_pb2.BASELINE_KIND_UNSPECIFIED, explanation_pb2.BASELINE_KIND_BLUR)
    sigma = baseline.blur_sigma
    if not (math.isfinite(sigma) and 0 <= sigma <= MAX_BLUR_SIGMA):
        text = f"{field}.blur_sigma is {sigma:g}; give 0 (chosen for you) to {MAX_BLUR_SIGMA:g} pixels"
        raise InvalidRequest(text, field=f"{field}.blur_sigma")
    if sigma and not blurred:
        text = f"{field}.blur_sigma is {sigma:g}; it belongs to BASELINE_KIND_BLUR alone: leave it out"
        raise InvalidRequest(text, field=f"{field}.blur_sigma")


def check_request_id(request_id: str, field: str) -> None:
    """Raises InvalidRequest where the caller's key is too long."""
    if len(request_id) > MAX_REQUEST_ID:
        text = f"{field} has {len(request_id)} characters; give at most {MAX_REQUEST_ID}"
        raise InvalidRequest(text, field=field)


def _deadline(spec: explanation_pb2.ExplanationSpec, limits: TimeLimits, field: str) -> float:
    if not spec.HasField("deadline"):
        return limits.default
    seconds = _seconds(spec.deadline, 0.0, limits.maximum, field)
    if seconds == 0:
        raise InvalidRequest(f"{field} is 0 s; give more, up to {limits.maximum:g} s", field=field)
    return seconds


def _seconds(duration: duration_pb2.Duration, low: float, high: float, field: str) -> float:
    seconds = duration.seconds + duration.nanos / 1e9
    if not low <= seconds <= high:
        raise InvalidRequest(f"{field} is {seconds:g} s; give {low:g} to {high:g} s", field=field)
    return float(seconds)


def _check_enum(enum: EnumDescriptor, number: int, field: str) -> None:
    if number not in enum.values_by_number:
        raise InvalidRequest(f"{field} is {number}; give one of {_values(enum.values_by_name)}", field=field)


def _values(names: Iterable[str]) -> str:
    return ", ".join(name for name in names if not name.endswith("_UNSPECIFIED"))


def _check_metrics(metrics: explanation_pb2.Metrics, input_size: int, field: str) -> None:
    _check_enum(explanation_pb2.CurveProtocol.DESCRIPTOR, metrics.curve_protocol, f"{field}.curve_protocol")
    if metrics.curve_steps > MAX_CURVE_STEPS:
        text = f"{field}.curve_steps is {metrics.curve_steps}; give 1 to {MAX_CURVE_STEPS:,}, or 0 for 50"
        raise InvalidRequest(text, field=f"{field}.curve_steps")
    if len(metrics.boxes) > MAX_BOXES:
        text = f"{field}.boxes has {len(metrics.boxes)} boxes; give at most {MAX_BOXES:,}"
        raise InvalidRequest(text, field=f"{field}.boxes")
    for index, box in enumerate(metrics.boxes):
        _check_box(box, input_size, f"{field}.boxes[{index}]")


def _check_box(box: tensor_pb2.Box, input_size: int, field: str) -> None:
    for low, high in (("left", "right"), ("top", "bottom")):
        start, end = getattr(box, low), getattr(box, high)
        if end <= start:
            text = f"{field}.{high} is {end}; give more than {low}, which is {start}"
            raise InvalidRequest(text, field=f"{field}.{high}")
        if input_size and end > input_size:
            text = f"{field}.{high} is {end}; the model's input is {input_size} pixels wide and high"
            raise InvalidRequest(text, field=f"{field}.{high}")

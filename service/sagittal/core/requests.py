"""Checks a specification field by field against its model, and fills in all defaults.

An InvalidRequest names the field, the given value and the allowed values.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import duration_pb2

from sagittal.core.enums import check_enum
from sagittal.core.errors import InvalidRequest
from sagittal.core.images import check_image_set
from sagittal.core.jobs import MAX_EVALUATIONS, setting_of
from sagittal.core.measurements import (
    DEFAULT_CONFIDENCE,
    DEFAULT_CURVE_STEPS,
    DEFAULT_DELTA,
    DEFAULT_DRAWS,
    background_name,
    check_metrics,
)
from sagittal.core.methods import ResolvedMethod, resolve, shortest
from sagittal.core.targets import is_described, resolve_target
from sagittal.core.text import shown
from sagittal.v1 import explanation_pb2, model_pb2, tensor_pb2

#: Characters of `request_id`.
MAX_REQUEST_ID = 128

#: Labels of a job.
MAX_JOB_LABELS = 16

_LABEL_KEY = re.compile(r"^[A-Za-z0-9._/-]{1,63}$")


#: Standard deviation of a blurred baseline, in pixels.
MAX_BLUR_SIGMA = 1_000.0

#: Time between two progress events, in seconds.
MAX_PROGRESS_INTERVAL = 3_600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLimits:
    """Limits for the time from submission to the end of a job, in seconds."""

    default: float
    """Used if the request sets no deadline."""
    maximum: float
    """Longest deadline that a request may set."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CheckedSpec:
    """A valid specification with all defaults filled in, so that its meaning cannot change later."""

    model: model_pb2.Model
    request: explanation_pb2.ExplanationSpec
    """The specification without its images, with every parameter, the class index and all defaults."""
    images: Mapping[str, tuple[str, tensor_pb2.Image]]
    """The images by name, each with its path in the request."""
    method: ResolvedMethod | None
    """None if no worker has loaded the model yet; then the worker that loads it checks method and label."""
    target: int | None
    """Class index; None for the model's top class, and for a label that only a worker can resolve."""
    deadline: float
    """Seconds from submission to the job's latest end."""

    @property
    def method_name(self) -> str:
        """Name of the method in the catalogue; empty if it is not known yet."""
        return self.method.name if self.method is not None else ""

    @property
    def question(self) -> Mapping[str, Any] | None:
        """Everything except the images that the answer depends on; None if the answer is never shared."""
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
        """The part of the request that determines its cost; empty if the method is not known yet."""
        if self.method is None:
            return ""
        metrics = self.request.metrics
        others: dict[str, float | str] = {
            "curve_steps": 0 if metrics.skip_curves else metrics.curve_steps,
            "curve_protocol": str(metrics.curve_protocol),
        }
        if metrics.predictability:
            others["predictability"] = metrics.predictability
        if metrics.stability:
            others["stability"] = metrics.stability
        if metrics.HasField("robustness"):
            others["robustness_draws"] = metrics.robustness.max_draws
        return setting_of(self.method.parameters, **others)

    @property
    def most_evaluations(self) -> int:
        """Upper bound for the job's evaluations from its budget, including its metrics; 0 if there is no bound."""
        metrics, bound = self.request.metrics, self.request.max_evaluations
        if not bound or metrics.HasField("robustness") or metrics.stability:
            return 0
        return bound + (0 if metrics.skip_curves else 2 * metrics.curve_steps) + metrics.predictability

    @property
    def _metrics(self) -> list[Any]:
        metrics = self.request.metrics
        boxes = [[box.left, box.top, box.right, box.bottom] for box in metrics.boxes]
        # Left out if not asked for, so that answers stored before these metrics existed are still found.
        occlusions = [metrics.predictability] if metrics.predictability else []
        test = metrics.robustness
        robustness = [[test.delta, test.confidence, test.max_draws]] if metrics.HasField("robustness") else []
        curves = [metrics.skip_curves, metrics.curve_protocol, metrics.curve_steps, boxes]
        runs = [f"stability {metrics.stability}"] if metrics.stability else []
        return [*curves, *occlusions, *runs, *robustness]


def check_labels(labels: Mapping[str, str], field: str) -> None:
    """Raises InvalidRequest for a label with a wrong key."""
    for key in labels:
        if not _LABEL_KEY.match(key):
            text = f"{field} has the key {shown(key)}; give 1 to 63 letters, digits, '-', '_', '.' and '/'"
            raise InvalidRequest(text, field=field)


def check_spec(
    spec: explanation_pb2.ExplanationSpec, model: model_pb2.Model, limits: TimeLimits, *, field: str = "spec"
) -> CheckedSpec:
    """Checks and resolves everything except image contents; method and label only if a worker has loaded the model.

    Removes the images from `spec`.

    Raises:
        InvalidRequest: a field is wrong.
        NotServed, FailedPrecondition: the model's workers do not offer the method, or the model does not support it.
    """
    check_image_set(spec.image, f"{field}.image")
    check_request_id(spec.request_id, f"{field}.request_id")
    check_labels(spec.labels, f"{field}.labels")
    check_enum(explanation_pb2.Lane.DESCRIPTOR, spec.lane, f"{field}.lane")
    check_enum(explanation_pb2.CachePolicy.DESCRIPTOR, spec.cache_policy, f"{field}.cache_policy")
    check_baseline(spec.baseline, f"{field}.baseline")
    check_metrics(spec.metrics, model.preprocessing.input_size, f"{field}.metrics")
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
    for index, image in enumerate(spec.metrics.robustness.images):
        images[background_name(index)] = (f"{field}.metrics.robustness.images[{index}]", image)
    if spec.metrics.HasField("robustness"):
        spec.metrics.robustness.ClearField("images")
    return images


def _resolved(
    spec: explanation_pb2.ExplanationSpec, model: model_pb2.Model, method: ResolvedMethod | None, target: int | None
) -> explanation_pb2.ExplanationSpec:
    """Returns a copy of the specification in which every known default is filled in."""
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
    if spec.metrics.HasField("robustness"):
        test = resolved.metrics.robustness
        test.delta, test.confidence = test.delta or DEFAULT_DELTA, test.confidence or DEFAULT_CONFIDENCE
        test.max_draws = test.max_draws or DEFAULT_DRAWS
    return resolved


def check_baseline(baseline: explanation_pb2.Baseline, field: str) -> None:
    """Checks a baseline, except the content of its image. Raises InvalidRequest."""
    check_enum(explanation_pb2.BaselineKind.DESCRIPTOR, baseline.kind, f"{field}.kind")
    by_image = baseline.kind == explanation_pb2.BASELINE_KIND_IMAGE
    if by_image:
        check_image_set(baseline.image, f"{field}.image")
    elif baseline.HasField("image"):
        text = f"{field}.image is set; set {field}.kind to BASELINE_KIND_IMAGE"
        raise InvalidRequest(text, field=f"{field}.image")
    blurred = baseline.kind in (explanation_pb2.BASELINE_KIND_UNSPECIFIED, explanation_pb2.BASELINE_KIND_BLUR)
    sigma = baseline.blur_sigma
    if not (math.isfinite(sigma) and 0 <= sigma <= MAX_BLUR_SIGMA):
        text = f"{field}.blur_sigma is {sigma:g}; give 0 (automatic) to {MAX_BLUR_SIGMA:g} pixels"
        raise InvalidRequest(text, field=f"{field}.blur_sigma")
    if sigma and not blurred:
        text = f"{field}.blur_sigma is {sigma:g}; only BASELINE_KIND_BLUR uses it: leave it out"
        raise InvalidRequest(text, field=f"{field}.blur_sigma")


def check_request_id(request_id: str, field: str) -> None:
    """Raises InvalidRequest if the idempotency key is too long."""
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

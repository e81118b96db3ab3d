"""Checks requests field by field: an explanation's specification against its model, and a fit's annotated parts.

An InvalidRequest names the field, the given value and the allowed values.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from itertools import islice
from typing import Any

from google.protobuf import duration_pb2

from sagittal.core.enums import check_enum
from sagittal.core.errors import FailedPrecondition, InvalidRequest
from sagittal.core.jobs import MAX_EVALUATIONS, setting_of
from sagittal.core.methods import LOADING_SECONDS, ResolvedMethod, resolve, shortest
from sagittal.core.text import EXCERPT, shown
from sagittal.v1 import concept_service_pb2, explanation_pb2, model_pb2, tensor_pb2

#: Labels suggested for an unknown one.
_SUGGESTIONS = 3

#: Labels that are compared letter by letter with an unknown one.
_CANDIDATES = 128

#: Classes of one label that an error lists.
_CLASSES_SHOWN = 12


def is_described(model: model_pb2.Model) -> bool:
    """Returns whether a worker has loaded the model; only then are its methods, labels and classes known."""
    return bool(model.methods)


def resolve_target(target: explanation_pb2.Target, model: model_pb2.Model, field: str = "target") -> int:
    """Returns the index of the class.

    Raises:
        InvalidRequest: the class does not exist, or the label is ambiguous.
        FailedPrecondition: the model has no labels, or no worker has loaded it yet.
    """
    chosen = target.WhichOneof("target")
    if chosen is None:
        raise InvalidRequest(
            f"{field} is empty; give `index` or `label`, or leave it out for the top class", field=field
        )
    if chosen == "label":
        return _by_label(target.label, model, f"{field}.label")
    classes = model.classes or len(model.labels)
    if classes and target.index >= classes:
        text = f"{field}.index is {target.index}; {model.name} has {classes:,} classes: give 0 to {classes - 1}"
        raise InvalidRequest(text, field=f"{field}.index")
    return int(target.index)


def _by_label(label: str, model: model_pb2.Model, field: str) -> int:
    if not model.labels:
        if is_described(model):
            raise FailedPrecondition(f"{model.name} has no labels; give the class by `index`", field=field)
        text = f"{model.name} is not loaded by any worker yet, so its labels are unknown; give the class by `index`"
        raise FailedPrecondition(f"{text}, or try again later", field=field, retry_after=LOADING_SECONDS)
    wanted = label.strip().casefold()
    found = [index for index, known in enumerate(model.labels) if known.casefold() == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(map(str, found[:_CLASSES_SHOWN]))
        text = f"{field} {shown(label)} names the classes {some}; give one of them by `index`"
        raise InvalidRequest(text, field=field)
    raise InvalidRequest(
        f"{field} {shown(label)} is not a label of {model.name}{_suggestion(wanted, model)}", field=field
    )


def _suggestion(wanted: str, model: model_pb2.Model) -> str:
    near = _near(wanted, model.labels) if len(wanted) <= EXCERPT else []
    if not near:
        return "; GetModel lists its labels"
    return f"; did you mean {' or '.join(map(shown, near))}?"


def _near(wanted: str, labels: Iterable[str]) -> Sequence[str]:
    """Returns a few labels that contain the wanted text or are spelt like it, in bounded time."""
    by_folded = {known.casefold(): known for known in labels}
    holding = islice((folded for folded in by_folded if wanted and wanted in folded), _SUGGESTIONS)
    near = list(holding) or difflib.get_close_matches(wanted, _alike(wanted, by_folded), n=_SUGGESTIONS)
    return [by_folded[folded] for folded in near]


def _alike(wanted: str, candidates: Iterable[str]) -> Sequence[str]:
    """Returns candidates that may be a misspelling, by length and letters, most likely first."""
    letters = set(wanted)
    similar = [folded for folded in candidates if abs(len(folded) - len(wanted)) <= len(wanted) // 2]
    return nlargest(_CANDIDATES, similar, key=lambda folded: len(letters.intersection(folded)) - len(folded) / EXCERPT)


#: Characters of `request_id`.
MAX_REQUEST_ID = 128

#: Labels of a job.
MAX_JOB_LABELS = 16

_LABEL_KEY = re.compile(r"^[A-Za-z0-9._/-]{1,63}$")

#: Steps of a curve at mask resolution.
MAX_CURVE_STEPS = 1_000

#: Steps of a curve if the request does not set them.
DEFAULT_CURVE_STEPS = 50

#: Occlusions of predictability, if it is measured: fewer say nothing.
MIN_OCCLUSIONS, MAX_OCCLUSIONS = 20, 2_000

#: Boxes of the pointing game.
MAX_BOXES = 1_000

#: Further runs with other seeds.
MAX_RUNS = 15

#: Defaults of a test of certificates.
DEFAULT_DELTA, DEFAULT_CONFIDENCE, DEFAULT_DRAWS = 0.1, 0.95, 40

#: Drawn backgrounds of a set, and images that are backgrounds.
MAX_DRAWS, MAX_BACKGROUNDS = 1_000, 8

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
    for index, image in enumerate(spec.metrics.robustness.images):
        images[background_name(index)] = (f"{field}.metrics.robustness.images[{index}]", image)
    if spec.metrics.HasField("robustness"):
        spec.metrics.robustness.ClearField("images")
    return images


def background_name(index: int) -> str:
    """Returns the name under which the image of a background is stored."""
    return f"background-{index}"


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


def check_image_set(image: tensor_pb2.Image, field: str) -> None:
    """Raises InvalidRequest if the image is not set."""
    if image.WhichOneof("source") is None:
        text = f"{field} is not set; give a JPEG, PNG or WebP file in `encoded`, or a tensor"
        raise InvalidRequest(text, field=field)


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


def _check_metrics(metrics: explanation_pb2.Metrics, input_size: int, field: str) -> None:
    check_enum(explanation_pb2.CurveProtocol.DESCRIPTOR, metrics.curve_protocol, f"{field}.curve_protocol")
    if metrics.curve_steps > MAX_CURVE_STEPS:
        text = (
            f"{field}.curve_steps is {metrics.curve_steps}; give 1 to {MAX_CURVE_STEPS:,}, or 0 for "
            f"{DEFAULT_CURVE_STEPS}"
        )
        raise InvalidRequest(text, field=f"{field}.curve_steps")
    if metrics.predictability and not MIN_OCCLUSIONS <= metrics.predictability <= MAX_OCCLUSIONS:
        text = (
            f"{field}.predictability is {metrics.predictability}; give {MIN_OCCLUSIONS} to {MAX_OCCLUSIONS:,} "
            "occlusions, or 0 not to measure it"
        )
        raise InvalidRequest(text, field=f"{field}.predictability")
    if len(metrics.boxes) > MAX_BOXES:
        text = f"{field}.boxes has {len(metrics.boxes)} boxes; give at most {MAX_BOXES:,}"
        raise InvalidRequest(text, field=f"{field}.boxes")
    for index, box in enumerate(metrics.boxes):
        _check_box(box, input_size, f"{field}.boxes[{index}]")
    if metrics.stability > MAX_RUNS:
        text = f"{field}.stability is {metrics.stability}; give 1 to {MAX_RUNS} further runs, or 0 for none"
        raise InvalidRequest(text, field=f"{field}.stability")
    if metrics.HasField("robustness"):
        _check_robustness(metrics.robustness, f"{field}.robustness")


def _check_robustness(test: explanation_pb2.RobustnessTest, field: str) -> None:
    for name, default in (("delta", DEFAULT_DELTA), ("confidence", DEFAULT_CONFIDENCE)):
        value = getattr(test, name)
        if not 0 <= value < 1:
            text = f"{field}.{name} is {value:g}; give a number above 0 and below 1, or 0 for {default:g}"
            raise InvalidRequest(text, field=f"{field}.{name}")
    if test.max_draws > MAX_DRAWS:
        text = f"{field}.max_draws is {test.max_draws}; give 1 to {MAX_DRAWS:,}, or 0 for {DEFAULT_DRAWS}"
        raise InvalidRequest(text, field=f"{field}.max_draws")
    if len(test.images) > MAX_BACKGROUNDS:
        text = f"{field}.images has {len(test.images)} images; give at most {MAX_BACKGROUNDS}"
        raise InvalidRequest(text, field=f"{field}.images")
    for index, image in enumerate(test.images):
        check_image_set(image, f"{field}.images[{index}]")


def _check_box(box: tensor_pb2.Box, input_size: int, field: str) -> None:
    for low, high in (("left", "right"), ("top", "bottom")):
        start, end = getattr(box, low), getattr(box, high)
        if end <= start:
            text = f"{field}.{high} is {end}; give more than {low}, which is {start}"
            raise InvalidRequest(text, field=f"{field}.{high}")
        if input_size and end > input_size:
            text = f"{field}.{high} is {end}; give at most {input_size}, the side of the model's input"
            raise InvalidRequest(text, field=f"{field}.{high}")


#: Most annotated parts of an image, and most characters of a part's name.
MAX_PARTS, MAX_NAME = 256, 80


def attachment_of(index: int) -> str:
    """Returns the attachment name for an image's annotated parts in a fit's job."""
    return f"{index}.parts"


def check_parts(parts: Sequence[concept_service_pb2.AnnotatedPart], image: str) -> None:
    """Raises InvalidRequest, naming the field, if a part is not within the image or its name is invalid.

    Args:
        parts: Annotated parts of one image.
        image: How errors name the image.
    """
    if len(parts) > MAX_PARTS:
        text = f"{image} has {len(parts)} annotated parts; give at most {MAX_PARTS}"
        raise InvalidRequest(text, field="annotated_parts")
    seen: set[str] = set()
    for number, part in enumerate(parts):
        field = f"annotated_parts[{number}]"
        if not 0 < len(part.name) <= MAX_NAME or not part.name.isprintable():
            text = f"{field}.name of {image} is {part.name[:MAX_NAME]!r}; give 1 to {MAX_NAME} printable characters"
            raise InvalidRequest(text, field=f"{field}.name")
        if part.name in seen:
            text = f"{field}.name of {image} is {part.name!r} twice; give each part of an image once"
            raise InvalidRequest(text, field=f"{field}.name")
        seen.add(part.name)
        _check_edges(part.left, part.right, ("left", "right"), field, image)
        _check_edges(part.top, part.bottom, ("top", "bottom"), field, image)


def _check_edges(low: float, high: float, names: tuple[str, str], field: str, image: str) -> None:
    # this form also rejects NaN
    if not 0 <= low < high <= 1:
        text = (
            f"{field} of {image} has {names[0]} {low:g} and {names[1]} {high:g}; give 0 to 1, relative to the "
            f"image's size, and {names[0]} less than {names[1]}"
        )
        raise InvalidRequest(text, field=f"{field}.{names[0]}")

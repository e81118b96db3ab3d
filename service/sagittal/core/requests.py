"""An explanation's specification, checked field by field against the model it is about.

Every fault raises InvalidRequest with the path of the field, what was given and what is admitted.
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from itertools import islice
from typing import Any

from google.protobuf import duration_pb2
from google.protobuf.descriptor import EnumDescriptor

from sagittal.core.errors import FailedPrecondition, InvalidRequest
from sagittal.core.jobs import MAX_EVALUATIONS, setting_of
from sagittal.core.methods import ResolvedMethod, resolve, shortest
from sagittal.core.text import EXCERPT, shown
from sagittal.v1 import concept_service_pb2, explanation_pb2, explanation_service_pb2, method_pb2, model_pb2, tensor_pb2

# The class to explain, by index or by label.


#: Labels suggested for one that does not exist.
_SUGGESTIONS = 3

#: Labels that are compared letter by letter with one that does not exist.
_CANDIDATES = 128

#: Classes of one label that an error lists.
_CLASSES_SHOWN = 12


def is_described(model: model_pb2.Model) -> bool:
    """Returns whether a worker has loaded the model: only then its methods, labels and classes are known."""
    return bool(model.methods)


def resolve_target(target: explanation_pb2.Target, model: model_pb2.Model, field: str = "target") -> int:
    """Returns the index of the class.

    Raises:
        InvalidRequest: there is no such class, or the label is ambiguous.
        FailedPrecondition: the model has no labels, or none that are known yet.
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
        why = "has no labels" if is_described(model) else "was loaded by no worker yet, so its labels are not known"
        raise FailedPrecondition(f"{model.name} {why}; give the class by `index`", field=field)
    wanted = label.strip().casefold()
    found = [index for index, known in enumerate(model.labels) if known.casefold() == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(map(str, found[:_CLASSES_SHOWN]))
        text = f"{field} {shown(label)} names the classes {some}; give one of them by `index`"
        raise InvalidRequest(text, field=field)
    raise InvalidRequest(f"{field} {shown(label)} is no label of {model.name}{_suggestion(wanted, model)}", field=field)


def _suggestion(wanted: str, model: model_pb2.Model) -> str:
    near = _near(wanted, model.labels) if len(wanted) <= EXCERPT else []
    if not near:
        return "; GetModel lists its labels"
    return f"; did you mean {' or '.join(map(shown, near))}?"


def _near(wanted: str, labels: Iterable[str]) -> Sequence[str]:
    """Returns a few labels that hold what is wanted, or are spelt like it, in bounded time."""
    by_folded = {known.casefold(): known for known in labels}
    holding = islice((folded for folded in by_folded if wanted and wanted in folded), _SUGGESTIONS)
    near = list(holding) or difflib.get_close_matches(wanted, _alike(wanted, by_folded), n=_SUGGESTIONS)
    return [by_folded[folded] for folded in near]


def _alike(wanted: str, candidates: Iterable[str]) -> Sequence[str]:
    """Returns candidates that may be a misspelling, by their length and letters, the likeliest first."""
    letters = set(wanted)
    similar = [folded for folded in candidates if abs(len(folded) - len(wanted)) <= len(wanted) // 2]
    return nlargest(_CANDIDATES, similar, key=lambda folded: len(letters.intersection(folded)) - len(folded) / EXCERPT)


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


# Sets of patches to score, checked field by field, and what a job's events say of sets already.


#: Sets in one request.
MAX_SETS = 1_000

#: Patches a side of the grid.
MIN_GRID, MAX_GRID = 3, 14


@dataclass(frozen=True, slots=True)
class Known:
    """What the model says of a set of patches."""

    score: float
    """The target's probability."""
    top: explanation_pb2.ClassScore


def check_sets(sets: Sequence[explanation_pb2.PatchSet], input_size: int = 0) -> int:
    """Returns the grid that all sets are on.

    Args:
        sets: As they came from a caller.
        input_size: Side in pixels of the model's input; 0 where it is not known.

    Raises:
        InvalidRequest: there are too few or too many, the grids differ or are out of bounds, or a patch is outside the
            grid or twice in a set.
    """
    if not 1 <= len(sets) <= MAX_SETS:
        raise InvalidRequest(f"sets has {len(sets):,} sets; give 1 to {MAX_SETS:,}", field="sets")
    grid, largest = sets[0].grid, min(MAX_GRID, input_size or MAX_GRID)
    if not MIN_GRID <= grid <= largest:
        text = f"sets[0].grid is {grid}; give {MIN_GRID} to {largest} patches a side"
        raise InvalidRequest(text, field="sets[0].grid")
    for index, patch_set in enumerate(sets):
        _check_set(patch_set, grid, f"sets[{index}]")
    return grid


def check_patch_shape(shape: int, field: str) -> None:
    """Raises InvalidRequest for a shape that this version of the API does not know."""
    if shape not in method_pb2.PatchShape.DESCRIPTOR.values_by_number:
        raise InvalidRequest(f"{field} is {shape}; give PATCH_SHAPE_BOX or PATCH_SHAPE_TENT", field=field)


def bits_of(patch_set: explanation_pb2.PatchSet) -> int:
    """Returns a set as an integer: bit `row * grid + column` for each of its patches."""
    return sum(1 << patch for patch in patch_set.patches)


def known_sets(events: Iterable[explanation_pb2.ExplanationEvent], grid: int, model_digest: str) -> Mapping[int, Known]:
    """Returns what a job's events say of sets on a grid that are shown alone, by their bits.

    Nothing is known where the events are about another model than the one with this digest.
    """
    known: dict[int, Known] = {}
    for event in events:
        kind = event.WhichOneof("event")
        if kind == "sufficient_set" and event.sufficient_set.certificate.model_digest not in ("", model_digest):
            return {}
        if kind == "sufficient_set":
            _note(known, event.sufficient_set, grid)
        elif kind == "graph_node":
            _note(known, event.graph_node, grid)
    return known


def full_score(events: Iterable[explanation_pb2.ExplanationEvent]) -> explanation_pb2.ClassScore | None:
    """Returns the target with its probability on the full image; None where no event says it."""
    predictions = [event.prediction for event in events if event.HasField("prediction")]
    return predictions[-1].target if predictions else None


def region_score(
    found: Known, full: explanation_pb2.ClassScore, *, cached: bool
) -> explanation_service_pb2.RegionScore:
    """Returns the score of a set as the API says it."""
    relative = found.score / full.score if full.score > 0 else 0.0
    return explanation_service_pb2.RegionScore(score=found.score, relative_score=relative, top=found.top, cached=cached)


def _note(known: dict[int, Known], found: explanation_pb2.SufficientSet | explanation_pb2.GraphNode, grid: int) -> None:
    if found.patches.grid != grid:
        return
    shown = bits_of(found.patches)
    if found.HasField("top"):
        known[shown] = Known(found.score, found.top)
    if found.HasField("causal") and found.causal.HasField("top_without"):
        everything = (1 << grid * grid) - 1
        known[everything ^ shown] = Known(found.causal.without, found.causal.top_without)


def _check_set(patch_set: explanation_pb2.PatchSet, grid: int, field: str) -> None:
    if patch_set.grid != grid:
        text = f"{field}.grid is {patch_set.grid}; sets[0].grid is {grid}: give all sets on one grid"
        raise InvalidRequest(text, field=f"{field}.grid")
    seen: set[int] = set()
    for index, patch in enumerate(patch_set.patches):
        place = f"{field}.patches[{index}]"
        if patch >= grid * grid:
            text = f"{place} is {patch}; a grid of {grid} x {grid} has the patches 0 to {grid * grid - 1}"
            raise InvalidRequest(text, field=place)
        if patch in seen:
            raise InvalidRequest(f"{place} is {patch}, which is in the set already; give each patch once", field=place)
        seen.add(patch)


# Parts that are annotated on the images of a fit: checked in one way, whether they were sent or lie with a dataset.


#: Most parts of an image, and characters of a part's name.
MAX_PARTS, MAX_NAME = 256, 80


def attachment_of(index: int) -> str:
    """Returns the name under which the parts of an image are attached to the job of a fit."""
    return f"{index}.parts"


def check_parts(parts: Sequence[concept_service_pb2.AnnotatedPart], image: str) -> None:
    """Raises InvalidRequest, naming the field, where a part is not within the image or has a name that is none.

    Args:
        parts: Of one image.
        image: Which image it is, for the message.
    """
    if len(parts) > MAX_PARTS:
        text = f"{image} has {len(parts)} annotated parts; give at most {MAX_PARTS}"
        raise InvalidRequest(text, field="annotated_parts")
    seen: set[str] = set()
    for number, part in enumerate(parts):
        field = f"annotated_parts[{number}]"
        if not 0 < len(part.name) <= MAX_NAME or not part.name.isprintable():
            text = f"{field}.name of {image} must be 1 to {MAX_NAME} printable characters"
            raise InvalidRequest(text, field=f"{field}.name")
        if part.name in seen:
            text = f"{field}.name of {image} is {part.name!r} for the second time; give each part of an image once"
            raise InvalidRequest(text, field=f"{field}.name")
        seen.add(part.name)
        _check_edges(part.left, part.right, ("left", "right"), field, image)
        _check_edges(part.top, part.bottom, ("top", "bottom"), field, image)


def _check_edges(low: float, high: float, names: tuple[str, str], field: str, image: str) -> None:
    # written so that what is not a number is refused too
    if not 0 <= low < high <= 1:
        text = (
            f"{field} of {image} reaches from {names[0]} {low:g} to {names[1]} {high:g}; give 0 to 1, relative to the "
            f"image's size, and {names[0]} less than {names[1]}"
        )
        raise InvalidRequest(text, field=f"{field}.{names[0]}")

"""Builds the API's requests from the caller's arguments."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Required, TypedDict, TypeVar, Unpack

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from sagittal.client.errors import InvalidRequest
from sagittal.client.events import PatchSet
from sagittal.client.images import ImageLike, encode_image
from sagittal.client.methods import MethodLike
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import explanation_service_pb2 as service_pb
from sagittal.v1 import method_pb2, tensor_pb2

M = TypeVar("M", bound=Message)
T = TypeVar("T")

#: Descriptions of field types, for messages.
_EXPECTED: Mapping[int, str] = {
    FieldDescriptor.TYPE_STRING: "text",
    FieldDescriptor.TYPE_BOOL: "True or False",
    FieldDescriptor.TYPE_UINT32: "an integer from 0 to 2**32 - 1",
    FieldDescriptor.TYPE_UINT64: "an integer from 0 to 2**64 - 1",
    FieldDescriptor.TYPE_INT32: "an integer from -2**31 to 2**31 - 1",
    FieldDescriptor.TYPE_FLOAT: "a number",
    FieldDescriptor.TYPE_DOUBLE: "a number",
}


def build(kind: type[M], path: str = "", /, **fields: Any) -> M:
    """Returns a message with these fields; None leaves a field unset.

    Raises:
        InvalidRequest: a field has an invalid value; `path` is the position of the message in the request.
    """
    message = kind()
    for name, value in fields.items():
        try:
            message.MergeFrom(kind(**{name: value}))
        except (TypeError, ValueError, OverflowError) as error:
            described: Any = kind.DESCRIPTOR.fields_by_name[name]
            expected = _EXPECTED.get(described.type, str(error))
            if described.is_repeated:
                expected = f"several of: {expected}"
            place = f"{path}.{name}" if path else name
            raise InvalidRequest(f"got {shown(value)}; expected {expected}", field=place) from error
    return message


def check_names(options: Mapping[str, Any], known: Iterable[str], required: Iterable[str] = ()) -> None:
    """Raises InvalidRequest for an unknown option, and for a missing required one."""
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InvalidRequest(f"no option {unknown[0]!r}; there are: {', '.join(sorted(known))}", field=unknown[0])
    missing = sorted(set(required) - set(options))
    if missing:
        raise InvalidRequest(f"{missing[0]} is missing; give it", field=missing[0])


def check_kind(value: object, kind: type[T], field: str, expected: str) -> T:
    """Returns a value of a type. Raises InvalidRequest for a value of another type."""
    if not isinstance(value, kind):
        raise InvalidRequest(f"got {shown(value)}; expected {expected}", field=field)
    return value


def check_seconds(settings: object, names: Iterable[str], path: str) -> None:
    """Raises InvalidRequest for a setting that is not a time in seconds."""
    for name in names:
        seconds = getattr(settings, name)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < MAX_SECONDS:
            raise InvalidRequest(f"got {shown(seconds)}; expected seconds, at least 0", field=f"{path}.{name}")


def check_listener(listener: object, field: str) -> None:
    """Raises InvalidRequest for a listener that is neither callable nor None."""
    if listener is not None and not callable(listener):
        raise InvalidRequest(f"got {shown(listener)}; expected a function that takes an event", field=field)


def check_several(values: Iterable[T], field: str, expected: str) -> Iterable[T]:
    """Returns several values. Raises InvalidRequest for a string or another single value."""
    single = isinstance(values, str | bytes | bytearray | memoryview) or hasattr(values, "__array__")
    if single or not isinstance(values, Iterable):
        raise InvalidRequest(f"got {shown(values)}; expected several: {expected}", field=field)
    return values


def split_model(model: object, version: object, path: str = "") -> tuple[str, str]:
    """Returns name and version of a model, whose name may be "name@version" as in lists."""
    place = f"{path}.model" if path else "model"
    name = check_kind(model, str, place, "the name of a registered model")
    given = check_kind(version, str, f"{place}_version", "a version, or nothing for the latest")
    name, _, wanted = name.partition("@")
    if wanted and given and wanted != given:
        raise InvalidRequest(f"{model!r} names version {wanted}, and the version is {given!r}; give one", field=place)
    return name, wanted or given


def model_alone(model: object) -> str:
    """Returns the name of a model. Raises InvalidRequest for "name@version"."""
    name, version = split_model(model, "")
    if version:
        text = f"got {model!r}; expected the name alone: jobs and concept sets are listed for all versions of a model"
        raise InvalidRequest(text, field="model")
    return name


def named(model: object, version: object) -> Mapping[str, str]:
    """Returns the fields of a request about a model."""
    name, version = split_model(model, version)
    return {"name": name, "version": version}


def checked_timeout(seconds: T) -> T:
    """Returns a time in seconds, or None for no limit. Raises InvalidRequest for anything else."""
    if seconds is None or (isinstance(seconds, int | float) and not isinstance(seconds, bool) and seconds > 0):
        return seconds
    raise InvalidRequest(f"got {shown(seconds)}; expected seconds, more than 0", field="timeout")


def build_durations(message: Message, path: str, durations: Mapping[str, object]) -> None:
    """Sets fields given in seconds; None and 0 leave them unset."""
    for name, seconds in durations.items():
        if seconds is None:
            continue
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < MAX_SECONDS:
            raise InvalidRequest(f"got {shown(seconds)}; expected seconds, at least 0", field=f"{path}.{name}")
        if seconds:
            getattr(message, name).FromNanoseconds(round(seconds * 1e9))


#: Maximum time in a request, in seconds: the range of nanoseconds in 64 bits.
MAX_SECONDS = 2**63 / 1e9


def enum_value(wrapper: Any, prefix: str, name: object, field: str) -> Any:
    """Returns the API's number of a value by its short name, such as "batch" for `LANE_BATCH`."""
    full = f"{prefix}{name}".upper().replace("-", "_")
    known: Sequence[str] = [each for each in wrapper.keys() if not each.endswith("_UNSPECIFIED")]  # noqa: SIM118
    if not isinstance(name, str) or full not in known:
        names = ", ".join(each.removeprefix(prefix).lower() for each in known)
        raise InvalidRequest(f"got {shown(name)}; expected one of: {names}", field=field)
    return wrapper.Value(full)


def shown(value: object) -> str:
    """Returns a value for a message, cut if it is long."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


#: Maximum number of characters of a value in a message.
MAX_SHOWN = 80


LaneName = Literal["interactive", "batch"]
CacheName = Literal["use", "refresh", "bypass"]
BaselineName = Literal["blur", "black", "mean", "noise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The baseline: it replaces the hidden part of the image. A name alone suffices for most: `baseline="black"`."""

    kind: Literal["blur", "black", "mean", "noise", "image"] = "blur"
    image: ImageLike | None = None
    """The baseline image, for the kind "image"; for example an image of another class."""
    blur_sigma: float = 0.0
    """Standard deviation for the kind "blur", in pixels of the model's input; 0 selects one for its size."""


@dataclass(frozen=True, slots=True)
class Box:
    """Box of the object, in pixels of the model's input: left and top inclusive, right and bottom exclusive."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustnessTest:
    """Tests each sufficient set's certificate on altered images, and on backgrounds that are drawn at random."""

    delta: float = 0.0
    """The draws of a set end when the probability that it is sufficient and minimal is known to be at least 1 - delta;
    0 means 0.1."""
    confidence: float = 0.0
    """Probability that a bound does not exceed the truth; 0 means 0.95."""
    max_draws: int = 0
    """Maximum number of drawn backgrounds for each set; 0 means 40."""
    images: Sequence[ImageLike] = ()
    """Images that are backgrounds too, for example of other classes; at most 8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Measurements of the result."""

    curves: bool = True
    """Measures insertion and deletion."""
    protocol: Literal["mask", "pixel"] = "mask"
    """Resolution of the curves: cells of the mask, or pixels of the upsampled mask (RISE)."""
    curve_steps: int = 0
    """Number of steps of each curve at mask resolution; 0 means 50."""
    boxes: Sequence[Box] = ()
    """Boxes of the object, for the pointing game; none skips it."""
    predictability: int = 0
    """Number of random occlusions that the explanation must predict, such as 200; 0 measures nothing."""
    stability: int = 0
    """Number of further runs with other seeds, at most 15, which state how stable the heatmap is; each costs as much as
    the explanation. 0 measures nothing."""
    robustness: RobustnessTest | None = None
    """Tests the certificates of sufficient sets; None skips it. It costs some hundred evaluations for each set."""


class BatchOptions(TypedDict, total=False):
    """Options of each of many images."""

    model: Required[str]
    """Name of a registered model, or "name@version"."""
    model_version: str
    """Empty means the latest version."""
    method: MethodLike | None
    """None means iGOS++ with its defaults."""
    target: int | str | None
    """Index or label of the class to explain; None means the model's top class."""
    baseline: Baseline | BaselineName
    """What replaces the hidden part: "blur" (the default), "black", "mean", "noise", or a `Baseline`."""
    metrics: Metrics
    """Measurements of the explanation; by default insertion and deletion."""
    seed: int
    """Seed of all random choices; 0 by default."""
    lane: LaneName
    """"interactive" (a person waits) or "batch"."""
    deadline: float | None
    """Maximum time of the job from its acceptance, waiting included, in seconds; None means the service's limit."""
    max_evaluations: int
    """Maximum number of model evaluations of the search; the best result so far is returned and marked. 0 means no
    limit; a service accepts at most 1,000,000,000."""
    cache: CacheName
    """"use" a stored answer of an equal request (the default), "refresh" it, or "bypass" it."""
    partial_masks: bool
    """Streams intermediate masks."""
    progress_interval: float
    """Minimum time between two progress events, in seconds."""
    labels: Mapping[str, str]
    """Labels by which lists, counts and streams of changes select jobs; not part of the request's content."""


class ExplainOptions(BatchOptions, total=False):
    """Options of an explanation, beside its image."""

    request_id: str
    """Idempotency key: the same request with the same key returns the same job."""


def checked_options(options: ExplainOptions) -> ExplainOptions:
    """Returns options with the model split into name and version. Raises InvalidRequest for an unknown option."""
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
    labels: Mapping[str, str] | None = None,
) -> pb.ExplanationSpec:
    """Returns the request of one explanation, without its image. Raises InvalidRequest with the name of the field."""
    spec = build(
        pb.ExplanationSpec,
        "spec",
        model=model,
        model_version=model_version,
        method=packed_method,
        baseline=_baseline(baseline, "spec.baseline"),
        metrics=_metrics(Metrics() if metrics is None else metrics),
        lane=enum_value(pb.Lane, "LANE_", lane, "spec.lane"),
        request_id=request_id or f"client-{uuid.uuid4().hex}",
        cache_policy=enum_value(pb.CachePolicy, "CACHE_POLICY_", cache, "spec.cache_policy"),
        partial_masks=partial_masks,
        labels={} if labels is None else labels,
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
    """The subject of the patches: a job, or an image with its model."""

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
    """Returns states by name, such as "running"; a single name is accepted."""
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
        predictability=given.predictability,
        stability=given.stability,
        robustness=None if given.robustness is None else _robustness(given.robustness, f"{path}.robustness"),
    )


def _robustness(test: RobustnessTest, path: str) -> pb.RobustnessTest:
    given = check_kind(test, RobustnessTest, path, "RobustnessTest(...)")
    message = build(pb.RobustnessTest, path, delta=given.delta, confidence=given.confidence, max_draws=given.max_draws)
    for number, image in enumerate(check_several(given.images, f"{path}.images", "images")):
        message.images.append(encode_image(image, field=f"{path}.images[{number}]"))
    return message


def _box(box: Box, path: str) -> tensor_pb2.Box:
    given = check_kind(box, Box, path, "Box(left, top, right, bottom)")
    return build(tensor_pb2.Box, path, left=given.left, top=given.top, right=given.right, bottom=given.bottom)

"""Models that can be explained, and the methods they admit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import json_format

from sagittal.client.parsing import enum_name
from sagittal.v1 import model_pb2


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an image becomes the model's input: fit it to the square, scale to 0..1, subtract mean, divide by std."""

    input_size: int
    """Side of the square input in pixels."""
    resize: int
    """Length of the shorter side after resizing, before the crop, in pixels."""
    interpolation: str
    """"bilinear", "bicubic" or "nearest"."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channel_order: str
    fit: str = "crop"
    """"crop": resize the shorter side and crop the centre; "squash": resize both sides to the input size."""


@dataclass(frozen=True, slots=True)
class WorkerState:
    """How a worker stands to a model."""

    worker: str
    state: str
    """"unloaded", "loading", "ready" or "failed"."""
    message: str
    """Why loading failed; else empty."""
    device: str
    memory_bytes: int = 0
    """Memory that the model takes there while it is loaded; else 0."""


@dataclass(frozen=True, slots=True)
class ParameterInfo:
    """A parameter of a method."""

    name: str
    type: str
    """"int", "float", "bool", "str" or "tensor"."""
    default: Any
    minimum: float | None
    maximum: float | None
    exclusive_minimum: bool
    exclusive_maximum: bool
    choices: tuple[str, ...]
    summary: str


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """A method that workers offer for a model."""

    name: str
    field: str
    """Field of the API's `Method` that carries it; "custom" where it has none."""
    summary: str
    parameters: tuple[ParameterInfo, ...]
    unavailable: str
    """Empty where the model admits it; else why not."""


@dataclass(frozen=True, slots=True)
class Optimization:
    """One step of making the model faster, as it went on the worker that loaded it last."""

    name: str
    applied: bool
    detail: str
    """What it did, or why it was not applied."""
    largest_difference: float
    """Of a probability, from the untouched model on probe images."""


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """One thing that was looked at when the model was loaded."""

    name: str
    passed: bool
    detail: str
    """What was found, and what to do where it is not as it should be."""
    required: bool
    """Whether a model that does not pass is not served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A registered model."""

    name: str
    version: str
    latest: bool
    digest: str
    """Empty until a worker has loaded it."""
    source: str
    labels: tuple[str, ...]
    classes: int
    output: str
    preprocessing: Preprocessing
    methods: tuple[MethodInfo, ...]
    workers: tuple[WorkerState, ...]
    supports_gradients: bool
    spatial_layers: tuple[str, ...]
    feature_layers: tuple[str, ...]
    evaluations_per_second: float
    gradient_evaluations_per_second: float
    optimizations: tuple[Optimization, ...] = ()
    checks: tuple[SelfCheck, ...] = ()
    """What the self-check found; empty until a worker has loaded it."""
    patch_grid: tuple[int, int] | None = None
    """Rows and columns of a transformer's patches."""
    min_input_size: int = 0
    max_input_size: int = 0
    """Sides of inputs that it was seen to take, in pixels."""
    deterministic: bool = False
    weights_bytes: int = 0
    activation_bytes: int = 0
    """Memory of its weights, and of a batch at its peak, in bytes."""
    weights_digest: str = ""
    """SHA-256 of its weights, whatever file they came in."""
    tags: Mapping[str, str] = field(default_factory=dict)
    origin: str = ""
    """"file" or "api": who registered it."""

    @property
    def failures(self) -> tuple[str, ...]:
        """Why workers could not load it."""
        return tuple(f"{each.worker}: {each.message}" for each in self.workers if each.state == "failed")

    @property
    def ready_workers(self) -> int:
        """Workers that can run its jobs now."""
        return sum(worker.state == "ready" for worker in self.workers)


ORIGINS: Mapping[int, str] = {model_pb2.MODEL_ORIGIN_FILE: "file", model_pb2.MODEL_ORIGIN_API: "api"}


def parse_model(message: model_pb2.Model) -> Model:
    """Returns a model as a dataclass."""
    found = message.capabilities
    return Model(
        name=message.name,
        version=message.version,
        latest=message.latest,
        digest=message.digest,
        source=message.source.kind,
        labels=tuple(message.labels),
        classes=message.classes,
        output=enum_name(model_pb2.OutputKind, message.output or model_pb2.OUTPUT_KIND_LOGITS, "OUTPUT_KIND_"),
        preprocessing=_preprocessing(message.preprocessing),
        methods=tuple(map(_method, message.methods)),
        workers=tuple(map(_worker, message.workers)),
        supports_gradients=found.supports_gradients,
        spatial_layers=tuple(found.spatial_layers),
        feature_layers=tuple(found.feature_layers),
        evaluations_per_second=found.evaluations_per_second,
        gradient_evaluations_per_second=found.gradient_evaluations_per_second,
        optimizations=tuple(
            Optimization(step.name, step.applied, step.detail, step.largest_difference) for step in found.optimizations
        ),
        checks=tuple(SelfCheck(each.name, each.passed, each.detail, each.required) for each in message.checks),
        patch_grid=(found.patch_grid.rows, found.patch_grid.columns) if found.HasField("patch_grid") else None,
        min_input_size=found.min_input_size,
        max_input_size=found.max_input_size,
        deterministic=found.deterministic,
        weights_bytes=found.weights_bytes,
        activation_bytes=found.activation_bytes,
        weights_digest=found.weights_digest,
        tags=dict(message.tags),
        origin=ORIGINS.get(message.origin, ""),
    )


def _preprocessing(message: model_pb2.Preprocessing) -> Preprocessing:
    return Preprocessing(
        input_size=message.input_size,
        resize=message.resize or message.input_size,
        interpolation=message.interpolation or "bilinear",
        mean=tuple(message.mean),
        std=tuple(message.std),
        channel_order=message.channel_order or "RGB",
        fit=message.fit or "crop",
    )


def _worker(message: model_pb2.WorkerModel) -> WorkerState:
    state = enum_name(model_pb2.ModelState, message.state, "MODEL_STATE_")
    return WorkerState(message.worker, state, message.message, message.device, message.memory_bytes)


def _method(message: model_pb2.MethodDescription) -> MethodInfo:
    return MethodInfo(
        name=message.name,
        field=message.field,
        summary=message.summary,
        parameters=tuple(map(_parameter, message.parameters)),
        unavailable=message.unavailable,
    )


def _parameter(message: model_pb2.ParameterDescription) -> ParameterInfo:
    default: Any = json_format.MessageToDict(message.default) if message.HasField("default") else None
    if message.type == "int" and isinstance(default, float):
        default = int(default)
    return ParameterInfo(
        name=message.name,
        type=message.type,
        default=default,
        minimum=message.minimum if message.HasField("minimum") else None,
        maximum=message.maximum if message.HasField("maximum") else None,
        exclusive_minimum=message.exclusive_minimum,
        exclusive_maximum=message.exclusive_maximum,
        choices=tuple(message.choices),
        summary=message.summary,
    )


def by_name(methods: tuple[MethodInfo, ...]) -> Mapping[str, MethodInfo]:
    """Returns methods by each spelling a caller may use: the name, and the field unless it is shared."""
    spellings = {method.name.lower(): method for method in methods}
    for method in methods:
        if method.field != "custom":
            spellings.setdefault(method.field.replace("_", "-"), method)
    return spellings

"""Registered models, and the methods they admit."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from google.protobuf import json_format

from sagittal.client.parsing import parse, values_of
from sagittal.client.preprocessing import Preprocessing
from sagittal.v1 import model_pb2


@dataclass(frozen=True, slots=True)
class WorkerState:
    """State of a model on a worker."""

    worker: str
    state: str
    """"unloaded", "loading", "ready" or "failed"."""
    message: str
    """Why loading failed; otherwise empty."""
    device: str
    memory_bytes: int = 0
    """Memory of the model on the worker while it is loaded; otherwise 0."""


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
    """Field of the API's `Method` that carries it; "custom" if it has none."""
    summary: str
    parameters: tuple[ParameterInfo, ...]
    unavailable: str
    """Why the model does not admit the method; empty if it does."""
    aliases: tuple[str, ...] = ()
    """Further names that are accepted, such as "mse"."""


@dataclass(frozen=True, slots=True)
class Optimization:
    """A step that optimised the model, on the worker that loaded it last."""

    name: str
    applied: bool
    detail: str
    """Its effect, or why it was not applied."""
    largest_difference: float
    """Largest difference of a probability from the original model on probe images."""


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """The result of one check when the model was loaded."""

    name: str
    passed: bool
    detail: str
    """The result, and the remedy if the check failed."""
    required: bool
    """Whether a model that fails the check is not served."""


@dataclass(frozen=True, slots=True)
class CanaryOutcomes:
    """Ended jobs of one version during a trial."""

    completed: int
    failed: int
    insertion_auc: float
    """Mean insertion AUC; 0 if there is none."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A trial of a version by a share of the explanations that name no version."""

    share: float
    max_failed: float
    min_faithfulness: float
    min_jobs: int
    rolled_back: str
    """Why it was rolled back; empty while it runs."""
    outcomes: CanaryOutcomes
    latest_outcomes: CanaryOutcomes


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
    """Results of the self-check; empty until a worker has loaded the model."""
    patch_grid: tuple[int, int] | None = None
    """Rows and columns of a transformer's patches."""
    min_input_size: int = 0
    max_input_size: int = 0
    """Smallest and largest side of inputs that it accepted in tests, in pixels."""
    deterministic: bool = False
    weights_bytes: int = 0
    activation_bytes: int = 0
    """Memory of its weights, and peak memory of a batch, in bytes."""
    weights_digest: str = ""
    """SHA-256 of its weights, independent of their file format."""
    tags: Mapping[str, str] = field(default_factory=dict)
    origin: str = ""
    """"file" or "api": the source of its registration."""
    canary: Canary | None = None
    """Its trial, if there is one."""

    @property
    def failures(self) -> tuple[str, ...]:
        """Errors of the workers that could not load it."""
        return tuple(f"{each.worker}: {each.message}" for each in self.workers if each.state == "failed")

    @property
    def ready_workers(self) -> int:
        """Number of workers that can run its jobs now."""
        return sum(worker.state == "ready" for worker in self.workers)


def parse_model(message: model_pb2.Model) -> Model:
    """Returns a model as a dataclass."""
    found = message.capabilities
    given = values_of(Model, found, "patch_grid") | {
        "source": message.source.kind,
        "preprocessing": _preprocessing(message.preprocessing),
        "methods": tuple(map(_method, message.methods)),
        "canary": _canary(message.canary) if message.HasField("canary") else None,
        "patch_grid": (found.patch_grid.rows, found.patch_grid.columns) if found.HasField("patch_grid") else None,
    }
    model = parse(Model, message, **given)
    return model if model.output else replace(model, output="logits")


def _canary(message: model_pb2.Canary) -> Canary:
    outcomes = parse(CanaryOutcomes, message.outcomes)
    return parse(Canary, message, outcomes=outcomes, latest_outcomes=parse(CanaryOutcomes, message.latest_outcomes))


def _preprocessing(message: model_pb2.Preprocessing) -> Preprocessing:
    return parse(
        Preprocessing,
        message,
        resize=message.resize or message.input_size,
        interpolation=message.interpolation or "bilinear",
        channel_order=message.channel_order or "RGB",
        fit=message.fit or "crop",
        layout=message.layout or "NCHW",
    )


def _method(message: model_pb2.MethodDescription) -> MethodInfo:
    return parse(MethodInfo, message, parameters=tuple(map(_parameter, message.parameters)))


def _parameter(message: model_pb2.ParameterDescription) -> ParameterInfo:
    default: Any = json_format.MessageToDict(message.default) if message.HasField("default") else None
    if message.type == "int" and isinstance(default, float):
        default = int(default)
    return parse(ParameterInfo, message, default=default)


def by_name(methods: tuple[MethodInfo, ...]) -> Mapping[str, MethodInfo]:
    """Returns methods by each accepted spelling: the name, the aliases, and the field unless it is shared."""
    spellings = {method.name.lower(): method for method in methods}
    for method in methods:
        for alias in method.aliases:
            spellings.setdefault(alias.lower(), method)
        if method.field != "custom":
            spellings.setdefault(method.field.replace("_", "-"), method)
    return spellings

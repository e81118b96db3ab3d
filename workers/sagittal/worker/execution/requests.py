"""Converts a job's request to the library's types: image, method, metrics."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sagittal.core.decoding import decoders
from sagittal.core.errors import InvalidRequest
from sagittal.core.images import ImageLimits, model_input
from sagittal.core.measurements import DEFAULT_CURVE_STEPS, MAX_BACKGROUNDS, background_name
from sagittal.core.methods import ResolvedMethod, resolve
from sagittal.core.targets import resolve_target
from sagittal.core.tensors import array_of
from sagittal.engine.cuda.copies import upload
from sagittal.explain import (
    Black,
    Blur,
    CurveProtocol,
    Explainer,
    Given,
    MeanColour,
    Metrics,
    Noise,
    Question,
    RobustnessTest,
    find_method,
)
from sagittal.explain.baselines import Baseline
from sagittal.explain.parameters import InvalidParameter
from sagittal.models.loaded import LoadedModel
from sagittal.models.preprocessing import black, pixel_scale, to_input
from sagittal.v1 import explanation_pb2, explanation_service_pb2, model_pb2, tensor_pb2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """A requested explanation, decoded and checked."""

    question: Question
    method: ResolvedMethod
    explainer: Explainer
    metrics: Metrics
    max_evaluations: int | None
    """Budget of the search; None for no limit."""
    progress_seconds: float
    """Minimum time between two progress events."""
    partial_masks: bool


#: Default time between two progress events, in seconds.
PROGRESS_SECONDS = 0.25


def read_request(
    payload: bytes, images: Mapping[str, bytes], loaded: LoadedModel, described: model_pb2.Model, limits: ImageLimits
) -> Request:
    """Decodes the request of an explanation. Raises the errors that the service would have raised."""
    spec = explanation_pb2.ExplanationSpec.FromString(payload)
    method = resolve(spec.method, described.methods, field="spec.method")
    return Request(
        question=read_question(spec, images, loaded, described, limits, "spec"),
        method=method,
        explainer=make_explainer(method, loaded.device),
        metrics=_metrics(spec.metrics, images, loaded, limits),
        max_evaluations=spec.max_evaluations or None,
        progress_seconds=_progress_seconds(spec),
        partial_masks=spec.partial_masks,
    )


def read_question(
    asked: explanation_pb2.ExplanationSpec | explanation_service_pb2.RegionSubject,
    images: Mapping[str, bytes],
    loaded: LoadedModel,
    described: model_pb2.Model,
    limits: ImageLimits,
    field: str,
) -> Question:
    """Returns image, target and baseline of a request; `field` is its path, for errors."""
    return Question(
        image=read_image(images["image"], loaded, limits, f"{field}.image"),
        target=resolve_target(asked.target, described, f"{field}.target") if asked.HasField("target") else None,
        baseline=_baseline(asked.baseline, images, loaded, limits, f"{field}.baseline"),
        black=black(loaded.entry.preprocessing).to(loaded.device),
        pixels=pixel_scale(loaded.entry.preprocessing),
        seed=asked.seed,
    )


def read_image(payload: bytes, loaded: LoadedModel, limits: ImageLimits, field: str) -> Tensor:
    """Returns an image as the model's input, float32 of shape (3, size, size), on the model's device."""
    image = tensor_pb2.Image.FromString(payload)
    size = loaded.entry.preprocessing.input_size
    if image.WhichOneof("source") == "model_input":
        values = torch.from_numpy(np.array(model_input(image, limits, field=field, input_size=size)))
    else:
        values = to_input(decoders(limits, 1)[0].decode(image, field=field), loaded.entry.preprocessing)
    return upload(values, loaded.device)


def make_explainer(method: ResolvedMethod, device: torch.device) -> Explainer:
    """Returns the explainer of a resolved method. Raises InvalidRequest if a parameter is out of bounds."""
    settings = {name: _parameter(value, name, device) for name, value in method.parameters.items()}
    try:
        return find_method(method.name).explainer(**settings)
    except InvalidParameter as error:
        field = f"spec.method.{method.field}.{error.name}"
        raise InvalidRequest(f"{field} {error.message}", field=field) from error


def _parameter(value: Any, name: str, device: torch.device) -> Any:
    """Returns the value of a parameter; serialized tensors become tensors on the device."""
    if not isinstance(value, bytes):
        return value
    array = array_of(tensor_pb2.Tensor.FromString(value), f"spec.method.{name}", dtypes=("FLOAT16", "FLOAT32"))
    return torch.from_numpy(np.array(array, dtype=np.float32)).to(device)


def _baseline(
    baseline: explanation_pb2.Baseline,
    images: Mapping[str, bytes],
    loaded: LoadedModel,
    limits: ImageLimits,
    field: str,
) -> Baseline:
    match baseline.kind:
        case explanation_pb2.BASELINE_KIND_BLACK:
            return Black()
        case explanation_pb2.BASELINE_KIND_MEAN:
            return MeanColour()
        case explanation_pb2.BASELINE_KIND_NOISE:
            return Noise()
        case explanation_pb2.BASELINE_KIND_IMAGE:
            return Given(read_image(images["baseline"], loaded, limits, f"{field}.image"))
        case _:
            return Blur(sigma=baseline.blur_sigma)


def _metrics(
    metrics: explanation_pb2.Metrics, images: Mapping[str, bytes], loaded: LoadedModel, limits: ImageLimits
) -> Metrics:
    by_pixel = metrics.curve_protocol == explanation_pb2.CURVE_PROTOCOL_PIXEL
    return Metrics(
        curves=not metrics.skip_curves,
        protocol=CurveProtocol.PIXEL if by_pixel else CurveProtocol.MASK,
        steps=metrics.curve_steps or DEFAULT_CURVE_STEPS,
        boxes=tuple((box.left, box.top, box.right, box.bottom) for box in metrics.boxes),
        predictability=metrics.predictability,
        stability=metrics.stability,
        robustness=_robustness(metrics.robustness, images, loaded, limits) if metrics.HasField("robustness") else None,
    )


def _robustness(
    test: explanation_pb2.RobustnessTest, images: Mapping[str, bytes], loaded: LoadedModel, limits: ImageLimits
) -> RobustnessTest:
    field = "spec.metrics.robustness"
    names = [name for name in map(background_name, range(MAX_BACKGROUNDS)) if name in images]
    backgrounds = [read_image(images[name], loaded, limits, f"{field}.images[{i}]") for i, name in enumerate(names)]
    try:
        return RobustnessTest(
            delta=test.delta, confidence=test.confidence, max_draws=test.max_draws, images=backgrounds
        )
    except InvalidParameter as error:
        raise InvalidRequest(f"{field}.{error.name} {error.message}", field=f"{field}.{error.name}") from error


def _progress_seconds(spec: explanation_pb2.ExplanationSpec) -> float:
    if not spec.HasField("progress_interval"):
        return PROGRESS_SECONDS
    return spec.progress_interval.seconds + spec.progress_interval.nanos / 1e9

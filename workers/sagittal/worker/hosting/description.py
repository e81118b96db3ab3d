"""The description that a worker publishes of a loaded model: its source, its properties, its methods.

The service validates requests against it alone, so that a new row in the table of methods needs no change there.
"""

import functools
import math

from google.protobuf import struct_pb2

from sagittal.core.models import Layers, declaration_of
from sagittal.explain import EXPLAINERS, Concepts, Needs, Row
from sagittal.explain.parameters import Parameter, parameters
from sagittal.models.loaded import Found, LoadedModel
from sagittal.v1 import model_pb2


def describe_model(loaded: LoadedModel) -> model_pb2.Model:
    """Returns the registry's description of a loaded model."""
    found = loaded.found
    described = declaration_of(loaded.entry)
    described.ClearField("labels")
    described.ClearField("preprocessing")
    described.MergeFrom(
        model_pb2.Model(
            digest=loaded.digest,
            labels=loaded.labels,
            classes=found.classes,
            preprocessing=model_pb2.Preprocessing(**loaded.entry.preprocessing.model_dump()),
            capabilities=_capabilities(loaded),
            methods=[describe_method(row, found, loaded.entry.layers) for row in EXPLAINERS.values()],
            checks=[
                model_pb2.SelfCheck(name=one.name, passed=one.passed, detail=one.detail, required=one.required)
                for one in found.checks
            ],
        )
    )
    return described


def describe_method(row: Row, found: Found, layers: Layers | None = None) -> model_pb2.MethodDescription:
    """Returns the description of a method for a model with these capabilities; `layers` are its registered ones."""
    described = [_describe_parameter(declared) for declared in parameters(row.explainer)]
    if layers is not None and layers.spatial and Needs.SPATIAL_LAYER in row.explainer.needs:
        for parameter in described:
            if parameter.name == "layer":
                parameter.default.string_value = layers.spatial
    return model_pb2.MethodDescription(
        name=row.name,
        field=row.field,
        summary=row.explainer.summary,
        parameters=described,
        unavailable=_unavailable(row, found),
        stateful=issubclass(row.explainer, Concepts),
        aliases=row.aliases,
    )


def _capabilities(loaded: LoadedModel) -> model_pb2.Capabilities:
    found = loaded.found
    grid = found.patch_grid
    return model_pb2.Capabilities(
        supports_gradients=found.supports_gradients,
        supports_layers=bool(found.spatial_layers or found.feature_layers),
        spatial_layers=found.spatial_layers,
        feature_layers=found.feature_layers,
        batch_size=found.batch_size,
        evaluations_per_second=found.evaluations_per_second,
        gradient_evaluations_per_second=found.gradient_evaluations_per_second,
        patch_grid=None if grid is None else model_pb2.PatchGrid(rows=grid[0], columns=grid[1]),
        min_input_size=found.input_limits[0],
        max_input_size=found.input_limits[1],
        deterministic=found.deterministic,
        weights_bytes=loaded.memory_bytes,
        activation_bytes=loaded.activation_bytes,
        weights_digest=found.weights_digest,
        optimizations=[
            model_pb2.Optimization(
                name=step.name, applied=step.applied, detail=step.detail, largest_difference=step.largest_difference
            )
            for step in found.steps
        ],
    )


def _unavailable(row: Row, found: Found) -> str:
    """Returns why a model does not admit a method, and alternatives; empty if it does."""
    missing = []
    if row.name in found.refused:
        return found.refused[row.name]
    if Needs.GRADIENTS in row.explainer.needs and not found.supports_gradients:
        missing.append("gradients of the score, which this model does not return")
    if Needs.SPATIAL_LAYER in row.explainer.needs and not found.spatial_layers:
        missing.append("a layer with a spatial output, which this model does not have")
    if not missing:
        return ""
    free = ", ".join(other.name for other in EXPLAINERS.values() if other.explainer.needs is Needs.NOTHING)
    return f"it needs {' and '.join(missing)}" + (f"; these need neither: {free}" if free else "")


def _describe_parameter(declared: Parameter) -> model_pb2.ParameterDescription:
    bounds = declared.bounds
    return model_pb2.ParameterDescription(
        name=declared.name,
        type=declared.type,
        default=None if declared.type == "tensor" else _value(declared.default),
        minimum=bounds.minimum,
        maximum=bounds.maximum,
        exclusive_minimum=bounds.exclusive_minimum,
        exclusive_maximum=bounds.exclusive_maximum,
        choices=bounds.choices,
        summary=bounds.summary,
    )


@functools.singledispatch
def _value(_default: object) -> struct_pb2.Value | None:
    """Returns a default as a value of the API; None if it has no such form."""
    return None


@_value.register
def _(_default: None) -> struct_pb2.Value:
    return struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)


@_value.register
def _(default: bool) -> struct_pb2.Value:
    return struct_pb2.Value(bool_value=default)


@_value.register(int)
@_value.register(float)
def _(default: float) -> struct_pb2.Value | None:
    return struct_pb2.Value(number_value=default) if math.isfinite(default) else None


@_value.register
def _(default: str) -> struct_pb2.Value:
    return struct_pb2.Value(string_value=default)

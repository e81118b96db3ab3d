"""Models as lines for people."""

from collections import Counter
from collections.abc import Iterator

from sagittal.client import Model, ParameterInfo

#: Bytes.
MIB = 2**20


def listed(model: Model) -> str:
    """Returns the line of a model in a list."""
    classes = f"  {model.classes} classes" if model.classes else ""
    return f"{_title(model)}{classes}  {standing(model)}"


def standing(model: Model) -> str:
    """Says how workers stand to a model, and where to read why one could not load it."""
    states = Counter(worker.state for worker in model.workers)
    if not states:
        return "no worker has it yet"
    said = ", ".join(f"{count} worker{'' if count == 1 else 's'} {state}" for state, count in states.items())
    return f"{said}: see sagittal models show {model.name}" if states["failed"] else said


def checked(model: Model) -> list[str]:
    """Returns what is known of a model's soundness."""
    lines = [_title(model)]
    if model.classes:
        lines += [
            f"  weights  {model.weights_bytes / MIB:.1f} MiB, SHA-256 {model.weights_digest or 'unknown'}",
            f"  batch    {model.activation_bytes / MIB:.1f} MiB at its peak",
            f"  inputs   {_sizes(model)}",
            f"  speed    {_speed(model)}",
        ]
    lines += [f"  worker   {each.worker}  {each.state}  {each.message}".rstrip() for each in model.workers]
    return lines + [f"  {'ok' if each.passed else 'NOT OK':<8} {each.name}: {each.detail}" for each in model.checks]


def describe(model: Model) -> list[str]:
    """Returns a model with the methods that it admits and their parameters."""
    seen = model.preprocessing
    lines = [_title(model), f"  source   {model.source}, registered by {model.origin or 'unknown'}"]
    if model.classes:
        lines += [
            f"  digest   {model.digest}",
            f"  classes  {model.classes}, {model.output}",
            f"  sees     {seen.input_size} px ({seen.fit}, {seen.interpolation})",
            f"  inputs   {_sizes(model)}",
            f"  speed    {_speed(model)}",
        ]
    lines += [
        f"  worker   {each.worker}  {each.state}  {each.device}  {each.message}".rstrip() for each in model.workers
    ]
    lines += [
        f"  {'done' if each.applied else 'skipped':<8} {each.name}: {each.detail}" for each in model.optimizations
    ]
    return [*lines, *_methods(model)]


def _methods(model: Model) -> Iterator[str]:
    for method in model.methods:
        missing = f"  (not for this model: {method.unavailable})" if method.unavailable else ""
        yield from ("", f"  {method.name}{missing}", f"    {method.summary}")
        for parameter in method.parameters:
            yield f"    --set {_parameter(parameter)}"


def _title(model: Model) -> str:
    return f"{model.name}  version {model.version}{' (latest)' if model.latest else ''}"


def _sizes(model: Model) -> str:
    sides = f"{model.min_input_size} to {model.max_input_size} px" if model.max_input_size else "unknown"
    return sides + (f", patches {model.patch_grid[0]}x{model.patch_grid[1]}" if model.patch_grid else "")


def _speed(model: Model) -> str:
    with_gradient = f"{model.gradient_evaluations_per_second:.0f} with gradient"
    said = f"{model.evaluations_per_second:.0f} evaluations/s"
    return f"{said}, {with_gradient}" if model.supports_gradients else f"{said}, no gradients"


def _parameter(parameter: ParameterInfo) -> str:
    shown = f"{parameter.name}={'' if parameter.default is None else parameter.default}"
    admitted = ", ".join(parameter.choices)
    if parameter.minimum is not None and parameter.maximum is not None:
        admitted = f"{parameter.minimum:g} to {parameter.maximum:g}"
    elif parameter.minimum is not None:
        admitted = f"{'above' if parameter.exclusive_minimum else 'at least'} {parameter.minimum:g}"
    return f"{shown:<26} {parameter.summary}" + (f" [{admitted}]" if admitted else "")

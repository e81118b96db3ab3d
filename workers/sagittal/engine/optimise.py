"""Optimises a model without changing its outputs: each step is checked against the original model, and timed.

The steps change the graph that torch.fx traces (`graph`, and on CPUs also `cpu`) and the layout of the weights, and
compile the model if the operator requests it, which takes a minute or more. Three kinds of steps are not applied: those
on a model that cannot be traced, those that change a probability by more than the tolerance, and those that are no
faster. The report states the reason.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sagittal.engine.cpu import cpu_changes
from sagittal.engine.cuda.fusing import VARIANTS
from sagittal.engine.graph import CHANGES, Change, NothingToDo, to_channels_last, trace
from sagittal.engine.timing import Variant, measure_speedup

TOLERANCE = 1e-3
"""Largest difference of a probability that a step may cause."""

GRAPH_SPEEDUP = 0.95
"""Minimum speed-up factor at which a changed graph is kept: it computes no more, so that a lower value is noise."""

LAYOUT_SPEEDUP = 1.05
"""Minimum speed-up factor at which channels-last is kept: it can be slower, and copies inputs."""

TIMED_IMAGES = {"cpu": 2, "cuda": 32}
"""Number of images that are timed, by type of device: a GPU is not busy with few."""

COMPILE = "compile"
"""Name of the step that compiles the model."""

Speedup = Callable[[Variant, Variant, Tensor], float]
"""Returns the speed of the second variant relative to the first, on the probe."""


@dataclass(frozen=True, slots=True)
class Step:
    """An optimisation step and its result."""

    name: str
    applied: bool
    detail: str
    """Its effect, or why it was not applied."""
    largest_difference: float = 0.0
    """Largest difference of a probability from the original model on the probe."""
    timed: bool = False
    """Whether its speed was compared with that of the model without it."""


def optimise(
    module: nn.Module,
    probe: Tensor,
    probabilities: Callable[[Tensor], Tensor],
    *,
    gradient: bool = True,
    compiled: bool = False,
    autocast: torch.dtype | None = None,
    speedup: Speedup = measure_speedup,
) -> tuple[nn.Module, bool, list[Step]]:
    """Returns the optimised module, whether it needs channels-last inputs, and the steps.

    Args:
        module: The model in evaluation mode, with frozen parameters. It is not changed.
        probe: Inputs (n, 3, height, width) on the model's device for the checks.
        probabilities: Converts the model's output to probabilities.
        gradient: Whether the model returns gradients, so that the backward pass is timed too.
        compiled: Whether to try `torch.compile`, which takes a minute or more.
        autocast: Reduced precision in which variants are timed; None for full precision.
        speedup: Compares two variants of the model.
    """
    with torch.inference_mode():
        expected = probabilities(module(probe))
    plain = Variant(module, gradient=gradient, autocast=autocast)
    report: list[Step] = []
    module = _change_graph(module, probe, expected, probabilities, report)
    graph = _keep_if_faster(plain, replace(plain, module=module), probe, GRAPH_SPEEDUP, report, speedup)
    module = _attempt("channels-last", to_channels_last, graph.module, probe, expected, probabilities, report)
    layout = replace(graph, module=module, channels_last=report[-1].applied)
    best = _keep_if_faster(graph, layout, probe, LAYOUT_SPEEDUP, report, speedup)
    if compiled:
        module = _attempt(COMPILE, compile_model, best.module, probe, expected, probabilities, report)
        best = _keep_if_faster(best, replace(best, module=module), probe, LAYOUT_SPEEDUP, report, speedup)
    return best.module, best.channels_last, report


def _change_graph(
    module: nn.Module, probe: Tensor, expected: Tensor, probabilities: Callable[[Tensor], Tensor], report: list[Step]
) -> nn.Module:
    """Returns the module after the graph steps; the module itself if it cannot be traced or no step applies."""
    changes = {**CHANGES, **cpu_changes(probe.device)}
    try:
        traced = trace(module)
    except Exception as error:  # noqa: BLE001 - tracing foreign code may raise anything; the model then runs unchanged
        report.extend(Step(name, False, _said(error)) for name in changes)
        return module
    changed: nn.Module = traced
    for name, change in changes.items():
        changed = _attempt(name, change, changed, probe, expected, probabilities, report)
    return module if changed is traced else changed


def _keep_if_faster(
    before: Variant, after: Variant, probe: Tensor, least: float, report: list[Step], speedup: Speedup
) -> Variant:
    """Returns the faster variant; the steps between the two are reported with the speed-up."""
    if after.module is before.module:
        return before
    factor = speedup(before, after, _timed(probe))
    keep = factor >= least
    said = f"{factor:.2f}x as fast" if keep else f"left out: {factor:.2f}x as fast"
    changed = [index for index, step in enumerate(report) if step.applied and not step.timed]
    for index in changed:
        report[index] = replace(report[index], applied=keep, timed=True)
    # Earlier steps prepare the last one: the speed-up is that of all together.
    last = report[changed[-1]]
    report[changed[-1]] = replace(last, detail=f"{last.detail}; {said}")
    return after if keep else before


def _timed(probe: Tensor) -> Tensor:
    """Returns the images that are timed."""
    images = TIMED_IMAGES.get(probe.device.type, 2)
    return probe.repeat(-(-images // len(probe)), 1, 1, 1)[:images]


def _attempt(
    name: str,
    change: Change,
    module: nn.Module,
    probe: Tensor,
    expected: Tensor,
    probabilities: Callable[[Tensor], Tensor],
    report: list[Step],
) -> nn.Module:
    """Returns the changed module if the change keeps the tolerance, and the original module otherwise."""
    try:
        changed, detail = change(module)
        with torch.inference_mode():
            difference = float((probabilities(changed(probe)) - expected).abs().max())
    except Exception as error:  # noqa: BLE001 - changing foreign code may raise anything; the model then runs unchanged
        report.append(Step(name, False, _said(error)))
        return module
    if not difference <= TOLERANCE:
        report.append(
            Step(name, False, f"changes a probability by {difference:.2g}, more than {TOLERANCE:g}", difference)
        )
        return module
    report.append(Step(name, True, detail, difference))
    return changed


def _said(error: Exception) -> str:
    """Returns why a step was not applied."""
    if isinstance(error, NothingToDo):
        return str(error)
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


class CompiledModel(nn.Module):
    """A model with fused kernels, compiled for each size of batch; on CUDA `engine.cuda` captures its passes."""

    def __init__(self, module: nn.Module) -> None:
        """Compiles nothing yet: the first batch of each size compiles."""
        super().__init__()
        self.plain = module
        self._compiled = torch.compile(module, dynamic=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Runs a batch."""
        outputs: Tensor = self._compiled(inputs)
        return outputs


def compile_model(module: nn.Module) -> tuple[nn.Module, str]:
    """Returns a model that is compiled when it first runs."""
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    return CompiledModel(module), "fused kernels"

"""Makes a model faster without changing what it says: each step is checked against the untouched model, and timed.

The steps change the graph that torch.fx traces (`graph`, and on CPUs `cpu` too), the layout of the weights, and, where
the operator asks for it, compile the model, which takes a minute or more. A model that cannot be traced, a step that
changes a probability by more than the tolerance, and a step that makes nothing faster are left out, and the report says
why.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sagittal.engine.cpu import cpu_changes
from sagittal.engine.graph import CHANGES, Change, NothingToDo, to_channels_last, trace
from sagittal.engine.timing import Variant, measure_speedup

TOLERANCE = 1e-3
"""Largest difference of a probability that a step may make."""

GRAPH_SPEEDUP = 0.95
"""Least speed-up, as a factor, at which the changed graph is kept: it computes no more, so less is a busy machine."""

LAYOUT_SPEEDUP = 1.05
"""Least speed-up at which channels-last is kept: it may as well be slower, and copies inputs."""

TIMED_IMAGES = 2
"""Images of the probe that are timed."""

VARIANTS = 64
"""Most versions of a model that are compiled: one for each size of batch, with and without gradient. Past the limit,
torch would run the model uncompiled without a word."""

COMPILE = "compile"
"""Name of the step that compiles the model."""

Speedup = Callable[[Variant, Variant, Tensor], float]
"""Says how many times as fast the second variant is on the probe."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of making a model faster, as it went."""

    name: str
    applied: bool
    detail: str
    """What it did, or why it was not applied."""
    largest_difference: float = 0.0
    """Of a probability, from the untouched model on the probe."""
    timed: bool = False
    """Whether it was compared in speed with the model without it."""


def optimise(
    module: nn.Module,
    probe: Tensor,
    probabilities: Callable[[Tensor], Tensor],
    *,
    gradient: bool = True,
    compiled: bool = False,
    speedup: Speedup = measure_speedup,
) -> tuple[nn.Module, bool, list[Step]]:
    """Returns a faster module, whether it wants channels-last inputs, and what was done.

    Args:
        module: The model in evaluation mode, parameters frozen. It is not changed.
        probe: Inputs (n, 3, height, width) on the model's device for the checks.
        probabilities: Turns the model's output into probabilities.
        gradient: Whether the model gives gradients, so that the backward pass is timed too.
        compiled: Whether to try `torch.compile`, which takes a minute or more.
        speedup: Compares two variants of the model.
    """
    with torch.inference_mode():
        expected = probabilities(module(probe))
    plain = Variant(module, gradient=gradient)
    report: list[Step] = []
    module = _change_graph(module, probe, expected, probabilities, report)
    graph = _keep_if_faster(plain, Variant(module, gradient=gradient), probe, GRAPH_SPEEDUP, report, speedup)
    module = _attempt("channels-last", to_channels_last, graph.module, probe, expected, probabilities, report)
    layout = Variant(module, channels_last=report[-1].applied, gradient=gradient)
    best = _keep_if_faster(graph, layout, probe, LAYOUT_SPEEDUP, report, speedup)
    if compiled:
        module = _attempt(COMPILE, compile_for(probe.device), best.module, probe, expected, probabilities, report)
        fused = Variant(module, channels_last=best.channels_last, gradient=gradient)
        best = _keep_if_faster(best, fused, probe, LAYOUT_SPEEDUP, report, speedup)
    return best.module, best.channels_last, report


def _change_graph(
    module: nn.Module, probe: Tensor, expected: Tensor, probabilities: Callable[[Tensor], Tensor], report: list[Step]
) -> nn.Module:
    """Returns the module after the steps that work on its graph; itself where it shows none, or no step applies."""
    changes = {**CHANGES, **cpu_changes(probe.device)}
    try:
        traced = trace(module)
    except Exception as error:  # noqa: BLE001 - tracing foreign code may raise anything; the model runs untouched then
        report.extend(Step(name, False, _said(error)) for name in changes)
        return module
    changed: nn.Module = traced
    for name, change in changes.items():
        changed = _attempt(name, change, changed, probe, expected, probabilities, report)
    return module if changed is traced else changed


def _keep_if_faster(
    before: Variant, after: Variant, probe: Tensor, least: float, report: list[Step], speedup: Speedup
) -> Variant:
    """Returns the faster variant; the steps that lie between the two are reported with the figure."""
    if after.module is before.module:
        return before
    factor = speedup(before, after, probe[:TIMED_IMAGES])
    keep = factor >= least
    said = f"{factor:.2f}x as fast" if keep else f"left out: {factor:.2f}x as fast"
    changed = [index for index, step in enumerate(report) if step.applied and not step.timed]
    for index in changed:
        report[index] = replace(report[index], applied=keep, timed=True)
    # Steps before the last prepare it: the figure is of all together.
    last = report[changed[-1]]
    report[changed[-1]] = replace(last, detail=f"{last.detail}; {said}")
    return after if keep else before


def _attempt(
    name: str,
    change: Change,
    module: nn.Module,
    probe: Tensor,
    expected: Tensor,
    probabilities: Callable[[Tensor], Tensor],
    report: list[Step],
) -> nn.Module:
    """Returns the changed module where the change holds the tolerance, else the module as it was."""
    try:
        changed, detail = change(module)
        with torch.inference_mode():
            difference = float((probabilities(changed(probe)) - expected).abs().max())
    except Exception as error:  # noqa: BLE001 - changing foreign code may raise anything; the model runs as it was then
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
    """A compiled model: fused kernels everywhere, and CUDA graphs on CUDA, which need batches of few, fixed sizes.

    Each call begins a new turn of the CUDA graphs, whose outputs the next turn overwrites.
    """

    def __init__(self, module: nn.Module, *, graphs: bool) -> None:
        """Compiles nothing yet: that is done at the first batch of each size."""
        super().__init__()
        self.plain = module
        self._graphs = graphs
        mode = "reduce-overhead" if graphs else "default"
        self._compiled = torch.compile(module, mode=mode, dynamic=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Runs a batch; the output is the caller's to keep."""
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        outputs: Tensor = self._compiled(inputs)
        return outputs.clone() if self._graphs else outputs


def compile_for(device: torch.device) -> Change:
    """Returns the step that compiles a model for a device."""

    def compile_model(module: nn.Module) -> tuple[nn.Module, str]:
        torch._dynamo.config.recompile_limit = VARIANTS
        graphs = device.type == "cuda"
        return CompiledModel(module, graphs=graphs), "fused kernels and CUDA graphs" if graphs else "fused kernels"

    return compile_model

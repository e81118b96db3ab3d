"""Makes a model faster without changing what it says: each step is checked against the untouched model, and timed.

The steps work on the graph that torch.fx traces, not on the names of one model's layers. A model that cannot be traced,
a step that changes a probability by more than the tolerance, and a step that makes nothing faster are left out, and the
report says why.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sagittal.engine.compilation import compile_for
from sagittal.engine.fusion import ClampedConvolution, clamp_of
from sagittal.engine.modular import make_modular
from sagittal.engine.timing import Variant, measure_speedup

TOLERANCE = 1e-3
"""Largest difference of a probability that a step may make."""

GRAPH_SPEEDUP = 0.95
"""Least speed-up, as a factor, at which the changed graph is kept: it computes no more, so less is a busy machine."""

LAYOUT_SPEEDUP = 1.05
"""Least speed-up at which channels-last is kept: it may as well be slower, and copies inputs."""

TIMED_IMAGES = 2
"""Images of the probe that are timed."""

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


class NothingToDo(Exception):
    """A step found nothing that it could change; the message says what it looked for."""


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
    module = _attempt("channels-last", _to_channels_last, graph.module, probe, expected, probabilities, report)
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
    try:
        traced = _trace(module)
    except Exception as error:  # noqa: BLE001 - tracing foreign code may raise anything; the model runs untouched then
        report.extend(Step(name, False, _said(error)) for name in _CHANGES)
        return module
    changed: nn.Module = traced
    for name, change in _CHANGES.items():
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
    change: Callable[[nn.Module], tuple[nn.Module, str]],
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


def _trace(module: nn.Module) -> fx.GraphModule:
    if any(isinstance(layer, torch.jit.ScriptModule) for layer in module.modules()):
        raise NothingToDo("TorchScript cannot be traced; it runs as it was saved")
    if isinstance(module, fx.GraphModule):
        return copy.deepcopy(module)
    return fx.symbolic_trace(copy.deepcopy(module))


def _modular_layers(module: nn.Module) -> tuple[nn.Module, str]:
    """Makes functional layers with constant weights into modules, so that the other steps see them."""
    graph_module = _trace(module)
    made = make_modular(graph_module)
    if not made:
        raise NothingToDo("no functional convolutions or batch norms")
    return _finish(graph_module), ", ".join(f"{count} functional {kind} became modules" for kind, count in made.items())


def _fold_batch_norms(module: nn.Module) -> tuple[nn.Module, str]:
    """Folds each batch norm into the convolution before it."""
    graph_module = _trace(module)
    modules = dict(graph_module.named_modules())
    folded = 0
    for node in list(graph_module.graph.nodes):
        if (source := _single_source(node, modules, nn.BatchNorm2d, nn.Conv2d)) is not None:
            fused = fuse_conv_bn_eval(modules[str(source.target)], modules[str(node.target)])
            _replace_module(graph_module, str(source.target), fused)
            modules[str(source.target)] = fused
            node.replace_all_uses_with(source)
            graph_module.graph.erase_node(node)
            folded += 1
    if not folded:
        raise NothingToDo("no batch norm follows a convolution")
    return _finish(graph_module), f"{folded} batch norms folded"


def _merge_padding(module: nn.Module) -> tuple[nn.Module, str]:
    """Merges zero padding into the convolution that follows."""
    graph_module = _trace(module)
    modules = dict(graph_module.named_modules())
    merged = 0
    for node in list(graph_module.graph.nodes):
        source = _single_source(node, modules, nn.Conv2d, nn.ZeroPad2d)
        if source is None:
            continue
        grown = _padded(modules[str(node.target)], modules[str(source.target)].padding)
        if grown is None:
            continue
        _replace_module(graph_module, str(node.target), grown)
        source.replace_all_uses_with(source.args[0])  # type: ignore[arg-type]
        graph_module.graph.erase_node(source)
        merged += 1
    if not merged:
        raise NothingToDo("no zero padding before a convolution")
    return _finish(graph_module), f"{merged} paddings merged into convolutions"


def _padded(convolution: nn.Conv2d, padding: Sequence[int]) -> nn.Conv2d | None:
    """Returns a convolution that pads by itself, None where it cannot.

    Where two sides differ, the kernel is wider by zeros on the lesser one.
    """
    if convolution.padding_mode != "zeros" or isinstance(convolution.padding, str):
        return None
    left, right, top, bottom = padding
    columns, rows = max(left, right), max(top, bottom)
    grown = copy.deepcopy(convolution)
    grown.padding = (convolution.padding[0] + rows, convolution.padding[1] + columns)
    if left != right or top != bottom:
        if convolution.dilation != (1, 1):
            return None
        zeros = (columns - left, columns - right, rows - top, rows - bottom)
        grown.weight = nn.Parameter(nn.functional.pad(convolution.weight, zeros), requires_grad=False)
        grown.kernel_size = (grown.weight.shape[-2], grown.weight.shape[-1])
    return grown


def _fuse_activations(module: nn.Module) -> tuple[nn.Module, str]:
    """Makes each convolution and the clamp after it one kernel, on CPUs."""
    graph_module = _trace(module)
    modules = dict(graph_module.named_modules())
    fused = 0
    for node in list(graph_module.graph.nodes):
        clamp = clamp_of(node, modules)
        source = node.args[0] if clamp and node.args else None
        if clamp is None or not isinstance(source, fx.Node) or not _fusable(source, modules):
            continue
        convolution = modules[str(source.target)]
        _replace_module(graph_module, str(source.target), ClampedConvolution(convolution, clamp))
        node.replace_all_uses_with(source)
        graph_module.graph.erase_node(node)
        fused += 1
    if not fused:
        raise NothingToDo("no convolution on a CPU with a clamp after it")
    return _finish(graph_module), f"{fused} activations fused with convolutions"


def _fusable(source: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node is a convolution that the fused kernel can take the place of, used here alone."""
    if source.op != "call_module" or len(source.users) != 1 or not _called_once(source):
        return False
    module = modules.get(str(source.target))
    if type(module) is not nn.Conv2d or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return False
    on_cpu = module.weight.device.type == "cpu" and module.weight.dtype == torch.float32
    return on_cpu and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def _single_source(
    node: fx.Node, modules: dict[str, nn.Module], kind: type[nn.Module], source_kind: type[nn.Module]
) -> fx.Node | None:
    """Returns the node before `node` where both are modules of the given kinds and nothing else uses either."""
    if node.op != "call_module" or type(modules.get(str(node.target))) is not kind:
        return None
    source = node.args[0]
    if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
        return None
    if type(modules.get(str(source.target))) is not source_kind:
        return None
    return source if _called_once(node) and _called_once(source) else None


def _called_once(node: fx.Node) -> bool:
    calls = [other for other in node.graph.nodes if other.op == "call_module" and other.target == node.target]
    return len(calls) == 1


def _replace_module(graph_module: fx.GraphModule, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(graph_module.get_submodule(parent), name, module)


def _finish(graph_module: fx.GraphModule) -> nn.Module:
    graph_module.graph.eliminate_dead_code()
    graph_module.graph.lint()
    graph_module.recompile()
    graph_module.delete_all_unused_submodules()
    return graph_module.eval().requires_grad_(False)


def _to_channels_last(module: nn.Module) -> tuple[nn.Module, str]:
    """Stores weights of convolutions with channels last, which most kernels prefer."""
    if not any(isinstance(layer, nn.Conv2d | ClampedConvolution) for layer in module.modules()):
        raise NothingToDo("no convolutions")
    return copy.deepcopy(module).to(memory_format=torch.channels_last), "weights and inputs with channels last"


_CHANGES: dict[str, Callable[[nn.Module], tuple[nn.Module, str]]] = {
    "modular-layers": _modular_layers,
    "fold-batch-norm": _fold_batch_norms,
    "merge-padding": _merge_padding,
    "fuse-activations": _fuse_activations,
}

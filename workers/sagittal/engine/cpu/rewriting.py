"""The steps that change a model's graph, as torch.fx traces it: none goes by the names of one model's layers."""

import copy
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sagittal.engine.cpu.kernels import Clamp, FrozenChain, FrozenConvolution, SteadyLinear, clamp_of, freezable

# Functional layers as modules: what calls `conv2d` or `batch_norm` with its own weights is changed like any other.
#
# EfficientNet-Lite's convolutions pad apart and call `conv2d`; timm's batch norms with activation call `batch_norm`.


_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
"""Parameters of `conv2d`, in order."""

_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
"""Parameters of `batch_norm`, in order."""

Arguments = Mapping[str, Any]


def make_modular(graph_module: fx.GraphModule) -> Mapping[str, int]:
    """Replaces the functional layers whose weights are attributes, and returns how many of each kind there were."""
    made: Counter[str] = Counter()
    for node in list(graph_module.graph.nodes):
        kind, names, module_of = _KINDS.get(node.target, _OTHER) if node.op == "call_function" else _OTHER
        arguments = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        if (module := module_of(graph_module, arguments)) is not None:
            _replace(graph_module, node, arguments["input"], module, f"{kind.replace(' ', '_')}_{made[kind]}")
            made[kind] += 1
    return made


def _replace(graph_module: fx.GraphModule, node: fx.Node, source: fx.Node, module: nn.Module, name: str) -> None:
    graph_module.add_module(name, module.eval().requires_grad_(False))
    with graph_module.graph.inserting_before(node):
        replacement = graph_module.graph.call_module(name, (source,))
    node.replace_all_uses_with(replacement)
    graph_module.graph.erase_node(node)
    _drop_assertions(source)


def _drop_assertions(source: fx.Node) -> None:
    """Drops what a functional layer asserts of its input's shape: it would count as another use of the input."""
    for user in list(source.users):
        chain = [user]
        while len(chain[-1].users) == 1:
            chain.append(next(iter(chain[-1].users)))
        if chain[-1].target is torch._assert:
            for node in reversed(chain):
                node.graph.erase_node(node)


def _convolution(graph_module: fx.GraphModule, arguments: Arguments) -> nn.Module | None:
    """Returns a convolution whose weights are attributes and whose padding is a number; None for others."""
    weight = _attribute(graph_module, arguments.get("weight"))
    bias = _attribute(graph_module, arguments.get("bias"))
    if weight is None or isinstance(arguments.get("padding", 0), str):
        return None
    groups = int(arguments.get("groups", 1))
    convolution = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        (weight.shape[-2], weight.shape[-1]),
        _pair(arguments.get("stride", 1)),
        _pair(arguments.get("padding", 0)),
        _pair(arguments.get("dilation", 1)),
        groups,
        bias=bias is not None,
    )
    convolution.weight = nn.Parameter(weight.detach())
    if bias is not None:
        convolution.bias = nn.Parameter(bias.detach())
    return convolution


def _batch_norm(graph_module: fx.GraphModule, arguments: Arguments) -> nn.Module | None:
    """Returns a batch norm by statistics that are attributes, after a convolution to fold it into; None for others."""
    source = arguments["input"]
    if source.op != "call_module" or not isinstance(graph_module.get_submodule(source.target), nn.Conv2d):
        return None
    mean, variance, weight, bias = (_attribute(graph_module, arguments.get(name)) for name in _BATCH_NORM[1:5])
    if mean is None or variance is None or weight is None or bias is None or arguments.get("training", False):
        return None
    norm = nn.BatchNorm2d(len(mean), eps=float(arguments.get("eps", 1e-5)), device=mean.device, dtype=mean.dtype)
    norm.running_mean, norm.running_var = mean.detach(), variance.detach()
    norm.weight, norm.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    return norm


def _none(_graph_module: fx.GraphModule, _arguments: Arguments) -> None:
    """Returns nothing: other nodes stay as they are."""


def _attribute(graph_module: fx.GraphModule, node: object) -> Tensor | None:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value = operator.attrgetter(str(node.target))(graph_module)
    return value if isinstance(value, Tensor) else None


def _pair(value: object) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else tuple(value)  # type: ignore[arg-type]
    return int(first), int(second)


_Make = Callable[[fx.GraphModule, Arguments], nn.Module | None]

_KINDS: Mapping[object, tuple[str, tuple[str, ...], _Make]] = {
    F.conv2d: ("convolutions", _CONVOLUTION, _convolution),
    torch.conv2d: ("convolutions", _CONVOLUTION, _convolution),
    F.batch_norm: ("batch norms", _BATCH_NORM, _batch_norm),
}
"""Functions, what they are called, their parameters, and what makes a module of them."""

_OTHER: tuple[str, tuple[str, ...], _Make] = ("", (), _none)


_ADDITIONS = (operator.add, operator.iadd, torch.add)

_RECTIFIER = Clamp(0.0)


class NothingToDo(Exception):
    """A step found nothing that it could change; the message says what it looked for."""


def trace(module: nn.Module) -> fx.GraphModule:
    """Returns a copy of a module with its graph. Raises where it shows none."""
    if any(isinstance(layer, torch.jit.ScriptModule) for layer in module.modules()):
        raise NothingToDo("TorchScript cannot be traced; it runs as it was saved")
    if isinstance(module, fx.GraphModule):
        return copy.deepcopy(module)
    return fx.symbolic_trace(copy.deepcopy(module))


def _at_every_node(module: nn.Module, change: Callable[[fx.Node], bool], nothing: str) -> tuple[nn.Module, int]:
    """Returns a copy changed node by node, and how many changed. Raises NothingToDo where none did."""
    graph_module = trace(module)
    changed = sum(change(node) for node in list(graph_module.graph.nodes))
    if not changed:
        raise NothingToDo(nothing)
    return _finish(graph_module), changed


def _modular_layers(module: nn.Module) -> tuple[nn.Module, str]:
    """Makes functional layers with constant weights into modules, so that the other steps see them."""
    graph_module = trace(module)
    made = make_modular(graph_module)
    if not made:
        raise NothingToDo("no functional convolutions or batch norms")
    return _finish(graph_module), ", ".join(f"{count} functional {kind} became modules" for kind, count in made.items())


def _fold_batch_norms(module: nn.Module) -> tuple[nn.Module, str]:
    """Folds each batch norm into the convolution before it."""
    folded, count = _at_every_node(module, _fold_batch_norm, "no batch norm follows a convolution")
    return folded, f"{count} batch norms folded"


def _fold_batch_norm(node: fx.Node) -> bool:
    source = _single_source(node)
    norm, convolution = _module_of(node), _module_of(source)
    if source is None or type(norm) is not nn.BatchNorm2d or type(convolution) is not nn.Conv2d:
        return False
    _replace_module(source, fuse_conv_bn_eval(convolution, norm))
    _drop(node, source)
    return True


def _merge_padding(module: nn.Module) -> tuple[nn.Module, str]:
    """Merges zero padding into the convolution that follows."""
    merged, count = _at_every_node(module, _merge_one_padding, "no zero padding before a convolution")
    return merged, f"{count} paddings merged into convolutions"


def _merge_one_padding(node: fx.Node) -> bool:
    source = _single_source(node)
    convolution, padding = _module_of(node), _module_of(source)
    if source is None or type(convolution) is not nn.Conv2d or type(padding) is not nn.ZeroPad2d:
        return False
    grown = _padded(convolution, padding.padding)
    if grown is None:
        return False
    _replace_module(node, grown)
    _drop(source, source.args[0])  # type: ignore[arg-type]
    return True


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
    fused, count = _at_every_node(module, _fuse_activation, "no convolution on a CPU with a clamp after it")
    return fused, f"{count} activations fused with convolutions"


def _fuse_activation(node: fx.Node) -> bool:
    clamp = clamp_of(node, _module_of(node))
    source = node.args[0] if clamp and node.args else None
    if clamp is None or not isinstance(source, fx.Node) or len(source.users) != 1 or not _called_once(source):
        return False
    convolution = freezable(_module_of(source))
    if convolution is None:
        return False
    _replace_module(source, FrozenConvolution(convolution, clamp))
    _drop(node, source)
    return True


def _fuse_additions(module: nn.Module) -> tuple[nn.Module, str]:
    """Makes each convolution, what is added to it and the clamp of the sum at zero one kernel, on CPUs."""
    fused, count = _at_every_node(module, _fuse_addition, "no convolution on a CPU with an addition after it")
    return fused, f"{count} additions fused with convolutions"


def _fuse_addition(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target not in _ADDITIONS or len(node.args) != 2 or node.kwargs:
        return False
    for source, other in (node.args, reversed(node.args)):
        if not isinstance(source, fx.Node) or not isinstance(other, fx.Node) or source is other:
            continue
        convolution = freezable(_module_of(source))
        if convolution is not None and len(source.users) == 1 and _called_once(source):
            clamped = next(iter(node.users)) if len(node.users) == 1 else node
            rectified = clamp_of(clamped, _module_of(clamped)) == _RECTIFIER
            _replace_module(source, FrozenConvolution(convolution, _RECTIFIER if rectified else None, adds=True))
            with node.graph.inserting_before(node):
                fused = node.graph.call_module(str(source.target), (source.args[0], other))
            if rectified:
                _drop(clamped, node)
            _drop(node, fused)
            node.graph.erase_node(source)
            return True
    return False


def _freeze_convolutions(module: nn.Module) -> tuple[nn.Module, str]:
    """Calls the kernels of the other convolutions straight too, and makes those one after another one layer."""
    graph_module = trace(module)
    frozen = sum(_freeze(node) for node in list(graph_module.graph.nodes))
    if not any(isinstance(layer, FrozenConvolution) for layer in graph_module.modules()):
        raise NothingToDo("no convolution on a CPU")
    joined = sum(_join(node) for node in list(graph_module.graph.nodes))
    detail = f"{frozen} more convolutions by their kernels, weights laid out once; {joined} joined with the one before"
    return _finish(graph_module), detail


def _freeze(node: fx.Node) -> bool:
    convolution = freezable(_module_of(node))
    if convolution is None:
        return False
    _replace_module(node, FrozenConvolution(convolution))
    return True


def _join(node: fx.Node) -> bool:
    source, layer = _single_source(node), _module_of(node)
    before = _module_of(source)
    if source is None or len(source.args) != 1 or not isinstance(layer, FrozenConvolution):
        return False
    if not isinstance(before, FrozenConvolution | FrozenChain):
        return False
    layers = before.layers if isinstance(before, FrozenChain) else [before]
    _replace_module(node, FrozenChain([*layers, layer]))
    # The later call stays: what it adds may be made between the two.
    node.args = (source.args[0], *node.args[1:])
    node.graph.erase_node(source)
    return True


def _steady_linear_layers(module: nn.Module) -> tuple[nn.Module, str]:
    """Runs linear layers so that a row depends as little as can be on the number of rows, on CPUs."""
    steady, count = _at_every_node(module, _steady, "no linear layer on a CPU")
    return steady, f"{count} linear layers by products of whole columns, weights laid out once"


def _steady(node: fx.Node) -> bool:
    linear = _module_of(node)
    if type(linear) is not nn.Linear or linear.weight.device.type != "cpu":
        return False
    _replace_module(node, SteadyLinear(linear))
    return True


def to_channels_last(module: nn.Module) -> tuple[nn.Module, str]:
    """Stores weights of convolutions with channels last, which most kernels prefer."""
    if not any(isinstance(layer, nn.Conv2d | FrozenConvolution) for layer in module.modules()):
        raise NothingToDo("no convolutions")
    return copy.deepcopy(module).to(memory_format=torch.channels_last), "weights and inputs with channels last"


def _module_of(node: fx.Node | None) -> nn.Module | None:
    """Returns the module that a node calls; None for other nodes."""
    return _owner(node).get_submodule(str(node.target)) if node is not None and node.op == "call_module" else None


def _owner(node: fx.Node) -> nn.Module:
    owner = node.graph.owning_module
    if owner is None:
        raise ValueError("the graph belongs to no module")
    return owner


def _single_source(node: fx.Node) -> fx.Node | None:
    """Returns the module call before a module call, where nothing else uses either; None for others."""
    source = node.args[0] if node.op == "call_module" and node.args else None
    if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
        return None
    return source if _called_once(node) and _called_once(source) else None


def _called_once(node: fx.Node) -> bool:
    calls = [other for other in node.graph.nodes if other.op == "call_module" and other.target == node.target]
    return len(calls) == 1


def _replace_module(node: fx.Node, module: nn.Module) -> None:
    parent, _, name = str(node.target).rpartition(".")
    setattr(_owner(node).get_submodule(parent), name, module)


def _drop(node: fx.Node, instead: fx.Node) -> None:
    """Takes a node out of the graph, another in its place."""
    node.replace_all_uses_with(instead)
    node.graph.erase_node(node)


def _finish(graph_module: fx.GraphModule) -> nn.Module:
    graph_module.graph.eliminate_dead_code()
    graph_module.graph.lint()
    graph_module.recompile()
    graph_module.delete_all_unused_submodules()
    return graph_module.eval().requires_grad_(False)


CHANGES: dict[str, Callable[[nn.Module], tuple[nn.Module, str]]] = {
    "modular-layers": _modular_layers,
    "fold-batch-norm": _fold_batch_norms,
    "merge-padding": _merge_padding,
    "fuse-activations": _fuse_activations,
    "fuse-additions": _fuse_additions,
    "freeze-convolutions": _freeze_convolutions,
    "steady-linear-layers": _steady_linear_layers,
}

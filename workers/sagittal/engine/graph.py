"""A model's graph as traced by torch.fx, and the graph changes for every device.

No change depends on the names of one model's layers. EfficientNet-Lite pads separately from its convolutions and calls
`conv2d`; timm's batch norms with activation call `batch_norm`. Calls of such functions with constant weights are first
replaced by layers, and then changed like any other layer.
"""

import copy
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Change = Callable[[nn.Module], tuple[nn.Module, str]]
"""Returns a changed copy of a module, and a description of the change. Raises NothingToDo."""


class NothingToDo(Exception):
    """A step found nothing to change; the message states what it searched for."""


def trace(module: nn.Module) -> fx.GraphModule:
    """Returns a copy of a module with its graph. Raises an exception if it cannot be traced."""
    if any(isinstance(layer, torch.jit.ScriptModule) for layer in module.modules()):
        raise NothingToDo("TorchScript cannot be traced; it runs as it was saved")
    if isinstance(module, fx.GraphModule):
        return copy.deepcopy(module)
    return fx.symbolic_trace(copy.deepcopy(module))


def change_nodes(module: nn.Module, change: Callable[[fx.Node], bool], nothing: str) -> tuple[nn.Module, int]:
    """Returns a copy changed node by node, and the number of changes. Raises NothingToDo if there are none."""
    graph_module = trace(module)
    changed = sum(change(node) for node in list(graph_module.graph.nodes))
    if not changed:
        raise NothingToDo(nothing)
    return finish(graph_module), changed


def module_of(node: fx.Node | None) -> nn.Module | None:
    """Returns the module that a node calls; None for other nodes."""
    return _owner(node).get_submodule(str(node.target)) if node is not None and node.op == "call_module" else None


def _owner(node: fx.Node) -> nn.Module:
    owner = node.graph.owning_module
    if owner is None:
        raise ValueError("the graph belongs to no module")
    return owner


def single_source(node: fx.Node) -> fx.Node | None:
    """Returns the module call before a module call if nothing else uses either; None for others."""
    source = node.args[0] if node.op == "call_module" and node.args else None
    if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
        return None
    return source if is_called_once(node) and is_called_once(source) else None


def is_called_once(node: fx.Node) -> bool:
    """Returns whether no other node calls the module that a node calls."""
    calls = [other for other in node.graph.nodes if other.op == "call_module" and other.target == node.target]
    return len(calls) == 1


def replace_module(node: fx.Node, module: nn.Module) -> None:
    """Makes a node call another module."""
    parent, _, name = str(node.target).rpartition(".")
    setattr(_owner(node).get_submodule(parent), name, module)


def drop(node: fx.Node, instead: fx.Node) -> None:
    """Replaces a node by another one that is already in the graph."""
    node.replace_all_uses_with(instead)
    node.graph.erase_node(node)


def finish(graph_module: fx.GraphModule) -> nn.Module:
    """Returns a changed graph as a runnable module, without unused nodes and modules."""
    graph_module.graph.eliminate_dead_code()
    graph_module.graph.lint()
    graph_module.recompile()
    graph_module.delete_all_unused_submodules()
    return graph_module.eval().requires_grad_(False)


_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
"""Parameters of `conv2d`, in order."""

_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
"""Parameters of `batch_norm`, in order."""

Arguments = Mapping[str, Any]


def make_modular(graph_module: fx.GraphModule) -> Mapping[str, int]:
    """Replaces functional layers whose weights are attributes, and returns the number of each kind."""
    made: Counter[str] = Counter()
    for node in list(graph_module.graph.nodes):
        kind, names, make = _KINDS.get(node.target, _OTHER) if node.op == "call_function" else _OTHER
        arguments = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        if (module := make(graph_module, arguments)) is not None:
            _replace_call(graph_module, node, arguments["input"], module, f"{kind.replace(' ', '_')}_{made[kind]}")
            made[kind] += 1
    return made


def _replace_call(graph_module: fx.GraphModule, node: fx.Node, source: fx.Node, module: nn.Module, name: str) -> None:
    graph_module.add_module(name, module.eval().requires_grad_(False))
    with graph_module.graph.inserting_before(node):
        replacement = graph_module.graph.call_module(name, (source,))
    node.replace_all_uses_with(replacement)
    graph_module.graph.erase_node(node)
    _drop_assertions(source)


def _drop_assertions(source: fx.Node) -> None:
    """Removes a functional layer's assertions on the shape of its input: they would count as uses of the input."""
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
    """Returns a batch norm whose statistics are attributes, after a convolution to fold it into; None for others."""
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
    """Returns None: other nodes stay unchanged."""


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
"""Functions with their names, their parameters, and the constructors of their modules."""

_OTHER: tuple[str, tuple[str, ...], _Make] = ("", (), _none)


def _modular_layers(module: nn.Module) -> tuple[nn.Module, str]:
    """Replaces functional layers with constant weights by modules, so that later steps apply to them."""
    graph_module = trace(module)
    made = make_modular(graph_module)
    if not made:
        raise NothingToDo("no functional convolutions or batch norms")
    return finish(graph_module), ", ".join(f"{count} functional {kind} became modules" for kind, count in made.items())


def _fold_batch_norms(module: nn.Module) -> tuple[nn.Module, str]:
    """Folds each batch norm into the convolution before it."""
    folded, count = change_nodes(module, _fold_batch_norm, "no batch norm follows a convolution")
    return folded, f"{count} batch norms folded"


def _fold_batch_norm(node: fx.Node) -> bool:
    source = single_source(node)
    norm, convolution = module_of(node), module_of(source)
    if source is None or type(norm) is not nn.BatchNorm2d or type(convolution) is not nn.Conv2d:
        return False
    replace_module(source, fuse_conv_bn_eval(convolution, norm))
    drop(node, source)
    return True


def _merge_padding(module: nn.Module) -> tuple[nn.Module, str]:
    """Merges zero padding into the convolution that follows."""
    merged, count = change_nodes(module, _merge_one_padding, "no zero padding before a convolution")
    return merged, f"{count} paddings merged into convolutions"


def _merge_one_padding(node: fx.Node) -> bool:
    source = single_source(node)
    convolution, padding = module_of(node), module_of(source)
    if source is None or type(convolution) is not nn.Conv2d or type(padding) is not nn.ZeroPad2d:
        return False
    grown = _padded(convolution, padding.padding)
    if grown is None:
        return False
    replace_module(node, grown)
    drop(source, source.args[0])  # type: ignore[arg-type]
    return True


def _padded(convolution: nn.Conv2d, padding: Sequence[int]) -> nn.Conv2d | None:
    """Returns a convolution that includes the padding, None if that is impossible.

    If two sides differ, the kernel is extended by zeros on the smaller side.
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


def to_channels_last(module: nn.Module) -> tuple[nn.Module, str]:
    """Stores weights of convolutions with channels last, which most kernels prefer."""
    if not any(weights.ndim == 4 for weights in module.parameters()):
        raise NothingToDo("no convolutions")
    return copy.deepcopy(module).to(memory_format=torch.channels_last), "weights and inputs with channels last"


CHANGES: Mapping[str, Change] = {
    "modular-layers": _modular_layers,
    "fold-batch-norm": _fold_batch_norms,
    "merge-padding": _merge_padding,
}
"""The changes of a graph by name, in order."""

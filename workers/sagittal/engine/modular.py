"""Functional layers as modules: what calls `conv2d` or `batch_norm` with its own weights is changed like any other.

EfficientNet-Lite's convolutions pad apart and call `conv2d`; timm's batch norms with activation call `batch_norm`.
"""

import operator
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

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

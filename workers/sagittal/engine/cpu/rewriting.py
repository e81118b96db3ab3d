"""Graph changes for CPUs: layers are replaced by those of `sagittal.engine.cpu.kernels`."""

import operator
from collections.abc import Mapping

import torch
from torch import fx, nn

from sagittal.engine.cpu.kernels import Clamp, FrozenChain, FrozenConvolution, SteadyLinear, clamp_of, freezable
from sagittal.engine.graph import (
    Change,
    NothingToDo,
    change_nodes,
    drop,
    finish,
    is_called_once,
    module_of,
    replace_module,
    single_source,
    trace,
)

_ADDITIONS = (operator.add, operator.iadd, torch.add)

_RECTIFIER = Clamp(0.0)


def cpu_changes(device: torch.device) -> Mapping[str, Change]:
    """Returns the changes for a model on a device, by name and in order; none if the device is not a CPU."""
    if device.type != "cpu":
        return {}
    return {
        "fuse-activations": _fuse_activations,
        "fuse-additions": _fuse_additions,
        "freeze-convolutions": _freeze_convolutions,
        "steady-linear-layers": _steady_linear_layers,
    }


def _fuse_activations(module: nn.Module) -> tuple[nn.Module, str]:
    """Fuses each convolution with the clamp after it."""
    fused, count = change_nodes(module, _fuse_activation, "no convolution with a clamp after it")
    return fused, f"{count} activations fused with convolutions"


def _fuse_activation(node: fx.Node) -> bool:
    clamp = clamp_of(node, module_of(node))
    source = node.args[0] if clamp and node.args else None
    if clamp is None or not isinstance(source, fx.Node) or len(source.users) != 1 or not is_called_once(source):
        return False
    convolution = freezable(module_of(source))
    if convolution is None:
        return False
    replace_module(source, FrozenConvolution(convolution, clamp))
    drop(node, source)
    return True


def _fuse_additions(module: nn.Module) -> tuple[nn.Module, str]:
    """Fuses each convolution with the addition to its output and the rectification of the sum."""
    fused, count = change_nodes(module, _fuse_addition, "no convolution with an addition after it")
    return fused, f"{count} additions fused with convolutions"


def _fuse_addition(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target not in _ADDITIONS or len(node.args) != 2 or node.kwargs:
        return False
    for source, other in (node.args, reversed(node.args)):
        if not isinstance(source, fx.Node) or not isinstance(other, fx.Node) or source is other:
            continue
        convolution = freezable(module_of(source))
        if convolution is not None and len(source.users) == 1 and is_called_once(source):
            clamped = next(iter(node.users)) if len(node.users) == 1 else node
            rectified = clamp_of(clamped, module_of(clamped)) == _RECTIFIER
            replace_module(source, FrozenConvolution(convolution, _RECTIFIER if rectified else None, adds=True))
            with node.graph.inserting_before(node):
                fused = node.graph.call_module(str(source.target), (source.args[0], other))
            if rectified:
                drop(clamped, node)
            drop(node, fused)
            node.graph.erase_node(source)
            return True
    return False


def _freeze_convolutions(module: nn.Module) -> tuple[nn.Module, str]:
    """Calls the kernels of the other convolutions directly too, and joins convolutions in sequence to one layer."""
    graph_module = trace(module)
    frozen = sum(_freeze(node) for node in list(graph_module.graph.nodes))
    if not any(isinstance(layer, FrozenConvolution) for layer in graph_module.modules()):
        raise NothingToDo("no convolution")
    joined = sum(_join(node) for node in list(graph_module.graph.nodes))
    detail = f"{frozen} more convolutions by their kernels, weights laid out once; {joined} joined with the one before"
    return finish(graph_module), detail


def _freeze(node: fx.Node) -> bool:
    convolution = freezable(module_of(node))
    if convolution is None:
        return False
    replace_module(node, FrozenConvolution(convolution))
    return True


def _join(node: fx.Node) -> bool:
    source, layer = single_source(node), module_of(node)
    before = module_of(source)
    if source is None or len(source.args) != 1 or not isinstance(layer, FrozenConvolution):
        return False
    if not isinstance(before, FrozenConvolution | FrozenChain):
        return False
    layers = before.layers if isinstance(before, FrozenChain) else [before]
    replace_module(node, FrozenChain([*layers, layer]))
    # The later call stays: the tensor that it adds may be computed between the two.
    node.args = (source.args[0], *node.args[1:])
    node.graph.erase_node(source)
    return True


def _steady_linear_layers(module: nn.Module) -> tuple[nn.Module, str]:
    """Runs linear layers so that a row depends as little as possible on the number of rows."""
    steady, count = change_nodes(module, _steady, "no linear layer")
    return steady, f"{count} linear layers by products of whole columns, weights laid out once"


def _steady(node: fx.Node) -> bool:
    linear = module_of(node)
    if type(linear) is not nn.Linear:
        return False
    replace_module(node, SteadyLinear(linear))
    return True

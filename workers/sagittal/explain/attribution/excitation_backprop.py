"""Excitation backpropagation: probability passed down from a class by winner-take-all (Zhang et al., ECCV 2016).

The class starts with probability one. Each neuron passes its probability to the neurons that excite it, in proportion
to activation times weight, for positive weights and non-negative activations only: `P(a_j) = a_j sum_i w+_ji P(a_i) /
sum_k a_k w+_ki`. Every rule below has this form, `a * vjp(P / g(a))`, with `g` the operation without bias and with its
weights cut at zero. The rule keeps the sum: at a layer that every path crosses, the probabilities sum to one. Maximum
pooling passes its probability to the maximum; a residual sum and a concatenation pass theirs to their inputs in
proportion. A batch norm is folded into the convolution before it; elsewhere it is a scale.

The method is defined for graphs that torch.fx can trace, if the operations between the layer and the output are among:
convolution, linear, batch norm, pooling, mean, padding, addition, concatenation, changes of shape, dropout, ReLU,
ReLU6. This covers any layer of VGG, ResNet, DenseNet, GoogLeNet and MobileNet. In networks with gates
(squeeze-and-excitation) or smooth activations it covers only the layers above them, usually including the last layer
with a spatial output. It does not cover transformers. Anything else raises Unsupported.

The peak of the heatmap is the probability that arrives. It is less than one if other paths bypass the layer, or if the
bias alone excites a neuron. Trained depthwise convolutions often have such neurons: little probability arrives deep
inside MobileNets.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sagittal.engine.requests import ModelView, OutOfBudget
from sagittal.explain.attribution.layers import SpatialLayer, Unsupported, heatmap, locate, model_input, target_of
from sagittal.explain.events import Progress, SaliencyMask, Truncated
from sagittal.explain.explainer import Explainer, Needs
from sagittal.explain.parameters import parameter
from sagittal.explain.problem import Problem
from sagittal.explain.steps import Steps

Excitation = Callable[[Sequence[Any], Mapping[str, Any]], Tensor]
"""An operation without bias and negative weights, as a function of the arguments of its node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExcitationBackprop(Explainer):
    """The probability that each position of a layer excites the class; a heatmap at the layer's resolution."""

    needs: ClassVar[Needs] = Needs.GRADIENTS | Needs.SPATIAL_LAYER
    hides: ClassVar[bool] = False
    summary: ClassVar[str] = "The probability that each position of a layer excites the class, by positive weights"

    layer: str | None = parameter(None, "Name of the layer; by default the last one with a spatial output")

    def try_on(self, view: ModelView) -> None:
        """Raises Unsupported if an operation between the layer and the output has no rule."""
        winning_probability(view, locate(view, self.layer))

    def explain(self, problem: Problem) -> Steps[None]:
        """Yields the heatmap, with the rows and columns of the layer."""
        try:
            layer = yield from problem.inspect(lambda view: locate(view, self.layer))
            yield Progress(0.5, phase="layer")
            winning = yield from problem.inspect(lambda view: winning_probability(view, layer))
        except OutOfBudget as spent:
            yield Truncated(spent.limit)
            yield SaliencyMask(problem.full(1, 0.0))
            return
        yield Progress(1.0, phase="layer")
        places = winning.sum(0)
        yield SaliencyMask(heatmap(places, float(places.sum())).to(problem.image.device))


def winning_probability(view: ModelView, layer: SpatialLayer, origin: tuple[str, Tensor] | None = None) -> Tensor:
    """Returns the marginal winning probability of each neuron of a layer: float32 (channels, rows, columns), sum <= 1.

    Args:
        view: The model with an image.
        layer: The layer to read.
        origin: Name of the layer where the probability starts, with the probability of each neuron, of its output's
            shape; None for the explained class.

    Raises:
        Unsupported: an operation between the layer and the output has no rule.
    """
    trace = _Trace(view)
    if layer.name not in trace.outputs:
        raise Unsupported(f"excitation backpropagation cannot follow the graph to layer {layer.name!r}; use grad-cam")
    reading = trace.outputs[layer.name]
    probability = _beginning(view, trace, origin)
    for node in reversed(trace.graph_module.graph.nodes):
        if node is reading:
            break
        if node in probability:
            for source, share in _hand_down(node, probability.pop(node), trace):
                probability[source] = probability[source] + share if source in probability else share
    arrived = probability.get(reading, torch.zeros_like(trace.values[reading]))
    return layer.layout.to_channels(arrived)[0]


def _beginning(view: ModelView, trace: "_Trace", origin: tuple[str, Tensor] | None) -> dict[fx.Node, Tensor]:
    """Returns the initial probability of the neurons, by their node."""
    if origin is None:
        last = trace.result
        winner = F.one_hot(torch.tensor([target_of(view)]), trace.values[last].shape[-1])
        return {last: winner.to(trace.values[last])}
    name, winning = origin
    if name not in trace.outputs:
        raise Unsupported(f"excitation backpropagation cannot follow the graph to layer {name!r}; use igos")
    return {trace.outputs[name]: winning}


class _Names(fx.Tracer):
    """Records the node of each module's output, including those of containers."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, fx.Node] = {}

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        if isinstance(output, fx.Proxy):
            self.outputs[self.path_of_module(m)] = output.node
        return output


class _Activations(fx.Interpreter):
    """Keeps a copy of every value, because later operations may work in place."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.values[n] = result.detach().clone() if isinstance(result, Tensor) else result
        return result


class _Trace:
    """The graph of the model with its values on the image, and the batch norms folded into convolutions."""

    def __init__(self, view: ModelView) -> None:
        tracer = _Names()
        try:
            graph = tracer.trace(view.module)
        except Exception as error:
            why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            raise Unsupported(f"excitation backpropagation requires a graph that torch.fx can trace ({why})") from error
        self.outputs = tracer.outputs
        self.graph_module = fx.GraphModule(view.module, graph)
        self.modules = dict(self.graph_module.named_modules())
        interpreter = _Activations(self.graph_module)
        with torch.no_grad():
            interpreter.run(model_input(view))
        self.values = interpreter.values
        self.result = _result(graph)
        self.scales = _folded_scales(graph, self.modules)

    def operation(self, node: fx.Node) -> Any:
        """Returns the operation of a node: the type of its module, its function, or the name of its method."""
        return type(self.modules[str(node.target)]) if node.op == "call_module" else node.target


def _result(graph: fx.Graph) -> fx.Node:
    (output,) = (node for node in graph.nodes if node.op == "output")
    if not isinstance(output.args[0], fx.Node):
        raise Unsupported("excitation backpropagation requires a model with one output")
    return output.args[0]


def _folded_scales(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> dict[fx.Node, Tensor]:
    """Returns the scale of each batch norm that is the only user of a convolution, by the nodes of both."""
    scales: dict[fx.Node, Tensor] = {}
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[str(node.target)], nn.BatchNorm2d):
            continue
        source = node.args[0]
        if isinstance(source, fx.Node) and _is_convolution(source, modules) and len(source.users) == 1:
            scales[source] = scales[node] = _scale(modules[str(node.target)])
    return scales


def _is_convolution(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.Conv2d)
    return node.op == "call_function" and node.target in _CONVOLUTIONS


def _scale(norm: nn.Module) -> Tensor:
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None  # noqa: S101, PT018 - evaluation mode
    scale = (norm.running_var + norm.eps).rsqrt()
    return scale * norm.weight if norm.weight is not None else scale


def _hand_down(node: fx.Node, probability: Tensor, trace: _Trace) -> Sequence[tuple[fx.Node, Tensor]]:
    """Returns the probability that each input of a node receives."""
    operation = trace.operation(node)
    if operation in _PASSES or (operation is nn.BatchNorm2d and node in trace.scales):
        return [(node.all_input_nodes[0], probability)]
    excitation = _excitation(node, trace)
    sources = [
        source
        for source in node.all_input_nodes
        if source.op != "get_attr" and isinstance(trace.values[source], Tensor)
    ]
    inputs = {source: trace.values[source].clamp(min=0).requires_grad_() for source in sources}
    with torch.enable_grad():
        outputs = excitation(*fx.node.map_arg((node.args, node.kwargs), lambda n: inputs.get(n, trace.values[n])))
    won = outputs.detach()
    odds = torch.where(won > 0, probability / won.clamp(min=torch.finfo(won.dtype).tiny), 0)
    gradients = torch.autograd.grad(outputs, list(inputs.values()), odds)
    return [
        (source, activation.detach() * gradient)
        for (source, activation), gradient in zip(inputs.items(), gradients, strict=True)
    ]


def _excitation(node: fx.Node, trace: _Trace) -> Excitation:
    operation = trace.operation(node)
    if operation in _WEIGHTED or operation is nn.BatchNorm2d:
        return _weighted_module(trace.modules[str(node.target)], trace.scales.get(node))
    if operation in _CONVOLUTIONS or operation is F.linear:
        return _weighted_function(operation, trace.scales.get(node))
    if operation not in _POSITIVE:
        name = getattr(operation, "__name__", str(operation))
        raise Unsupported(
            f"excitation backpropagation is not defined for {name} (at {node.name!r}); "
            "choose a layer after it, or use grad-cam"
        )
    if node.op == "call_module":
        module = trace.modules[str(node.target)]
        return lambda args, kwargs: module(*args, **kwargs)
    if node.op == "call_method":
        return lambda args, kwargs: getattr(args[0], operation)(*args[1:], **kwargs)
    function = _OUT_OF_PLACE.get(operation, operation)
    return lambda args, kwargs: function(*args, **kwargs)


def _weighted_module(module: nn.Module, scale: Tensor | None) -> Excitation:
    if isinstance(module, nn.BatchNorm2d):
        factor = _scale(module).clamp(min=0).view(-1, 1, 1)
        return lambda args, _kwargs: args[0] * factor
    assert isinstance(module, nn.Conv2d | nn.Linear)  # noqa: S101 - by the table
    weights = {"weight": _positive(module.weight, scale)}
    if module.bias is not None:
        weights["bias"] = torch.zeros_like(module.bias)
    return lambda args, kwargs: cast("Tensor", torch.func.functional_call(module, weights, tuple(args), dict(kwargs)))


def _weighted_function(function: Callable[..., Tensor], scale: Tensor | None) -> Excitation:
    def excite(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        given = dict(zip(("input", "weight", "bias"), args[:3], strict=False)) | dict(kwargs)
        given["weight"], given["bias"] = _positive(given["weight"], scale), None
        return function(given.pop("input"), given.pop("weight"), given.pop("bias"), *args[3:], **given)

    return excite


def _positive(weight: Tensor, scale: Tensor | None) -> Tensor:
    """Returns the weights cut at zero, with each output channel scaled by a batch norm that follows."""
    scaled = weight if scale is None else weight * scale.view(-1, *[1] * (weight.ndim - 1))
    return scaled.detach().clamp(min=0)


_CONVOLUTIONS = frozenset({F.conv2d, torch.conv2d})
_WEIGHTED = frozenset({nn.Conv2d, nn.Linear})

_PASSES = frozenset(
    {nn.ReLU, nn.ReLU6, nn.Dropout, nn.Dropout2d, nn.Identity, nn.Softmax, F.relu, F.relu6, F.dropout, torch.relu}
    | {"relu", "relu_", "contiguous", "clone"}
)
"""Operations that pass probability on unchanged."""

_POSITIVE = frozenset(
    {nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.ZeroPad2d}
    | {F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.pad, torch.flatten, torch.mean}
    | {torch.max_pool2d, torch.cat, torch.add, torch.reshape, torch.squeeze, torch.permute, operator.add, operator.iadd}
    | {"mean", "flatten", "view", "reshape", "squeeze", "permute", "transpose", "add", "add_", "sum"}
)
"""Operations that are their own `g`: without weights or bias, and positive on positive inputs."""

_OUT_OF_PLACE: Mapping[Any, Callable[..., Any]] = {operator.iadd: operator.add}

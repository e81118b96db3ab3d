"""The layers of an attention graph, for every drawing of it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from sagittal.client.events import GraphNode
from sagittal.client.explanation import Graph


def arrange(graph: Graph) -> Sequence[Sequence[GraphNode]]:
    """Returns the nodes in layers, parents above children, each layer in the order of its parents."""
    parents: Mapping[str, list[str]] = defaultdict(list)
    for edge in graph.edges:
        parents[edge.child].append(edge.parent)
    # An edge removes one patch, so that larger sets come first, and a parent is placed before its children.
    depth: dict[str, int] = {}
    for node in sorted(graph.nodes, key=lambda each: -len(each.patches.patches)):
        depth[node.id] = max((depth[p] + 1 for p in parents[node.id] if p in depth), default=0)
    layers: list[list[GraphNode]] = [[] for _ in range(max(depth.values()) + 1)]
    for node in graph.nodes:
        layers[depth[node.id]].append(node)
    position: dict[str, float] = {}
    for layer in layers:
        layer.sort(key=lambda each: (_mean([position[p] for p in parents[each.id] if p in position]), -each.score))
        position |= {node.id: (number + 0.5) / len(layer) for number, node in enumerate(layer)}
    return layers


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.5

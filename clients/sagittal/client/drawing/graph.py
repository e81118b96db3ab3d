"""The structured attention graph in layers: roots at the top, each edge removing one patch."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Line

from sagittal.client.drawing import canvas
from sagittal.client.drawing.layers import arrange
from sagittal.client.events import GraphNode
from sagittal.client.explanation import Graph
from sagittal.client.html import percent
from sagittal.imaging.masks import patch_box
from sagittal.imaging.view import View

#: Side of a thumbnail, and the gaps between thumbnails and between layers, in inches.
THUMBNAIL = 1.25
GAP = 0.22
LAYER_GAP = 0.95
MARGIN = 0.4
HEADING = 0.9


@dataclass(frozen=True, slots=True)
class Place:
    """Position of a node: the centre of its thumbnail in inches, y upwards."""

    x: float
    y: float


def draw_graph(graph: Graph, seen: View, title: str) -> Figure:
    """Returns the whole graph as one figure."""
    layers = arrange(graph)
    widest = max(len(layer) for layer in layers)
    width = max(widest * (THUMBNAIL + GAP) - GAP + 2 * MARGIN, 7.0)
    height = len(layers) * (THUMBNAIL + LAYER_GAP) - LAYER_GAP + 0.55 + HEADING + MARGIN
    places = place_nodes(layers, width, height)
    fig = canvas.figure(width, height)
    axes = fig.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.axis("off")
    _draw_edges(axes, graph, places)
    removed = _removed(graph)
    for node in graph.nodes:
        _draw_node(axes, node, places[node.id], removed[node.id], seen)
    axes.text(MARGIN, height - 0.35, title, fontsize=15, color=canvas.INK, weight="bold", va="center")
    legend = (
        "Each image is what the model was given: the patches inside the white border, the baseline elsewhere.\n"
        "Below it: the probability. Red: the patches that an edge above removed; two edges meet in a shared node."
    )
    axes.text(MARGIN, height - 0.55, legend, fontsize=9, color=canvas.FAINT, va="top")
    return fig


def place_nodes(layers: Sequence[Sequence[GraphNode]], width: float, height: float) -> Mapping[str, Place]:
    """Returns the position of each node on a sheet of a size in inches."""
    places = {}
    for row, layer in enumerate(layers):
        y = height - HEADING - THUMBNAIL / 2 - row * (THUMBNAIL + LAYER_GAP)
        span = len(layer) * (THUMBNAIL + GAP) - GAP
        # A short layer is spread out, so that children are below their parents.
        step = (THUMBNAIL + GAP) if len(layer) == 1 else max(THUMBNAIL + GAP, (width - 2 * MARGIN) / len(layer))
        span = step * (len(layer) - 1)
        for column, node in enumerate(layer):
            places[node.id] = Place(width / 2 - span / 2 + column * step, y)
    return places


def _removed(graph: Graph) -> Mapping[str, list[int]]:
    removed: dict[str, list[int]] = defaultdict(list)
    for edge in graph.edges:
        removed[edge.child].append(edge.removed_patch)
    return removed


def _draw_edges(axes: Axes, graph: Graph, places: Mapping[str, Place]) -> None:
    for edge in graph.edges:
        if edge.parent not in places or edge.child not in places:
            continue
        start, end = places[edge.parent], places[edge.child]
        y0, y1 = start.y - THUMBNAIL / 2 - 0.3, end.y + THUMBNAIL / 2
        middle = (y0 + y1) / 2
        points = [(start.x, y0), (start.x, middle), (end.x, middle), (end.x, y1)]
        line = Line(points, [Line.MOVETO, Line.CURVE4, Line.CURVE4, Line.CURVE4])
        axes.add_patch(PathPatch(line, facecolor="none", edgecolor="#8c959f", linewidth=1.1, zorder=1))


def _draw_node(axes: Axes, node: GraphNode, place: Place, removed: Sequence[int], seen: View) -> None:
    half = THUMBNAIL / 2
    left, bottom = place.x - half, place.y - half
    extent = (left, left + THUMBNAIL, bottom, bottom + THUMBNAIL)
    axes.imshow(
        np.clip(seen.only(node.patches.patches, node.patches.grid), 0, 1),
        extent=extent,
        zorder=3,
        interpolation="nearest",
        aspect="auto",
    )
    canvas.outline(axes, node.patches.patches, node.patches.grid, extent)
    edge = canvas.GOOD if node.root else canvas.RULE
    axes.add_patch(
        Rectangle(
            (left, bottom), THUMBNAIL, THUMBNAIL, fill=False, edgecolor=edge, linewidth=2 if node.root else 1, zorder=4
        )
    )
    scale = THUMBNAIL / seen.size
    for patch in removed:
        x0, y0, x1, y1 = patch_box(patch, node.patches.grid, seen.size)
        corner = (left + x0 * scale, bottom + THUMBNAIL - y1 * scale)
        size = ((x1 - x0) * scale, (y1 - y0) * scale)
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=canvas.BAD, linewidth=1.8, zorder=5))
    axes.text(
        place.x, bottom - 0.15, percent(node.score), fontsize=10, ha="center", va="center",
        color=canvas.INK, weight="bold" if node.root else "normal", zorder=5,
        bbox={"facecolor": canvas.PAPER, "edgecolor": "none", "pad": 1.0},
    )  # fmt: skip

"""Sets of patches and attention graphs as SVG, for documents that hold the image once."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

from sagittal.client.drawing.layers import arrange
from sagittal.client.events import GraphNode, PatchSet
from sagittal.client.explanation import Explanation, Graph
from sagittal.client.html import escape, percent
from sagittal.imaging.masks import patch_box
from sagittal.imaging.overlays import to_image
from sagittal.imaging.view import Picture, View

#: Side of a drawing without an image, of a node of the graph, and the gaps between nodes, in units of an SVG.
SIDE, _NODE, _ACROSS, _DOWN = 224, 120, 24, 84


@dataclass(frozen=True, slots=True)
class PatchDrawing:
    """Draws sets of patches from images that the document holds once."""

    seen: View | None
    names: Mapping[PatchSet, str]
    """The id of each set's outline."""

    @property
    def side(self) -> int:
        """Side of a drawing."""
        return self.seen.size if self.seen else SIDE

    def definitions(self) -> str:
        """Returns the images and outlines, which drawings refer to by their ids."""
        side = f'width="{self.side}" height="{self.side}"'
        if self.seen is None:
            images = f'<rect id="seen" {side} fill="#57606a"/><rect id="hidden" {side} fill="#d8dee4"/>'
        else:
            images = "".join(
                f'<image id="{name}" {side} href="{jpeg_data(picture)}"/>'
                for name, picture in (("seen", self.seen.picture), ("hidden", self.seen.baseline))
            )
        clips = (
            f'<path id="{name}" d="{self._outline(patches)}"/>'
            f'<clipPath id="{name}-clip"><use href="#{name}"/></clipPath>'
            for patches, name in self.names.items()
        )
        hidden = 'width="0" height="0" style="position:absolute" aria-hidden="true"'
        return f"<svg {hidden}><defs>{images}{''.join(clips)}</defs></svg>"

    def set(self, patches: PatchSet, label: str, place: str = "") -> str:
        """Returns a set alone on the baseline, with a white border, as an SVG."""
        name = self.names[patches]
        border = f'<use href="#{name}" fill="none" stroke="#fff" stroke-width="{self.side / 60:.1f}"/>'
        shown = f'<use href="#hidden"/>{border}<use href="#seen" clip-path="url(#{name}-clip)"/>'
        about = f'viewBox="0 0 {self.side} {self.side}" role="img" aria-label="{escape(label)}"'
        return f"<svg {place} {about}>{shown}</svg>"

    def _outline(self, patches: PatchSet) -> str:
        boxes = (patch_box(patch, patches.grid, self.side) for patch in patches.patches)
        return "".join(f"M{x0} {y0}H{x1}V{y1}H{x0}z" for x0, y0, x1, y1 in boxes)


def sets_by_name(explanation: Explanation) -> Mapping[PatchSet, str]:
    """Returns the id of each set of patches that an explanation has."""
    sets = [each.patches for each in explanation.sufficient_sets]
    sets += [node.patches for node in explanation.graph.nodes] if explanation.graph else []
    return {patches: f"set{number}" for number, patches in enumerate(dict.fromkeys(sets))}


def graph_svg(graph: Graph, drawing: PatchDrawing) -> str:
    """Returns an attention graph as an SVG: roots in the first row, each line removing one patch."""
    layers = arrange(graph)
    width = max(len(layer) for layer in layers) * (_NODE + _ACROSS) + _ACROSS
    height = len(layers) * (_NODE + _DOWN) - _DOWN + 40
    places = {
        node.id: (width * (column + 0.5) / len(layer) - _NODE / 2, 4 + row * (_NODE + _DOWN))
        for row, layer in enumerate(layers)
        for column, node in enumerate(layer)
    }
    lines = "".join(
        f'<line x1="{places[edge.parent][0] + _NODE / 2:.0f}" y1="{places[edge.parent][1] + _NODE + 22:.0f}" '
        f'x2="{places[edge.child][0] + _NODE / 2:.0f}" y2="{places[edge.child][1]:.0f}" stroke="#8c959f"/>'
        for edge in graph.edges
        if edge.parent in places and edge.child in places
    )
    nodes = "".join(_node(node, places[node.id], drawing) for node in graph.nodes)
    size = f'class="graph" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg {size} role="img" aria-label="attention graph of {len(graph.nodes)} nodes">{lines}{nodes}</svg>'


def _node(node: GraphNode, place: tuple[float, float], drawing: PatchDrawing) -> str:
    x, y = place
    label = f"{percent(node.score)} with {len(node.patches.patches)} patches"
    at = f'x="{x:.0f}" y="{y}" width="{_NODE}" height="{_NODE}"'
    frame = f'<rect {at} fill="none" stroke="#1a7f37" stroke-width="3"/>'
    text = f'<text x="{x + _NODE / 2:.0f}" y="{y + _NODE + 16}" text-anchor="middle">{percent(node.score)}</text>'
    return drawing.set(node.patches, label, at) + (frame if node.root else "") + text


def jpeg_data(picture: Picture) -> str:
    """Returns a picture as a `data:` URL."""
    buffer = io.BytesIO()
    to_image(picture).save(buffer, "JPEG", quality=92)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"

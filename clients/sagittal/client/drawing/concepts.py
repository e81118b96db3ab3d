"""Drawings of explanations by concepts: the contributions of x1 ... xn, and a heatmap of each."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sagittal.client.concepts import ConceptExample, ConceptSet, XFeature
from sagittal.client.drawing import canvas
from sagittal.client.events import ConceptContribution, ConceptPrediction
from sagittal.client.explanation import Explanation
from sagittal.imaging.view import View

#: Maximum number of characters of a concept's name above its bar.
MAX_NAME = 40


def concept_panels(explanation: Explanation, seen: View) -> Sequence[Callable[[Axes], None]]:
    """Returns functions that draw the contributions, and then each concept, the largest contribution first."""
    said = explanation.concept_prediction
    if said is None or not explanation.concepts:
        return ()
    ordered = sorted(explanation.concepts, key=lambda each: -abs(each.contribution))

    def bars(axes: Axes) -> None:
        _draw_contributions(axes, ordered, said)

    def looks(each: ConceptContribution) -> Callable[[Axes], None]:
        return lambda axes: _draw_concept(axes, each, seen)

    return [bars, *map(looks, ordered)]


def title_of(concept: ConceptContribution) -> str:
    """Returns the title of a concept: its number, and its name if it has one."""
    return f"x{concept.index + 1} {concept.name}".strip()


def _draw_contributions(axes: Axes, ordered: Sequence[ConceptContribution], said: ConceptPrediction) -> None:
    places = range(len(ordered), 0, -1)
    contributions = [each.contribution for each in ordered]
    colours = [canvas.GOOD if contribution >= 0 else canvas.BAD for contribution in contributions]
    axes.barh(list(places), contributions, color=colours, height=0.6)
    reach = max((abs(contribution) for contribution in contributions), default=0.0) or 1.0
    for place, each in zip(places, ordered, strict=True):
        away = 0.03 * reach * (1 if each.contribution >= 0 else -1)
        side = "left" if each.contribution >= 0 else "right"
        axes.text(
            each.contribution + away, place, f"{each.contribution:+.2f}", va="center", ha=side, fontsize=8,
            color=canvas.INK,
        )  # fmt: skip
        # within the frame: outside it the names would overlap the panel to the left
        name, across = each.name[:MAX_NAME], axes.get_yaxis_transform()
        axes.text(0.01, place + 0.34, name, transform=across, fontsize=8, color=canvas.FAINT)
    axes.axvline(0, color=canvas.FAINT, linewidth=0.8)
    axes.set_yticks(list(places), [f"x{each.index + 1}" for each in ordered])
    low, high = min(0.0, *contributions), max(0.0, *contributions)
    axes.set_xlim(low - (0.3 if low < 0 else 0.05) * reach, high + (0.3 if high > 0 else 0.05) * reach)
    axes.tick_params(labelsize=8, colors=canvas.INK, length=0)
    axes.set_box_aspect(1)
    axes.set_title(
        f"Because of x1 ... x{len(ordered)}", fontsize=11, color=canvas.INK, loc="left", pad=6, weight="bold"
    )
    note = f"add up to {said.predicted:+.2f}; the model's own output is {said.output:+.2f}"
    axes.set_xlabel(note, fontsize=9, color=canvas.FAINT, loc="left", labelpad=5)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(canvas.RULE)


def _draw_concept(axes: Axes, concept: ConceptContribution, seen: View) -> None:
    note = f"contribution {concept.contribution:+.2f}, value {concept.value:+.2f}"
    if concept.heatmap is None or not concept.heatmap.any():
        canvas.show(axes, seen.picture, title_of(concept), f"{note}; no heatmap")
        return
    canvas.show(axes, seen.painted(concept.heatmap), title_of(concept), note)


#: Width of an image in inches, and resolution in dots per inch.
CELL, DPI = 1.5, 120


def draw_contact_sheet(found: ConceptSet, concept: XFeature, path: Path) -> None:
    """Writes a PNG with two rows for each group of examples: the images, and the images with their heatmaps."""
    groups = sorted({example.group for example in concept.examples})
    rows = [[example for example in concept.examples if example.group == group] for group in groups]
    columns = max((len(row) for row in rows), default=1)
    figure = Figure(figsize=(columns * CELL, (2 * len(rows) + 0.6) * CELL), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_title(found, concept), fontsize=9)
    axes = figure.subplots(2 * max(len(rows), 1), columns, squeeze=False)
    for each in axes.flat:
        each.axis("off")
    for number, row in enumerate(rows):
        _draw_group(axes[2 * number : 2 * number + 2], row, chr(ord("A") + number) if len(rows) > 1 else "")
    figure.savefig(path)


def _draw_group(axes: np.ndarray, row: Sequence[ConceptExample], letter: str) -> None:
    for column, example in enumerate(row):
        picture = np.asarray(PIL.Image.open(io.BytesIO(example.picture)))
        above, below = axes[0, column], axes[1, column]
        above.imshow(picture)
        above.set_title(f"{letter} {example.value:+.2f}".strip(), fontsize=7)
        below.imshow(picture.mean(2), cmap="gray", vmin=0, vmax=255)
        if example.heatmap is not None:
            height, width = picture.shape[:2]
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            below.imshow(
                example.heatmap, cmap="magma", alpha=0.6, vmin=0, vmax=1, extent=extent, interpolation="bilinear"
            )


def _title(found: ConceptSet, concept: XFeature) -> str:
    label = next((label for label in found.target_labels if label), "") or f"class {found.targets[0]}"
    name = f" “{concept.name}”" if concept.name else ""
    mixed = "  MIXED: groups A or B" if concept.mixed else ""
    return (
        f"{found.name}: x{concept.index + 1}{name} for {label}{mixed}\n"
        f"contribution {concept.mean_contribution:+.2f} ± {concept.contribution_spread:.2f}, "
        f"agreement {concept.agreement:.2f}"
    )

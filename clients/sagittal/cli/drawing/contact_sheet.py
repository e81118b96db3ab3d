"""A contact sheet: the images that excite a concept most, each with where it looks, group by group."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sagittal.client import ConceptExample, ConceptSet, XFeature

#: Width of a picture in inches, and resolution in dots an inch.
CELL, DPI = 1.5, 120


def draw_contact_sheet(found: ConceptSet, concept: XFeature, path: Path) -> None:
    """Writes a PNG with two rows for each group of examples: the pictures, and the pictures with their heatmaps."""
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

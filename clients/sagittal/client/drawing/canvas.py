"""The style of drawings: colours, type and frames."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, to_hex, to_rgba
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sagittal.imaging import overlays
from sagittal.imaging.view import Picture

INK = "#1f2328"
FAINT = "#6e7781"
RULE = "#d0d7de"
GOOD = "#1a7f37"  # insertion
BAD = "#cf222e"  # deletion
WARN = "#9a6700"
PAPER = "#ffffff"

#: The same on a dark page.
DARK = {
    INK: "#e6edf3", FAINT: "#9198a1", RULE: "#3d444d", GOOD: "#3fb950", BAD: "#f85149", WARN: "#d29922",
    PAPER: "#0d1117",
}  # fmt: skip

#: Colours of saliency, and of evidence against (blue) and for (red), as in overlays.
HEAT = ListedColormap(overlays.HEAT)
SIGNED = ListedColormap(overlays.SIGNED)

#: Pixels per inch.
DPI = 120
#: The border of a set of patches, on every page.
BORDER = "#fefefe"
#: A heatmap whose peak is below this is shown on a scale of its own, too.
NEARLY_EMPTY = 0.2
#: Maximum number of pixels on either side of a PNG.
MAX_PIXELS = 12_000


class Drawing(Figure):
    """A figure without global state, which notebooks show without configuration."""

    def _repr_png_(self) -> bytes:
        return png(self)


def figure(width: float, height: float) -> Figure:
    """Returns a figure of a size in inches."""
    return Drawing(figsize=(width, height), dpi=DPI, facecolor=PAPER)


def png(fig: Figure) -> bytes:
    """Returns a figure as the bytes of a PNG; equal figures give equal bytes."""
    largest = max(fig.get_size_inches()) * DPI
    fig.set_dpi(DPI * min(1.0, MAX_PIXELS / largest))
    buffer = io.BytesIO()
    FigureCanvasAgg(fig).print_png(buffer, metadata={"Software": "sagittal"})  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def darken(fig: Figure) -> None:
    """Gives a figure the colours of a dark page; pictures and heatmaps in it stay as they are."""
    fig.set_facecolor(DARK[PAPER])
    for artist in fig.findobj():
        for name in ("color", "facecolor", "edgecolor"):
            set_to, get = getattr(artist, f"set_{name}", None), getattr(artist, f"get_{name}", None)
            if set_to is None or get is None:
                continue
            try:
                *_, alpha = given = to_rgba(get())
            except (TypeError, ValueError):
                continue  # a collection of several colours
            if alpha and to_hex(given) in DARK:
                set_to(to_rgba(DARK[to_hex(given)], alpha))


def save(fig: Figure, path: Path) -> None:
    """Writes a figure as PNG or SVG by the path's extension; equal figures give equal bytes."""
    if path.suffix == ".svg":
        # Ids in the SVG depend on a salt; without one they differ from run to run.
        with mpl.rc_context({"svg.hashsalt": "sagittal", "svg.fonttype": "path"}):
            FigureCanvasSVG(fig).print_svg(str(path), metadata={"Date": None})  # type: ignore[no-untyped-call]
        return
    path.write_bytes(png(fig))


def show(axes: Axes, picture: Picture, title: str = "", note: str = "") -> None:
    """Draws an image with a title above and a note below."""
    axes.imshow(np.clip(picture, 0, 1), interpolation="nearest")
    frame(axes, title, note)


def frame(axes: Axes, title: str = "", note: str = "") -> None:
    """Removes the ticks and draws a thin frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(RULE)
        spine.set_linewidth(0.8)
    if title:
        axes.set_title(title, fontsize=11, color=INK, loc="left", pad=6, fontweight="bold")
    if note:
        axes.set_xlabel(note, fontsize=9, color=FAINT, loc="left", labelpad=5)


def outline(axes: Axes, patches: Sequence[int], grid: int, extent: tuple[float, float, float, float]) -> None:
    """Draws the border of a set of patches on a picture that takes this extent (left, right, bottom, top)."""
    left, right, bottom, top = extent
    cells = np.zeros((grid + 2, grid + 2), bool)
    cells[1:-1, 1:-1].flat[list(patches)] = True
    lines = []
    for row, column in np.argwhere(cells[1:] != cells[:-1]):
        lines.append([(column - 1, row), (column, row)])
    for row, column in np.argwhere(cells[:, 1:] != cells[:, :-1]):
        lines.append([(column, row - 1), (column, row)])
    places = [[(left + x / grid * (right - left), top + y / grid * (bottom - top)) for x, y in line] for line in lines]
    axes.add_collection(LineCollection(places, colors=BORDER, linewidths=1.4, zorder=6), autolim=False)


def heat(axes: Axes, saliency: NDArray[np.float32], signed: bool) -> Any:
    """Draws saliency on a fixed scale, never stretched to the image: an empty mask looks empty."""
    low = -1 if signed else 0
    return axes.imshow(saliency, cmap=SIGNED if signed else HEAT, vmin=low, vmax=1, interpolation="nearest")


def show_faint(axes: Axes, saliency: NDArray[np.float32], signed: bool) -> None:
    """Draws a nearly empty heatmap once more, small, in a corner of its own panel, on a scale that ends at its peak."""
    peak = float(np.abs(saliency).max())
    if not 0 < peak < NEARLY_EMPTY:
        return
    inset = axes.inset_axes((0.6, 0.6, 0.37, 0.37))
    heat(inset, saliency / peak, signed)
    frame(inset)
    inset.text(0, -0.16, f"scale to {peak:.2g}", fontsize=8, color=BORDER, transform=inset.transAxes)

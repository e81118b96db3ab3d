"""The files of an explanation in a directory: one renderer for each kind of content.

Importing this module loads matplotlib, which is slow: commands import it when they draw.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sagittal.cli.report import DOCUMENT, SAVED, dump
from sagittal.client import Explanation
from sagittal.client.documents import curves_document
from sagittal.client.drawing import canvas
from sagittal.imaging.overlays import to_image
from sagittal.imaging.view import View


@dataclass(frozen=True, slots=True)
class Results:
    """An explanation, its image, and the directory of its files."""

    explanation: Explanation
    seen: View
    directory: Path


Written = Iterator[tuple[str, str]]
"""The content, and the name of its file."""


def write_files(explanation: Explanation, directory: Path) -> Mapping[str, str]:
    """Writes all files into a directory, the JSON last; returns the file names by content."""
    results = Results(explanation, explanation.view(), directory)
    directory.mkdir(parents=True, exist_ok=True)
    files: dict[str, str] = {}
    for write in WRITERS:
        files |= dict(write(results))
    files["explanation"] = DOCUMENT
    document = explanation.to_dict() | {"files": files}
    (directory / DOCUMENT).write_text(dump(document) + "\n", encoding="utf-8")
    return files


def _summary(results: Results) -> Written:
    canvas.save(results.explanation.plot(), results.directory / "summary.png")
    yield "summary", "summary.png"


def _baseline(results: Results) -> Written:
    if results.explanation.baseline_score is None:
        return  # nothing was hidden
    to_image(results.seen.baseline).save(results.directory / "baseline.png")
    yield "baseline", "baseline.png"


def _masks(results: Results) -> Written:
    """The first mask is `mask.npy`; those of further starts are numbered."""
    for number, mask in enumerate(results.explanation.masks):
        suffix = f"-{number + 1}" if number else ""
        np.save(results.directory / f"mask{suffix}.npy", mask.saliency.astype(np.float32))
        overlay = to_image(results.seen.painted(mask.saliency))
        overlay.save(results.directory / f"overlay{suffix}.png")
        yield f"mask{suffix}", f"mask{suffix}.npy"
        yield f"overlay{suffix}", f"overlay{suffix}.png"


def _curves(results: Results) -> Written:
    if results.explanation.curves:
        text = dump(curves_document(results.explanation.curves))
        (results.directory / "curves.json").write_text(text + "\n", encoding="utf-8")
        yield "curves", "curves.json"


def _sufficient_sets(results: Results) -> Written:
    for number, each in enumerate(results.explanation.sufficient_sets, start=1):
        name = f"sufficient-set-{number}.png"
        to_image(results.seen.only(each.patches.patches, each.patches.grid)).save(results.directory / name)
        yield f"sufficient-set-{number}", name


def _graph(results: Results) -> Written:
    if results.explanation.graph is None:
        return
    fig = results.explanation.plot_graph()
    for ending in ("svg", "png"):
        canvas.save(fig, results.directory / f"graph.{ending}")
        yield f"graph_{ending}", f"graph.{ending}"


def _concepts(results: Results) -> Written:
    for each in results.explanation.concepts:
        if each.heatmap is not None:
            name = f"concept-x{each.index + 1}.png"
            to_image(results.seen.painted(each.heatmap)).save(results.directory / name)
            yield f"concept-x{each.index + 1}", name


def _saved(results: Results) -> Written:
    results.explanation.save(results.directory / SAVED)
    yield "saved", SAVED


#: Renderers, in this order.
WRITERS: tuple[Callable[[Results], Written], ...] = (
    _summary,
    _baseline,
    _masks,
    _curves,
    _sufficient_sets,
    _graph,
    _concepts,
    _saved,
)

#!/usr/bin/env python3
"""Draws docs/images: the shipped photographs explained by EfficientNet-Lite0 with every method, through a real stack.

Takes several minutes on two cores. Each drawing is written for light and for dark pages, as WebP. The drawing of
concepts needs images for a fit: set SAGITTAL_BENCHMARK_IMAGES to a directory of them. Without it, that drawing stays.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import PIL.Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sagittal.cli.stack import MODELS_FILE, LocalStack, Plan, free_ports
from sagittal.client import Client, Explanation
from sagittal.client.drawing import canvas
from sagittal.client.drawing.graph import draw_graph
from sagittal.client.drawing.salient_part import salient_part
from sagittal.client.drawing.summary import draw_summary
from sagittal.client.html import percent
from sagittal.client.methods import Method
from sagittal.imaging.view import View

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
MODEL = "efficientnet-lite0"
PHOTOGRAPH = "chelsea.png"
HEATMAPS = (
    ("igos++", "igos+", "igos", "meaningful-perturbation", "rise"),
    ("occlusion", "grad-cam", "score-cam", "integrated-gradients", "excitation-bp"),
)
#: A photograph, a method and a class of each row of the first picture; the top class if none is named. The second
#: row is a failure: a heatmap that looks right, with curves that contradict it.
ANSWERS = (
    ("rocket.jpg", "occlusion", None), ("rocket.jpg", "excitation-bp", None),
    ("coffee.png", "igos++", None), ("coffee.png", "igos++", "cup"),
)  # fmt: skip
#: A setting of the attention graph with which a node is reached in two ways.
EXPAND_ABOVE = 0.2
#: Most model evaluations of one search, so that the slowest methods end as well.
EVALUATIONS = 1500
#: Pixels across a picture in the documentation, and its quality as WebP.
WIDTH, QUALITY = 1200, 88

Explained = tuple[Explanation, View]


def explain(client: Client, photograph: str, method: str, target: str | None = None, **parameters: object) -> Explained:
    """Returns an explanation with what the model saw."""
    path = ROOT / "examples" / "images" / photograph
    explanation = client.explain(
        path, model=MODEL, method=Method(method, **parameters), target=target, max_evaluations=EVALUATIONS
    )
    sys.stderr.write(f"{photograph} {method}: {explanation.evaluations} evaluations\n")
    return explanation, explanation.view()


def save(fig: Figure, name: str) -> None:
    """Writes a figure for light and for dark pages."""
    for ending in ("", "-dark"):
        if ending:
            canvas.darken(fig)
        with PIL.Image.open(BytesIO(canvas.png(fig))) as picture:
            size = (WIDTH, round(WIDTH * picture.height / picture.width))
            resized = picture.convert("RGB").resize(size, PIL.Image.Resampling.LANCZOS)
            resized.save(IMAGES / f"{name}{ending}.webp", quality=QUALITY, method=6)


def draw_answers(rows: Sequence[Explained]) -> Figure:
    """Returns a row for each explanation: the image, the heatmap, only the salient part, and the image without it."""
    side = 2.6
    fig = canvas.figure(4 * side + 0.6, len(rows) * (side + 0.45) + 0.2)
    axes = fig.subplots(len(rows), 4, squeeze=False)
    for (explanation, seen), (whole, heat, alone, without) in zip(rows, axes, strict=True):
        target, mask = explanation.target, explanation.mask
        if target is None or mask is None:
            raise ValueError("there is no heatmap: nothing to draw")
        part = salient_part(mask, explanation.curves, seen.size)
        if part is None:
            raise ValueError("there are no curves: nothing to draw")
        canvas.show(whole, seen.picture, f"{target.label}: {percent(target.score)}")
        relative = f"insertion {explanation.insertion:.2f}, deletion {explanation.deletion:.2f}"
        canvas.show(heat, seen.painted(mask), f"Heatmap: {explanation.method}", relative)
        canvas.show(
            alone, seen.keep(part.mask), f"Only this part: {percent(part.alone)}", f"{part.share:.0%} of the area"
        )
        canvas.show(without, seen.keep(1 - part.mask), f"Without it: {percent(part.without)}")
    fig.tight_layout(w_pad=0.6, h_pad=1.4)
    return fig


def draw_heatmaps(explained: Mapping[str, Explained]) -> Figure:
    """Returns every heatmap over its photograph and by itself, with the areas under its curves."""
    fig = canvas.figure(3.2 * len(explained), 7.1)
    above, below = fig.subplots(2, len(explained), squeeze=False)
    for over, alone, (method, found) in zip(above, below, explained.items(), strict=True):
        _draw_heatmap(over, alone, method, *found)
    fig.tight_layout()
    return fig


def _draw_heatmap(over: Axes, alone: Axes, method: str, explanation: Explanation, seen: View) -> None:
    if explanation.mask is None or explanation.insertion is None or explanation.deletion is None:
        raise ValueError(f"{method} gave no heatmap with curves: nothing to draw")
    note = f"insertion {explanation.insertion:.2f}   deletion {explanation.deletion:.2f}"
    canvas.show(over, seen.painted(explanation.mask), method, note)
    size, peak = explanation.mask.shape[0], float(abs(explanation.mask).max())
    canvas.heat(alone, explanation.mask, bool((explanation.mask < 0).any()))
    canvas.show_faint(alone, explanation.mask, signed=False)
    canvas.frame(alone, note=f"{size} x {size}, peak {peak:.2f}, {explanation.evaluations:,} evaluations")


def draw_concepts(client: Client, images: Path) -> Figure:
    """Returns the photograph explained by a concept set that is fitted to a directory of images."""
    files = sorted(path for path in images.iterdir() if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    client.concepts.fit(
        [*files, ROOT / "examples" / "images" / PHOTOGRAPH],
        name="cats", model=MODEL, targets=["Egyptian cat"], concepts=4, views=20,
    )  # fmt: skip
    return draw_summary(*explain(client, PHOTOGRAPH, "concepts", concept_set="cats"))


def main() -> int:
    """Draws everything."""
    IMAGES.mkdir(exist_ok=True)
    (port,) = free_ports(1)
    plan = Plan(listen=f"127.0.0.1:{port}", service_metrics=0, worker_metrics=0, models_file=MODELS_FILE)
    with LocalStack(plan) as stack, Client(plan.listen) as client:
        stack.wait_for_service()
        stack.wait_for_models(client, lambda line: sys.stderr.write(f"{line}\n"))
        save(draw_answers([explain(client, *answer) for answer in ANSWERS]), "two-answers")
        save(draw_summary(*explain(client, PHOTOGRAPH, "igos++")), "igos-plus-plus")
        for methods, name in zip(HEATMAPS, ("heatmaps-by-perturbation", "heatmaps-others"), strict=True):
            save(draw_heatmaps({method: explain(client, PHOTOGRAPH, method) for method in methods}), name)
        save(draw_summary(*explain(client, PHOTOGRAPH, "mse")), "sufficient-sets")
        attention, seen = explain(client, PHOTOGRAPH, "sag", expand_above=EXPAND_ABOVE)
        if attention.graph is None:
            raise ValueError("the attention graph has no nodes: nothing to draw")
        title = f"Why {attention.target.label if attention.target else 'this'}?"
        save(draw_graph(attention.graph, seen, title), "attention-graph")
        shared = {edge.child for edge in attention.graph.edges}
        sys.stderr.write(f"{len(attention.graph.edges) - len(shared)} edges lead to a shared node\n")
        if "SAGITTAL_BENCHMARK_IMAGES" in os.environ:
            save(draw_concepts(client, Path(os.environ["SAGITTAL_BENCHMARK_IMAGES"])), "concepts")
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Draws docs/images: explanations of the shipped photographs by EfficientNet-Lite0 with every method.

They come from a real stack, which takes several minutes on two cores. Figures are reduced in size and colours to keep
the repository small.
"""

import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import PIL.Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import ImageColor

from sagittal.cli.stack import MODELS_FILE, LocalStack, Plan, free_ports
from sagittal.client import Client, Explanation
from sagittal.client.drawing import canvas
from sagittal.client.drawing.graph import draw_graph
from sagittal.client.drawing.summary import draw_summary
from sagittal.client.methods import Method
from sagittal.imaging.view import View

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
MODEL = "efficientnet-lite0"
PHOTOGRAPHS = ("chelsea.png",)
HEATMAPS = (
    "igos++", "igos+", "igos", "meaningful-perturbation", "rise", "occlusion",
    "grad-cam", "integrated-gradients", "excitation-bp",
)  # fmt: skip
#: Largest number of model evaluations of one search, so that slow methods end too.
EVALUATIONS = 1000
#: Width in pixels and number of colours of a figure in the documentation.
WIDTH, COLOURS = 1200, 200

Explained = tuple[Explanation, View]


def explain(client: Client, photograph: str, method: str) -> Explained:
    """Returns an explanation with the model's view of the image."""
    path = ROOT / "examples" / "images" / photograph
    explanation = client.explain(path, model=MODEL, method=Method(method), max_evaluations=EVALUATIONS)
    sys.stderr.write(f"{photograph} {method}: {explanation.evaluations} evaluations\n")
    return explanation, explanation.view()


def save(fig: Figure, name: str) -> None:
    """Writes a figure with reduced size and colours."""
    with TemporaryDirectory() as directory:
        path = Path(directory) / name
        canvas.save(fig, path)
        with PIL.Image.open(path) as picture:
            size = (WIDTH, round(WIDTH * picture.height / picture.width))
            resized = picture.convert("RGB").resize(size, PIL.Image.Resampling.LANCZOS)
            resized.quantize(palette=palette_of(resized)).save(IMAGES / name, optimize=True)


def palette_of(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Returns the most frequent colours of a picture, and those of lines and text, which are too few to count."""
    frequent = picture.quantize(COLOURS).getpalette() or []
    drawn = [ImageColor.getrgb(colour) for colour in (canvas.INK, canvas.GOOD, canvas.BAD, canvas.WARN, canvas.PAPER)]
    palette = PIL.Image.new("P", (1, 1))
    palette.putpalette([*frequent[: 3 * COLOURS], *chain.from_iterable(drawn)])
    return palette


def draw_heatmaps(explained: Mapping[str, Sequence[Explained]]) -> Figure:
    """Returns every heatmap over its photograph and by itself, with the areas under its curves."""
    fig = canvas.figure(3.2 * (len(explained) + 1), 6.9 * len(PHOTOGRAPHS))
    axes = fig.subplots(2 * len(PHOTOGRAPHS), len(explained) + 1, squeeze=False)
    for number in range(len(PHOTOGRAPHS)):
        first = next(iter(explained.values()))[number]
        above, below = axes[2 * number], axes[2 * number + 1]
        canvas.show(above[0], first[1].picture, first[0].target.label if first[0].target else "")
        below[0].axis("off")
        for over, alone, (method, found) in zip(above[1:], below[1:], explained.items(), strict=True):
            _draw_heatmap(over, alone, method, *found[number])
    fig.tight_layout()
    return fig


def _draw_heatmap(over: Axes, alone: Axes, method: str, explanation: Explanation, seen: View) -> None:
    if explanation.mask is None or explanation.insertion is None or explanation.deletion is None:
        raise ValueError(f"{method} returned no heatmap with curves, so there is nothing to draw")
    note = f"insertion {explanation.insertion:.2f}   deletion {explanation.deletion:.2f}"
    canvas.show(over, seen.painted(explanation.mask), method, note)
    canvas.heat(alone, explanation.mask, bool((explanation.mask < 0).any()))
    canvas.frame(alone)


def main() -> int:
    """Draws everything."""
    IMAGES.mkdir(exist_ok=True)
    (port,) = free_ports(1)
    plan = Plan(listen=f"127.0.0.1:{port}", service_metrics=0, worker_metrics=0, models_file=MODELS_FILE)
    with LocalStack(plan) as stack, Client(plan.listen) as client:
        stack.wait_for_service()
        stack.wait_for_models(client, lambda line: sys.stderr.write(f"{line}\n"))
        explained = {method: [explain(client, photograph, method) for photograph in PHOTOGRAPHS] for method in HEATMAPS}
        save(draw_summary(*explained["igos++"][0]), "igos-plus-plus.png")
        save(draw_heatmaps(dict(list(explained.items())[:5])), "heatmaps-by-perturbation.png")
        save(draw_heatmaps(dict(list(explained.items())[5:])), "heatmaps-others.png")
        save(draw_summary(*explain(client, PHOTOGRAPHS[0], "mse")), "sufficient-sets.png")
        attention, seen = explain(client, PHOTOGRAPHS[0], "sag")
        if attention.graph is None:
            raise ValueError("the attention graph has no nodes, so there is nothing to draw")
        save(draw_graph(attention.graph, seen, "Why Egyptian cat?"), "attention-graph.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())

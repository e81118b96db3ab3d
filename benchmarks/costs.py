"""Cost of each method with its defaults, in evaluations and seconds: `make bench-costs`."""

from collections.abc import Iterator, Sequence
from statistics import mean

import torch
from concepts import run_fit
from subject import Outcome, Picture, arguments, load_model, machine, pictures, report, run, table

from sagittal.explain import EXPLAINERS, Explainer, GradCAM
from sagittal.explain.concepts import Concepts, FitQuestion, FitSettings, FittedConcepts, GivenImages
from sagittal.explain.events import Prediction
from sagittal.models.loaded import LoadedModel

TEXT = """{table}
Means over {images} shipped images, EfficientNet-Lite0 at 224 x 224, no cache. *Search* is the method alone. *Curves*
are insertion and deletion, which are measured after the search for every method with a heatmap. Seconds are processor
time of one thread, and scale with the model: one evaluation without gradient took {forward:.0f} ms. The fit of the
concept set is not included. The images are inputs of the model, without 8-bit pixels. For image files,
`minimal-sufficient-explanations` spends about 294 evaluations more for a set, at most, to find one near it that
survives a JPEG file.
`make bench-costs` measures the table again; this one is from {machine}.
"""


def explainers(loaded: LoadedModel, shown: Sequence[Picture]) -> Iterator[tuple[str, Explainer]]:
    """Yields every method with its defaults; those that need something are given the smallest that works."""
    for name, row in EXPLAINERS.items():
        if name == "concepts":
            yield name, Concepts(fitted=_fitted(loaded, shown))
        elif name == "evaluate-mask":
            yield name, row.explainer(heatmap=torch.rand(28, 28, generator=torch.Generator().manual_seed(0)))
        else:
            yield name, row.explainer()


def _fitted(loaded: LoadedModel, shown: Sequence[Picture]) -> FittedConcepts:
    """Returns a concept set for the top classes of the images; it is good for nothing but its cost."""
    events = [event for picture in shown for event in run(loaded, picture, GradCAM()).events]
    targets = sorted({event.target.index for event in events if isinstance(event, Prediction)})
    moved = [each.image.roll(40 * step, dims=-1) for each in shown for step in range(4)]  # a fit needs more images
    images = GivenImages(torch.stack(moved))
    settings = FitSettings(views=8, epochs=5, seeds=1)
    return run_fit(loaded, FitQuestion(images=images, targets=targets, settings=settings)).fitted


def main() -> None:
    """Measures and reports."""
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    loaded = load_model()
    shown = list(pictures(loaded, names=("chelsea", "coffee", "rocket")))
    rows, forward = [], 0.0
    for name, explainer in explainers(loaded, shown):
        outcomes = [run(loaded, picture, explainer) for picture in shown]
        rows.append((f"`{name}`", *_means(outcomes)))
        print(*rows[-1], flush=True)
        if name == "rise":  # it takes evaluations without gradient, and nothing else that counts
            used = sum(each.evaluations + each.metric_evaluations for each in outcomes)
            forward = 1000 * sum(each.processor_seconds for each in outcomes) / used
    header = ("method", "search: evaluations", "of them with gradient", "curves: evaluations", "seconds of both")
    text = TEXT.format(table=table(header, rows), images=len(shown), machine=machine(), forward=forward)
    report(text, options, "costs")


def _means(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield f"{mean(each.evaluations for each in outcomes):,.0f}"
    yield f"{mean(each.gradient_evaluations for each in outcomes):,.0f}"
    yield f"{mean(each.metric_evaluations for each in outcomes):,.0f}"
    yield f"{mean(each.processor_seconds for each in outcomes):.1f}"


if __name__ == "__main__":
    main()

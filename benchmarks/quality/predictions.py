"""Predictability: how well explanations alone predict the model on occlusions; writes its section of docs/quality.md.

    python -m quality.predictions --images 12 --write ../docs/quality.md     from benchmarks/: measures what is missing
    python -m quality.predictions --report --write ../docs/quality.md        measures nothing: reports what is on disk

Every explanation of an image is read on the same occlusions, which no method scored. The threshold of a method is the
best one on images of the first half, where choices were made. All figures are of the second half.
"""

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import reports
import structlog
import torch
from numpy.typing import NDArray
from quality import cache
from quality.goals import Goal, goals_table, signed
from quality.prediction_measures import BASELINES, EACH, KINDS, METHODS, place, predicted, scored
from quality.statistics import Interval, bootstrap, compare
from quality.subjects import names, subjects
from subject import machine

from sagittal.explain.measures.predictability import SURVIVES, accuracy_of, auroc, best_threshold

log = structlog.get_logger()

TRIED = 6
"""First images of the second half that the surrogate's form was tried on: they are not reported."""

SCORES = "scores"
"""Name of the records of the occlusions' scores."""

OURS, GRAPH, DEFAULT, RISE = "occlusion surrogate", "attention graph, 100 occlusions", "iGOS++", "RISE, 1,000 masks"

READERS: Mapping[str, tuple[str, str]] = {
    OURS: ("occlusion surrogate", "Surrogate"),
    GRAPH: ("attention graph", "Surrogate"),
    "heatmap of the occlusion surrogate": ("occlusion surrogate", "SaliencyMask"),
    RISE: (RISE, "SaliencyMask"),
    DEFAULT: (DEFAULT, "SaliencyMask"),
    "ordered region search": ("ordered region search", "SaliencyMask"),
    "Grad-CAM": ("Grad-CAM", "SaliencyMask"),
    "attention graph: a node's share kept": ("attention graph", "GraphNode"),
    "sufficient sets: a set's share kept": ("attention graph", "SufficientSet"),
    "nothing but the area kept": ("Grad-CAM", "area"),
}
"""The records of a method and the part of its explanation that is read, by name."""

HEATMAPS = [name for name, (_, part) in READERS.items() if part == "SaliencyMask"]

WANTED_AUROC, WANTED_ACCURACY, WANTED_EVALUATIONS = 0.98, 0.92, 800

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """What one reader predicts for the occlusions of some images, and their scores on one baseline."""

    numbers: Sequence[Floats]
    scores: Sequence[Floats]

    def of_kind(self, kind: int) -> "Readings":
        """Returns the occlusions of one kind."""
        step = len(KINDS)
        return Readings([each[kind::step] for each in self.numbers], [each[kind::step] for each in self.scores])

    def threshold(self) -> float:
        """Returns the common threshold with the best balanced accuracy."""
        return best_threshold(np.concatenate(self.numbers), np.concatenate(self.scores) >= SURVIVES)

    def aurocs(self) -> list[float]:
        """Returns the AUROC of each image in which some occlusions survive and some do not."""
        return [auroc(numbers, survived) for numbers, survived in self._mixed()]

    def accuracies(self, threshold: float) -> list[float]:
        """Returns the balanced accuracy of each such image."""
        return [accuracy_of(numbers >= threshold, survived) for numbers, survived in self._mixed()]

    def _mixed(self) -> Iterator[tuple[Floats, NDArray[np.bool_]]]:
        for numbers, scores in zip(self.numbers, self.scores, strict=True):
            survived = scores >= SURVIVES
            if survived.any() and not survived.all():
                yield numbers, survived


class Records:
    """The records of images by method, and of the occlusions' scores."""

    def __init__(self, images: Sequence[str], digest: str) -> None:
        """Reads what is on disk."""
        folders = {name: place(name, digest) for name in (SCORES, *METHODS)}
        self._records = {
            name: {each: cache.read(at / f"{each}.npz") for each in images if (at / f"{each}.npz").exists()}
            for name, at in folders.items()
        }

    def images(self, *readers: str) -> list[str]:
        """Returns the images that all these readers have read."""
        methods = [READERS[each][0] for each in readers]
        return [each for each in self._records[SCORES] if all(each in self._records[name] for name in methods)]

    def readings(self, reader: str, baseline: str, images: Sequence[str] | None = None) -> Readings:
        """Returns what a reader predicts for images, by default all that it has read, on one baseline."""
        method, part = READERS[reader]
        images = self.images(reader) if images is None else images
        nothing = np.zeros(EACH * len(KINDS))  # a search that found no set
        return Readings(
            [self._records[method][each].get(part, nothing) for each in images],
            [self._records[SCORES][each][baseline] for each in images],
        )

    def evaluations(self, reader: str) -> float:
        """Returns the mean evaluations of the search."""
        method, part = READERS[reader]
        if part == "area":
            return 0.0
        extra = 100 if method == "attention graph" and part != "Surrogate" else 0
        return float(np.mean([each["evaluations"] for each in self._records[method].values()])) - extra


def report(first: Records, second: Records) -> str:
    """Returns the section of the report."""
    return TEXT.format(
        goals=goals_table(list(_goals(first, second))),
        figures=reports.table(
            ("read", "images", "evaluations", *(f"{name}: {what}" for name in BASELINES for what in FIGURES)),
            [
                (name, len(second.images(name)), f"{second.evaluations(name):,.0f}", *_figures(first, second, name))
                for name in READERS
            ],
        ),
        kinds=reports.table(("read", *KINDS), [(name, *_by_kind(second, name)) for name in READERS]),
        first=len(first.images(OURS)),
        tried=TRIED,
        machine=machine(),
        each=EACH,
    )


FIGURES = ("AUROC", "balanced accuracy")

TEXT = """\
## Does the reader understand the model?

`python -m quality.predictions` in `benchmarks/` measured this section ({machine}): how well an explanation alone
predicts whether the class keeps half of its unmasked score on occlusions that its method never scored ([what it
means](reading-an-explanation.md#predictability)). Each image has {each} of each kind: rectangles, sets of 7x7 patches,
blobs, and objects, which are segments of the image (Felzenszwalb's, which no method uses). All explanations have a
blurred baseline, and are read on the same occlusions, on that baseline and on a black one, which no method saw. The
threshold of each is the best common one on {first} images of the first half with blur. The figures are those of images
of the second half, without its first {tried}, on which the form of the surrogate was tried.

{goals}
{figures}
AUROC by kind of occlusion, with blur:

{kinds}
*Better* means that the whole interval is above zero. A heatmap is read by the share of its saliency that is kept. The
surrogate of the *attention graph* is fitted to the scores of its search and 100 random occlusions. No figure says that
a person predicts as well: a program reads the surrogate, and a person reads its heatmap.
"""


def _goals(first: Records, second: Records) -> Iterator[Goal]:
    ours = second.readings(OURS, "blur")
    order = bootstrap(ours.aurocs(), seed=0)
    right = bootstrap(ours.accuracies(first.readings(OURS, "blur").threshold()), seed=0)
    spent, count = second.evaluations(OURS), len(second.images(OURS))
    yield Goal(
        f"an explanation is read with AUROC at least {WANTED_AUROC}", f"{order:.3f}", order.mean >= WANTED_AUROC, count
    )
    text = f"and balanced accuracy at least {WANTED_ACCURACY}"
    yield Goal(text, f"{right:.3f}", right.mean >= WANTED_ACCURACY, count)
    yield Goal(f"at {WANTED_EVALUATIONS} evaluations or fewer", f"{spent:,.0f}", spent <= WANTED_EVALUATIONS, count)
    for other in HEATMAPS[:3]:
        over = _difference(second, OURS, other)
        yield Goal(f"it is read better than: {other}", signed(over), over.low > 0, over.count)
    for other in HEATMAPS:
        over = _difference(second, GRAPH, other)
        yield Goal(f"the graph with its surrogate is read better than: {other}", signed(over), over.low > 0, over.count)
    over = _difference(second, DEFAULT, RISE)
    yield Goal("the default heatmap (iGOS++) is not below RISE", signed(over), over.mean >= 0, over.count)
    over = _difference(second, HEATMAPS[0], RISE)
    yield Goal("the heatmap of the surrogate is not below RISE", signed(over), over.mean >= 0, over.count)


def _difference(records: Records, one: str, other: str) -> Interval:
    common = records.images(one, other)
    return compare(*(records.readings(each, "blur", common).aurocs() for each in (one, other)), seed=0).difference


def _figures(first: Records, second: Records, reader: str) -> Iterator[str]:
    threshold = first.readings(reader, "blur").threshold()
    for baseline in BASELINES:
        found = second.readings(reader, baseline)
        yield f"{bootstrap(found.aurocs(), seed=0):.3f}"
        yield f"{bootstrap(found.accuracies(threshold), seed=0):.3f}"


def _by_kind(records: Records, reader: str) -> Iterator[str]:
    found = records.readings(reader, "blur")
    for kind in range(len(KINDS)):
        yield f"{np.mean(found.of_kind(kind).aurocs()):.3f}"


def main() -> None:
    """Measures what is missing, and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=34, help="number of images of the second half")
    parser.add_argument("--first", type=int, default=10, help="number of images of the first half, for thresholds")
    parser.add_argument("--skip", type=int, default=0, help="measure no image before this one; for several processes")
    parser.add_argument("--report", action="store_true", help="measure nothing: report what is on disk")
    parser.add_argument("--write", type=Path, help="file in which the section is replaced")
    options = parser.parse_args()
    torch.set_num_threads(1)
    everything = names(10_000) if options.report else subjects(10_000)
    first = [each for each in everything.names if each in everything.tuning][: options.first]
    second = [each for each in everything.names if each not in everything.tuning][TRIED:][: options.images]
    if not options.report:
        pictures = {each.name: each for each in everything.chosen}
        turns = itertools.zip_longest(second[::2], first, second[1::2])
        for image in [each for turn in turns for each in turn if each is not None][options.skip :]:
            cache.recorded(place(SCORES, everything.digest), image, partial(scored, everything.model, pictures[image]))
            for name, method in METHODS.items():
                measure = partial(predicted, everything.model, pictures[image], method)
                cache.recorded(place(name, everything.digest), image, measure)
                log.info("predictions.measured", method=name, image=image)
    text = report(Records(first, everything.digest), Records(second, everything.digest))
    print(text)
    if options.write:
        reports.write_section(options.write, "predictability", text)


if __name__ == "__main__":
    main()

"""The report's sections on heatmaps."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from quality import heatmap, published, weights
from quality.chart import Line, chart
from quality.goals import Goal, signed
from quality.measuring import Measurements
from quality.sanity import UNCHANGED
from quality.statistics import Comparison, bootstrap, compare
from subject import table

DEFAULT = "igos++"
REFERENCE = "igos++-reference"
SHORT = f"igos++-{heatmap.SHORT}"

TITLES = {
    DEFAULT: "iGOS++",
    SHORT: f"iGOS++, {heatmap.SHORT} evaluations",
    REFERENCE: "iGOS++, reimplemented",
    "igos+": "iGOS+",
    "igos": "I-GOS",
    "igos-reference": "I-GOS, reimplemented",
    "meaningful-perturbation": "meaningful perturbation",
    "rise": "RISE",
    "grad-cam": "Grad-CAM",
    "integrated-gradients": "Integrated Gradients",
    "excitation-bp": "Excitation BP",
    "occlusion": "occlusion",
}

NEAR = 0.03


class Heatmaps:
    """Records of heatmaps, compared image by image."""

    def __init__(self, measurements: Measurements) -> None:
        self._measurements = measurements
        names = [*TITLES, heatmap.FINE, *_curve().values()]
        self.records = {name: measurements.records(name) for name in dict.fromkeys(names)}

    def values(self, name: str, what: str, pictures: Sequence[str] | None = None) -> list[float]:
        """Returns one number per image."""
        found = self.records[name]
        return [float(found[picture][what]) for picture in (found if pictures is None else pictures)]

    def common(self, *names: str) -> list[str]:
        """Returns the images that all of these were measured on."""
        return [picture for picture in self.records[names[0]] if all(picture in self.records[name] for name in names)]

    def compared(self, first: str, second: str, what: str, pictures: Sequence[str] | None = None) -> Comparison | None:
        """Compares on the images that both were measured on; None if there are none."""
        chosen = self.common(first, second) if pictures is None else pictures
        if not chosen:
            return None
        return compare(self.values(first, what, chosen), self.values(second, what, chosen), seed=0)

    def methods(self) -> str:
        """Returns the table of all methods."""
        rows = []
        for name, title in TITLES.items():
            if found := self.records[name]:
                over = self.compared(DEFAULT, name, "insertion") if name != DEFAULT else None
                seconds = [each for each in self.values(name, "seconds") if not math.isnan(each)]
                rows.append(
                    [
                        title,
                        len(found),
                        f"{bootstrap(self.values(name, 'insertion'), seed=0):.3f}",
                        f"{bootstrap(self.values(name, 'deletion'), seed=0):.3f}",
                        "" if over is None else signed(over.difference),
                        f"{fmean(self.values(name, 'evaluations')):,.0f}",
                        f"{fmean(seconds):.1f}" if seconds else "",
                    ]
                )
        header = ["method", "images", "insertion", "deletion", "iGOS++ over it", "evaluations", "seconds"]
        return table(header, rows)

    def protocol(self) -> str:
        """Returns the table of the reimplementation against the published code, each by its measure."""
        rows = []
        for (method, picture), (insertion, deletion, evaluations) in published.KNOWN.items():
            if found := self._published(method, picture):
                said = [_seeds(found, what) for what in ("insertion", "deletion")]
                spent = f"{fmean(each['evaluations'] for each in found):,.0f}"
                program = (f"{insertion:.3f}", f"{deletion:.3f}", f"{evaluations:,}")
                rows.append((TITLES[method], picture, *program, len(found), *said, spent))
        program = ("published code: insertion", "deletion", "evaluations")
        header = ("method", "image", *program, "seeds", "reimplemented: insertion", "deletion", "evaluations")
        return table(header, rows)

    def resampled(self) -> str:
        """Returns the table of the reimplementation on images with other resampling."""
        rows = []
        for how in published.RESAMPLINGS:
            for picture, each in self._measurements.records(f"resampled-{how}").items():
                figures = (f"{each['insertion']:.3f}", f"{each['deletion']:.3f}", f"{each['evaluations']:,}")
                rows.append((picture, how, *figures))
        header = ("image", "resampling", "reimplemented: insertion", "deletion", "evaluations")
        return table(header, rows) if rows else "Not measured.\n"

    def _published(self, method: str, picture: str) -> list[Mapping[str, Any]]:
        """Returns the figures of the reimplementation by the published measure, of each seed."""
        seeds = [self._measurements.records(f"published-{method}-{seed}") for seed in published.SEEDS]
        return [records[picture] for records in seeds if picture in records]

    def goals(self) -> list[Goal]:
        """Returns the goals of the default against the reimplementation, the other methods, and the finer mask."""
        found = [*self._against_reference(), *self._against_others(), *self._fine()]
        return [goal for goal in found if goal is not None]

    def _against_reference(self) -> list[Goal | None]:
        pictures = self.common(DEFAULT, REFERENCE)
        goals: list[Goal | None] = [self._protocol_is_near(method) for method in published.METHODS]
        if pictures:
            goals.append(self._cost(DEFAULT, 20))
            over = self.compared(DEFAULT, REFERENCE, "insertion")
            under = self.compared(DEFAULT, REFERENCE, "deletion")
            short = self.compared(SHORT, REFERENCE, "insertion")
            assert over is not None
            assert under is not None
            met = over.difference.mean >= NEAR and over.difference.low > 0
            text = "default iGOS++ over the reimplementation: insertion at least 0.03 higher, the interval above zero"
            goals.append(Goal(text, signed(over.difference), met, len(pictures)))
            text = "and deletion not higher"
            goals.append(Goal(text, signed(under.difference), under.difference.mean <= 0, len(pictures)))
            if short is not None:
                goals.append(self._cost(SHORT, 50))
                count = len(self.common(SHORT, REFERENCE))
                goals.append(
                    Goal("insertion not lower with that", signed(short.difference), short.difference.mean >= 0, count)
                )
        return goals

    def _protocol_is_near(self, method: str) -> Goal | None:
        """Returns whether the protocol's mean over seeds is near the program's one run."""
        far = {
            picture: fmean(each["insertion"] for each in found) - insertion
            for (known, picture), (insertion, _, _) in published.KNOWN.items()
            if known == method and (found := self._published(method, picture))
        }
        if not far:
            return None
        said = ", ".join(f"{picture} {distance:+.3f}" for picture, distance in far.items())
        text = f"reimplemented {TITLES[method]}: insertion within {NEAR} of the published code's"
        return Goal(text, said, max(map(abs, far.values())) <= NEAR, len(far), wanted=2)

    def _cost(self, name: str, part: int) -> Goal:
        pictures = self.common(name, REFERENCE)
        ratio = sum(self.values(REFERENCE, "evaluations", pictures)) / sum(self.values(name, "evaluations", pictures))
        text = f"{TITLES[name]}: at most 1/{part} of the evaluations of the reference implementation"
        return Goal(text, f"1/{ratio:.1f}", ratio >= part, len(pictures))

    def _against_others(self) -> list[Goal | None]:
        goals: list[Goal | None] = []
        for name, title in TITLES.items():
            if name in (DEFAULT, SHORT, REFERENCE):
                continue
            over = self.compared(DEFAULT, name, "insertion")
            if over is not None:
                text = f"its insertion is not below that of {title}"
                count = over.difference.count
                goals.append(Goal(text, signed(over.difference), over.difference.mean >= 0, count))
        return goals

    def _fine(self) -> list[Goal | None]:
        pictures = self.common(DEFAULT, heatmap.FINE)
        if not pictures:
            return []
        fine, coarse = (
            self.values(heatmap.FINE, "own_insertion", pictures),
            self.values(DEFAULT, "insertion", pictures),
        )
        near = compare(fine, coarse, seed=0).difference
        ratio = sum(self.values(heatmap.FINE, "variation", pictures)) / sum(self.values(DEFAULT, "variation", pictures))
        count = len(pictures)
        text = "iGOS++ at 224x224: insertion at most 0.02 below that at 28x28"
        return [
            Goal(text, signed(near), near.mean >= -0.02, count),
            Goal("and at most three times the total variation", f"{ratio:.2f} times", ratio <= 3, count),
        ]

    def curve(self, images: Path | None) -> str:
        """Returns the table of quality against evaluations on one half of the images, and draws it."""
        names = _curve()
        tuning = self._measurements.subjects.tuning
        pictures = [picture for picture in self.common(*names.values()) if picture in tuning]
        if not pictures:
            return "Not measured.\n"
        rows, insertions, deletions = [], [], []
        for count, name in names.items():
            insertion = bootstrap(self.values(name, "insertion", pictures), seed=0)
            deletion = bootstrap(self.values(name, "deletion", pictures), seed=0)
            schedule = heatmap.SCHEDULES[count]
            rows.append((count, *schedule.values(), f"{insertion:.3f}", f"{deletion:.3f}"))
            insertions.append((count, insertion.mean, insertion.low, insertion.high))
            deletions.append((count, deletion.mean, deletion.low, deletion.high))
        drawn = ""
        if images is not None:
            images.mkdir(parents=True, exist_ok=True)
            lines = [Line("insertion", "#1b6ca8", insertions), Line("deletion", "#b3452c", deletions)]
            (images / "quality-curve.svg").write_text(chart(lines, "Quality of iGOS++ against evaluations"))
            drawn = "\n![Insertion and deletion of iGOS++ against evaluations](images/quality-curve.svg)\n"
        header = ("evaluations", "iterations", "points", "level sets", "insertion", "deletion")
        return f"On {len(pictures)} images of the first half.\n\n" + table(header, rows) + drawn

    def halves(self) -> str:
        """Returns the default's figures on the half it was chosen on and on the other."""
        tuning = self._measurements.subjects.tuning
        rows = []
        for title, half in (("first: defaults may be chosen on it", True), ("second: reported", False)):
            pictures = [each for each in self.common(DEFAULT, REFERENCE) if (each in tuning) == half]
            if pictures:
                over = self.compared(DEFAULT, REFERENCE, "insertion", pictures)
                under = self.compared(DEFAULT, REFERENCE, "deletion", pictures)
                assert over is not None
                assert under is not None
                rows.append((title, len(pictures), signed(over.difference), signed(under.difference)))
        return table(
            ("half", "images", "insertion over the reimplementation", "deletion over the reimplementation"), rows
        )

    def sanity(self) -> str:
        """Returns the table of rank correlations with the heatmaps of randomised models."""
        rows = []
        for name in heatmap.METHODS:
            found = self._measurements.records(f"weights-{name}")
            if found:
                states = [fmean(float(each[f"state{index}"]) for each in found.values()) for index in range(3)]
                verdict = "changes" if states[-1] <= UNCHANGED else "**does not**"
                rows.append([TITLES[name], len(found), *(f"{state:+.2f}" for state in states), verdict])
        header = ["method", "images", *(f"{index + 1}/{weights.STATES} random" for index in range(weights.STATES))]
        return table([*header, "heatmap"], rows) if rows else "Not measured.\n"


def _seeds(found: Sequence[Mapping[str, Any]], what: str) -> str:
    """Returns a figure of several seeds: the mean, and the least and most."""
    values = [float(each[what]) for each in found]
    return f"{fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _curve() -> dict[int, str]:
    """Returns the measurement of each number of evaluations."""
    return {count: DEFAULT if count == heatmap.DEFAULT else f"igos++-{count}" for count in heatmap.SCHEDULES}

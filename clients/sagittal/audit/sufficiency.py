"""Statistics of the sufficient sets of a data set: the locality curve, and the number of explanations of an image.

Shitole, Li, Kahng, Tadepalli, Fern: One Explanation Is Not Enough: Structured Attention Graphs for Image Classification
(NeurIPS 2021).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sagittal.audit.statistics import bootstrap
from sagittal.client import SufficientSet
from sagittal.imaging.patch_sets import bits_of, diverse_family

#: Areas of the locality curve, as shares of the image.
AREAS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)

#: Area within which the paper reports a sufficient set on 80 % of the images.
PAPER_AREA = 0.2

#: Numbers of patches that two diverse sets may share.
OVERLAPS = (0, 1, 2)

#: Statistics, with their names: a share of images with a set, a mean number of sets, a share of images with several.
STATISTICS: Mapping[str, Callable[[float], str]] = {
    "locality": lambda at: f"a set within {at:.0%} of the area",
    "diverse": lambda at: f"sets at overlap {at:.0f}",
    "several": lambda at: f"several at overlap {at:.0f}",
}


@dataclass(frozen=True, slots=True)
class SetCounts:
    """The sufficient sets of an image, counted."""

    smallest: float = math.inf
    """Area of the smallest set as a share of the image; infinite if there is none."""
    diverse: tuple[int, ...] = (0,) * len(OVERLAPS)
    """Number of sets in the largest diverse family, for each of `OVERLAPS`."""


#: Counts of an image without sets.
NO_SETS = SetCounts()


def count_sets(sets: Sequence[SufficientSet]) -> SetCounts:
    """Returns the counts of the sufficient sets of one image."""
    scores = {bits_of(each.patches.patches): each.score for each in sets}
    return SetCounts(
        smallest=min((len(each.patches.patches) / each.patches.grid**2 for each in sets), default=math.inf),
        diverse=tuple(len(diverse_family(scores, allowed)) for allowed in OVERLAPS),
    )


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over images."""

    at: float
    """Largest area as a share of the image, or number of patches that two sets may share."""
    mean: float
    low: float
    """Lower end of the 95 % bootstrap interval of the mean."""
    high: float

    @property
    def text(self) -> str:
        """The mean with its interval."""
        return f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetStatistics:
    """Statistics of some images; images without a sufficient set count as such."""

    images: int
    locality: tuple[Estimate, ...]
    """Share of images with a sufficient set within each of `AREAS`."""
    diverse: tuple[Estimate, ...]
    """Mean number of sets in the largest family of which no two share more patches than each of `OVERLAPS`."""
    several: tuple[Estimate, ...]
    """Share of images with more than one set in that family."""

    @classmethod
    def of(cls, counts: Sequence[SetCounts]) -> "SetStatistics":
        """Returns the statistics of at least one image."""
        smallest, diverse = np.array([each.smallest for each in counts]), np.array([each.diverse for each in counts])
        return cls(
            images=len(counts),
            locality=tuple(_estimate(area, smallest <= area + 1e-9) for area in AREAS),
            diverse=tuple(_estimate(at, diverse[:, place]) for place, at in enumerate(OVERLAPS)),
            several=tuple(_estimate(at, diverse[:, place] > 1) for place, at in enumerate(OVERLAPS)),
        )

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> "SetStatistics":
        """Returns the statistics in a file."""
        estimates = {name: tuple(Estimate(**each) for each in given[name]) for name in STATISTICS}
        return cls(images=given["images"], **estimates)


def _estimate(at: float, values: Sequence[float] | np.ndarray[Any, Any]) -> Estimate:
    numbers = np.asarray(values, np.float64)
    return Estimate(at, float(numbers.mean()), *bootstrap(numbers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sufficiency:
    """Statistics of the sufficient sets of an audit."""

    whole: SetStatistics
    """Of all images that were searched."""
    groups: Mapping[str, SetStatistics]
    parameters: Mapping[str, Any]
    """Parameters of the method, with which the sets were searched."""

    @classmethod
    def of(cls, counts: Mapping[str, Sequence[SetCounts]], parameters: Mapping[str, Any]) -> "Sufficiency | None":
        """Returns the statistics of the images of each group; None if no image has a sufficient set."""
        every = [each for group in counts.values() for each in group]
        if all(math.isinf(each.smallest) for each in every):
            return None
        groups = {name: SetStatistics.of(each) for name, each in counts.items()}
        return cls(whole=SetStatistics.of(every), groups=groups, parameters=parameters)

    @classmethod
    def parse(cls, given: Mapping[str, Any] | None) -> "Sufficiency | None":
        """Returns the statistics in a file."""
        if given is None:
            return None
        groups = {name: SetStatistics.parse(each) for name, each in given["groups"].items()}
        return cls(whole=SetStatistics.parse(given["whole"]), groups=groups, parameters=given["parameters"])

    @property
    def rows(self) -> Sequence[tuple[str | None, SetStatistics]]:
        """The statistics of all images first, whose name is None, then of each group."""
        return [(None, self.whole), *self.groups.items()]

    @property
    def bound(self) -> str:
        """Which of the numbers are lower bounds, and why."""
        searched = self.parameters.get("max_overlap")
        if searched is None:
            return ""
        return (
            f"The sets were searched with max_overlap {searched}: at other overlaps, those that were found are "
            "counted, so that the numbers are lower bounds."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SetsChange:
    """A statistic in two audits."""

    group: str | None
    """None for all images."""
    statistic: str
    """Name of `STATISTICS`."""
    before: Estimate
    after: Estimate

    @property
    def at(self) -> float:
        """The area or the overlap."""
        return self.before.at

    @property
    def name(self) -> str:
        """The statistic with its area or overlap."""
        return STATISTICS[self.statistic](self.at)

    @property
    def changed(self) -> bool:
        """Whether the intervals do not overlap."""
        return self.after.low > self.before.high or self.after.high < self.before.low


def compare_sets(old: Sufficiency, new: Sufficiency) -> Iterator[SetsChange]:
    """Yields every statistic of all images, and of the groups that both audits have."""
    later = dict(new.rows)
    for group, before in old.rows:
        for statistic in STATISTICS if group in later else ():
            pairs = zip(getattr(before, statistic), getattr(later[group], statistic), strict=True)
            for one, other in pairs:
                yield SetsChange(group=group, statistic=statistic, before=one, after=other)


def why_not_comparable(old: Sufficiency, new: Sufficiency) -> str:
    """Returns which parameters of the searches differ, so that a difference may be theirs; empty if none does."""
    names = sorted(old.parameters.keys() | new.parameters.keys())
    differing = [
        f"{name} {old.parameters.get(name)} before and {new.parameters.get(name)} after"
        for name in names
        if old.parameters.get(name) != new.parameters.get(name)
    ]
    return f"the sets were searched differently: {', '.join(differing)}" if differing else ""

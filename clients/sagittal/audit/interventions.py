"""The causal tests of candidates: take the suspected cause away, add it to images of other classes, and score again.

Each intervention has controls: the same change elsewhere, or with a part of an image of another class. Only what the
candidate changes beyond its controls counts as its effect.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sagittal.audit.candidates import MIN_IMAGES, WHOLE, Candidate, appearance, largest_alike
from sagittal.audit.evidence import SAME, Cells, Evidence, Pixels, box_of, overlap, to_pixels
from sagittal.audit.statistics import Effect, measure_effect

Score = Callable[[Sequence[tuple[Pixels, int]]], Sequence[float]]
"""Returns the probability of a class for each of some images, as the model sees them."""

#: Largest number of images on which an intervention is tested.
MOST_TESTED = 24

#: Controls of each intervention; fewer where another image would be the control of two.
CONTROLS = 3

#: Images of other classes onto which the region of each image of a group is pasted, to list the images with the cause.
RECEIVERS = 4

#: Placements that are tried for the control of a covered region.
_TRIES = 50

#: Width of the margin whose mean colour covers a region, in cells.
_MARGIN = 1

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tested:
    """A candidate with the effects of its interventions."""

    candidate: Candidate
    removed: Effect | None
    """Fall of the class's probability without the candidate; None if no image could be changed, or it was screened."""
    added: Effect | None
    """Rise of the class's probability on images of other classes with the candidate; None if there are none."""
    without: tuple[tuple[int, float], ...] = ()
    """Images and the class's probability without the candidate."""
    pasted: tuple[tuple[int, int, float], ...] = ()
    """Sources, receivers of other classes, and the class's probability on the receivers with the candidate."""
    kept: float | None = None
    """Share of the score that a region at the border keeps alone; None for other candidates."""

    @property
    def p(self) -> float:
        """The smaller p-value of both tests, doubled because there are two."""
        return min(1.0, 2 * min((each.p for each in (self.removed, self.added) if each is not None), default=1.0))


@dataclass(frozen=True, eq=False)
class Laboratory:
    """Tests candidates on the images of an audit."""

    evidence: Sequence[Evidence]
    score: Score
    seed: int = 0
    _apart: set[int] = field(default_factory=set, init=False)
    """Images with a region that changes the model."""
    _places: list[tuple[str, Cells]] = field(default_factory=list, init=False)
    """Groups with a place that changes the model."""

    def set_apart(self, candidate: Candidate) -> None:
        """Uses the images of a candidate no longer as examples of backgrounds and colours, nor its place as suspect."""
        self._apart.update(candidate.regions)
        if candidate.fixed is not None:
            self._places.append((candidate.group, candidate.fixed))

    def without_known(self, candidate: Candidate) -> Candidate:
        """Returns a background or colour in the images that are not set apart, if there are enough of them."""
        left = {index: region for index, region in candidate.regions.items() if index not in self._apart}
        return replace(candidate, regions=left) if candidate.kind in WHOLE and len(left) >= MIN_IMAGES else candidate

    def screen(self, candidate: Candidate, least: float) -> Candidate | None:
        """Returns a candidate in those images alone whose score falls without it; None if they are too few or most.

        A cause in a twentieth of a group's images is lost in the mean over all. Of backgrounds and colours, only the
        largest part that looks alike is taken, because some of any kind matter. Images that are set apart are left out.

        Args:
            candidate: What may matter.
            least: Fall of the class's probability from which it matters in an image.
        """
        places = [place for group, place in self._places if group == candidate.group]
        left = [
            index
            for index, region in candidate.regions.items()
            if index not in self._apart and all(overlap(region, each) < SAME for each in places)
        ]
        if not len(self._others(candidate)):
            return None
        edited = [self.without(candidate, index, candidate.regions[index]) for index in left]
        after = self._scores(zip(edited, (self.evidence[index].label for index in left), strict=True))
        chosen = [
            index for index, score in zip(left, after, strict=True) if self.evidence[index].score - score >= least
        ]
        if candidate.kind in WHOLE and chosen:
            chosen = sorted(largest_alike(self.evidence, candidate, chosen))
        if not MIN_IMAGES <= len(chosen) <= len(candidate.regions) / 2:
            return None
        return replace(candidate, regions={index: candidate.regions[index] for index in chosen}, screened=True)

    def test(self, candidate: Candidate) -> Tested:
        """Returns a candidate with its effects."""
        generator = self._generator(candidate)
        images = _sample(generator, list(candidate.regions), MOST_TESTED)
        # the images of a screened candidate were chosen by the effect of removing, which is therefore no test
        removed, without = self._remove(generator, candidate, images if not candidate.screened else ())
        added, pasted = self._add(generator, candidate, images)
        kept = self._kept(candidate, images) if "border" in candidate.kinds else None
        return Tested(candidate=candidate, removed=removed, added=added, without=without, pasted=pasted, kept=kept)

    def presence(self, tested: Tested, regions: Mapping[int, Cells]) -> dict[int, float]:
        """Returns how strongly each image of the group has the cause of a finding, which ranks images to clean.

        It is the mean probability of the class on images of other classes with the image's region; if adding had no
        effect, the fall of the class's probability without it.

        Args:
            tested: The finding's candidate with its effects.
            regions: Where it is in each image of the group.
        """
        candidate, members = tested.candidate, list(regions)
        if not _adds(tested):
            after = self._scores(
                (self.without(candidate, index, regions[index]), self.evidence[index].label) for index in members
            )
            return {index: self.evidence[index].score - each for index, each in zip(members, after, strict=True)}
        distinct = list(dict.fromkeys(receiver for _, receiver, _ in tested.pasted))
        receivers = distinct[:: max(1, len(distinct) // RECEIVERS)][:RECEIVERS]
        pairs = [(index, other) for index in members for other in receivers]
        after = self._scores(
            (self.transfer(candidate, index, other, regions[index]), self.evidence[index].label)
            for index, other in pairs
        )
        means = np.reshape(after, (len(members), len(receivers))).mean(1)
        return {index: float(mean) for index, mean in zip(members, means, strict=True)}

    def regions(self, candidate: Candidate) -> dict[int, Cells]:
        """Returns the candidate's region in each image of its group: where it was found, else where it would be."""
        found = dict(candidate.regions)
        missing = [i for i, each in enumerate(self.evidence) if each.group == candidate.group and i not in found]
        centre, region = next(iter(candidate.regions.items()))
        if candidate.kind == "background":
            missing = [index for index in missing if self.evidence[index].read_inside is not None]
        if candidate.fixed is not None:
            placed = {index: self.evidence[index].off_object(candidate.fixed) for index in missing}
            return found | {index: each for index, each in placed.items() if each.any()}
        if region.all():
            return found | dict.fromkeys(missing, region)
        picture = self.evidence[centre].picture()
        wanted = appearance(picture, to_pixels(region, picture.shape[0]))
        return found | {i: most_similar(self.evidence[i].picture(), region, wanted) for i in missing}

    def without(self, candidate: Candidate, image: int, region: Cells) -> Pixels:
        """Returns an image without the candidate."""
        if candidate.kind in WHOLE:
            others = self._others(candidate)  # neighbours in the data set get different ones
            return self.transfer(candidate, int(others[image % len(others)]), image, region)
        picture = self.evidence[image].picture()
        return cover(picture, to_pixels(region, picture.shape[0]), picture.shape[0] // len(region) * _MARGIN)

    def transfer(self, candidate: Candidate, source: int, receiver: int, region: Cells) -> Pixels:
        """Returns the receiver's image with the candidate's region, background or colour of the source's image."""
        given, taken = self.evidence[source], self.evidence[receiver]
        picture, other = given.picture(), taken.picture()
        if candidate.kind == "colour":
            return with_colour(other, picture.reshape(-1, 3).mean(0))
        if candidate.kind == "background":
            hole, kept = given.inside, taken.inside
            assert hole is not None  # noqa: S101 - only images whose object is known are candidates and receivers
            assert kept is not None  # noqa: S101
            return np.where(kept[..., None], other, cover(picture, hole, None))
        return np.where(to_pixels(region, len(picture))[..., None], picture, other)

    def _remove(
        self, generator: np.random.Generator, candidate: Candidate, images: Sequence[int]
    ) -> tuple[Effect | None, tuple[tuple[int, float], ...]]:
        if candidate.kind in WHOLE:
            images = _sample(generator, images, len(self._others(candidate)))
        if not images:
            return None, ()
        edited: list[tuple[Pixels, int]] = []
        for index, controls in zip(images, self._control_removals(generator, candidate, images), strict=True):
            label = self.evidence[index].label
            edited.append((self.without(candidate, index, candidate.regions[index]), label))
            edited += [(each, label) for each in controls]
        after = np.reshape(self._scores(edited), (len(images), -1))
        without = tuple(zip(images, after[:, 0].tolist(), strict=True))
        return measure_effect(-after[:, 0], -after[:, 1:]), without

    def _control_removals(
        self, generator: np.random.Generator, candidate: Candidate, images: Sequence[int]
    ) -> Iterator[Sequence[Pixels]]:
        """Yields the controls of each image, equally many."""
        own = _own_controls(generator, list(candidate.regions), images)
        for index, others in zip(images, own, strict=True):
            region, picture = candidate.regions[index], self.evidence[index].picture()
            if candidate.kind == "background":
                yield [self.transfer(candidate, other, index, region) for other in others]
            elif candidate.kind == "colour":
                shifted = self.without(candidate, index, region)
                yield [with_equal_shift(generator, picture, shifted) for _ in range(CONTROLS)]
            else:
                avoided = self.evidence[index].inside if self._is_outside(candidate, index) else None
                moved = [move_elsewhere(generator, region, avoided) for _ in range(CONTROLS)]
                yield [self.without(candidate, index, each) for each in moved]

    def _add(
        self, generator: np.random.Generator, candidate: Candidate, images: Sequence[int]
    ) -> tuple[Effect | None, tuple[tuple[int, int, float], ...]]:
        """Pastes the region of each image, and those of its controls, on the same receivers.

        The test permutes sources, so that receivers of one source are averaged, and no two sources share a control:
        else a few sources would count as many independent ones.
        """
        labels = {self.evidence[index].label for index in candidate.regions}
        receivers = self._usable(candidate, self._others(candidate), labels)
        if len(receivers) < 2:
            return None, ()
        sources = _sample(generator, images, len(receivers))
        controls = max(1, min(CONTROLS, (len(receivers) - 1) // len(sources)))
        times = min(MOST_TESTED // len(sources), len(receivers) - controls)
        order = generator.permutation(receivers)
        edited: list[tuple[Pixels, int]] = []
        pairs: list[tuple[int, int]] = []
        for row, source in enumerate(sources):
            region, label = candidate.regions[source], self.evidence[source].label
            others = np.roll(order, -row * controls)[: controls + times].tolist()
            for receiver in others[controls:]:
                pairs.append((source, receiver))
                origins = (source, *others[:controls])
                edited += [(self.transfer(candidate, origin, receiver, region), label) for origin in origins]
        after = np.reshape(self._scores(edited), (len(sources), times, 1 + controls))
        pasted = tuple(
            (source, receiver, score) for (source, receiver), score in zip(pairs, after[..., 0].flat, strict=True)
        )
        means = after.mean(1)
        return measure_effect(means[:, 0], means[:, 1:]), pasted

    def _kept(self, candidate: Candidate, images: Sequence[int]) -> float:
        """Returns the share of the score that is left if only the region is shown."""
        edited = []
        for index in images:
            picture = self.evidence[index].picture()
            hidden = ~to_pixels(candidate.regions[index], picture.shape[0])
            edited.append((cover(picture, hidden, None), self.evidence[index].label))
        before = [max(self.evidence[index].score, 1e-6) for index in images]
        return float(np.mean(np.array(self._scores(edited)) / before))

    def _others(self, candidate: Candidate) -> NDArray[np.int64]:
        """Returns the images of other groups; of other classes if there is one group."""
        other = np.array([each.group != candidate.group for each in self.evidence])
        if not other.any():
            labels = {self.evidence[index].label for index in candidate.regions}
            other = np.array([each.label not in labels for each in self.evidence])
        if candidate.kind == "background":
            other &= np.array([each.read_inside is not None for each in self.evidence])
        if candidate.kind in WHOLE:
            other &= ~np.isin(np.arange(len(other)), list(self._apart))
        return np.flatnonzero(other)

    def _usable(self, candidate: Candidate, others: Iterable[int], labels: set[int]) -> list[int]:
        return [int(index) for index in others if self.evidence[index].label not in labels]

    def _is_outside(self, candidate: Candidate, image: int) -> bool:
        return (self.evidence[image].outside_share(candidate.regions[image]) or 0.0) >= 0.5

    def _scores(self, edited: Iterable[tuple[Pixels, int]]) -> Sequence[float]:
        return self.score(list(edited))

    def _generator(self, candidate: Candidate) -> np.random.Generator:
        """Returns random numbers that depend on the candidate alone: a second run asks for the same scores."""
        name = f"{candidate.group}/{candidate.kind}/{min(candidate.regions)}/{candidate.screened}"
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])


def _adds(tested: Tested) -> bool:
    """Returns whether adding the candidate changes more than taking it away."""
    if tested.added is None or tested.removed is None:
        return tested.added is not None
    return tested.added.low > 0 and tested.added.mean >= tested.removed.mean / 2


def _own_controls(
    generator: np.random.Generator, given: Sequence[int], images: Sequence[int]
) -> Sequence[Sequence[int]]:
    """Returns other images of the group for each image, equally many and each for one image only."""
    rest = generator.permutation(sorted(set(given) - set(images)))
    controls = min(CONTROLS, len(rest) // len(images))
    if controls:
        return [[int(other) for other in some] for some in np.reshape(rest[: controls * len(images)], (-1, controls))]
    return [[int(other)] for other in np.roll(images, 1)]


def _sample(generator: np.random.Generator, given: Sequence[int], most: int) -> list[int]:
    """Returns at most so many, at random, in their order."""
    if len(given) <= most:
        return list(given)
    return [given[place] for place in sorted(generator.choice(len(given), most, replace=False))]


def cover(picture: Pixels, hidden: Mask, margin: int | None) -> Pixels:
    """Returns an image whose hidden pixels have the mean colour of a margin around them.

    Args:
        picture: The image.
        hidden: The pixels to cover, of shape (size, size).
        margin: Width of the margin in pixels; None for all pixels that are not hidden.
    """
    around = ~hidden
    if margin is not None and hidden.any():
        left, top, right, bottom = box_of(hidden)
        near = np.zeros_like(hidden)
        near[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin] = True
        around = around & near if (around & near).any() else around
    colour = picture[around].mean(0) if around.any() else np.full(3, 127.0)
    return np.where(hidden[..., None], np.rint(colour).astype(np.uint8), picture)


def with_colour(picture: Pixels, mean: NDArray[np.floating]) -> Pixels:
    """Returns an image that is shifted to a mean colour."""
    shifted = picture + (mean - picture.reshape(-1, 3).mean(0))
    return np.asarray(np.rint(np.clip(shifted, 0, 255)), np.uint8)


def with_equal_shift(generator: np.random.Generator, picture: Pixels, shifted: Pixels) -> Pixels:
    """Returns an image whose mean colour is as far from the image's as that of `shifted`, in a random direction."""
    before, after = (each.reshape(-1, 3).mean(0) for each in (picture, shifted))
    direction = generator.normal(size=3)
    return with_colour(picture, before + direction / np.linalg.norm(direction) * np.linalg.norm(after - before))


def move_elsewhere(generator: np.random.Generator, region: Cells, avoided: Mask | None) -> Cells:
    """Returns a region of the same shape elsewhere, at random, which overlaps the region and `avoided` least."""
    left, top, right, bottom = box_of(region)
    shape, grid = region[top:bottom, left:right], len(region)
    bad = region.astype(float)
    if avoided is not None:
        places = ((np.arange(grid) + 0.5) * len(avoided) / grid).astype(int)
        bad = bad + avoided[np.ix_(places, places)]
    best, least = region, np.inf
    for _ in range(_TRIES):
        row, column = generator.integers(grid - shape.shape[0] + 1), generator.integers(grid - shape.shape[1] + 1)
        moved = np.zeros_like(region)
        moved[row : row + shape.shape[0], column : column + shape.shape[1]] = shape
        cost = float(bad[moved].sum())
        if cost < least:
            best, least = moved, cost
        if not cost:
            break
    return best


def most_similar(picture: Pixels, region: Cells, wanted: NDArray[np.float32]) -> Cells:
    """Returns the place of a region's shape in an image whose appearance is most like the wanted one."""
    left, top, right, bottom = box_of(region)
    shape, grid, size = region[top:bottom, left:right], len(region), len(picture)
    best, least = region, np.inf
    for row in range(grid - shape.shape[0] + 1):
        for column in range(grid - shape.shape[1] + 1):
            moved = np.zeros_like(region)
            moved[row : row + shape.shape[0], column : column + shape.shape[1]] = shape
            distance = float(np.square(appearance(picture, to_pixels(moved, size)) - wanted).sum())
            if distance < least:
                best, least = moved, distance
    return best

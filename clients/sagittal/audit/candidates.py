"""The search for candidates: what recurs in the reasons for one group of images and not in those for others.

A candidate is a suspicion. Only the interventions of `sagittal.audit.interventions` make it a finding.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sagittal.audit.evidence import SAME, Cells, Evidence, Pixels, box_of, connected, groups_of, overlap, to_pixels
from sagittal.audit.statistics import binomial_tail

#: Fewest images of a group that a candidate must recur in: fewer cannot be told from chance.
MIN_IMAGES = 4

#: What recurs is a candidate if it would recur as often by chance with at most this probability.
MAX_CHANCE = 1e-3

#: Largest number of candidates of one kind in a group.
MOST_OF_A_KIND = 2

#: Radii within which appearances are alike: Hellinger distances of crops, Euclidean distances of mean colours, and of
#: the logarithms of their ratios.
CROP_RADII, COLOUR_RADII, TINT_RADII = (0.15, 0.25, 0.35), (0.04, 0.08, 0.12), (0.05, 0.1, 0.2, 0.3)

#: Largest number of crops (about) or images of a group, and of the others, whose appearances are compared.
MOST_COMPARED = 2_000

#: A region is at the border if it lies within this share of the side, and tiny if it has at most this share of the
#: area.
BORDER, TINY = 0.2, 0.08

#: Saliency of a region outside the object, as a share of that of its image, from which it is a candidate.
OWN_SHARE = 0.05

#: Share of a concept's saliency from which it fires outside the object.
OUTSIDE = 0.5

#: Kinds of candidates, with what they mean.
KINDS: Mapping[str, str] = {
    "place": "regions that recur at one place",
    "appearance": "regions that look alike",
    "outside": "regions outside the object",
    "border": "a tiny region at the border",
    "concept": "a concept that fires outside the object",
    "background": "the background as a whole",
    "colour": "the colour of the whole image",
}


#: Suspects of which an image may be one of the images: its region outside the object, its background and its colour.
SUSPECTED = 3

#: Kinds that are no regions.
WHOLE = ("background", "colour")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """Something that recurs in the reasons for a group."""

    group: str
    kinds: tuple[str, ...]
    """Names of `KINDS`, the first is how it was found first."""
    regions: Mapping[int, Cells]
    """Where it is, by the position of the image. All cells for a whole image."""
    chance: float | None = None
    """Probability that it would recur as often by chance; None if it was found otherwise."""
    fixed: Cells | None = None
    """Its place, if that is the same in all images; `regions` are the parts of it that are not on the object."""
    concept: str = ""
    """Name of the concept that fires there, if it was found by one."""
    screened: bool = False
    """Whether its images were chosen because their score falls without it, so that only adding can confirm it."""

    @property
    def kind(self) -> str:
        """How it was found first."""
        return self.kinds[0]


def find_candidates(evidence: Sequence[Evidence]) -> list[Candidate]:
    """Returns the candidates of all groups; what was found in several ways is one candidate."""
    regions = [each.regions for each in evidence]
    crops = Crops.of(evidence, regions)
    colours = np.array([_mean_colour(each.picture()) for each in evidence])
    found: list[Candidate] = []
    for group, members in groups_of(evidence).items():
        others = [index for index, each in enumerate(evidence) if each.group != group]
        of_group = [
            *_places(evidence, regions, group, members, others),
            *_appearances(crops, group, members, others),
            *_borders(evidence, regions, group, members),
            *_outside(evidence, regions, group, members),
            *_concepts(evidence, group, members),
        ]
        found += _merged(of_group)
        found += _backgrounds(evidence, group, members)
        found += _colours(evidence, colours, group, members, others)
    return found


def suspects(evidence: Sequence[Evidence]) -> list[Candidate]:
    """Returns what may matter in a few images of a group only, for `Laboratory.screen` to find these: regions first."""
    regions = [each.regions for each in evidence]
    groups = groups_of(evidence).items()
    everything = np.ones_like(evidence[0].saliency, bool)
    found = [each for group, members in groups for each in _outside(evidence, regions, group, members)]
    found += [each for group, members in groups for each in _backgrounds(evidence, group, members)]
    return found + [
        Candidate(group=group, kinds=("colour",), regions=dict.fromkeys(members, everything))
        for group, members in groups
    ]


def largest_alike(evidence: Sequence[Evidence], candidate: Candidate, images: Sequence[int]) -> list[int]:
    """Returns those of some images whose background or tint is alike, and unlike that of the candidate's other images.

    Args:
        evidence: The explained images.
        candidate: A background, or a colour.
        images: Positions of some of the candidate's images.
    """
    rest = [index for index in candidate.regions if index not in set(images)]
    features, radii = (_background, CROP_RADII) if candidate.kind == "background" else (_tint, TINT_RADII)
    mine, theirs = _some(np.array(images)), _some(np.array(rest, np.int64))
    looks = [np.array([features(evidence[index]) for index in each]) for each in (mine, theirs)]
    counts = len(mine), len(theirs)
    for chosen, _ in _clusters(looks[0], mine, looks[1], theirs, counts, radii):
        return [int(mine[place]) for place in chosen]
    return []


def _background(evidence: Evidence) -> NDArray[np.float32]:
    inside = evidence.inside
    picture = evidence.picture()
    return appearance(picture, np.ones(picture.shape[:2], bool) if inside is None or inside.all() else ~inside)


def _tint(evidence: Evidence) -> NDArray[np.float64]:
    """Returns the logarithms of red and blue over green, of shape (2,), which do not depend on brightness."""
    red, green, blue = evidence.picture().reshape(-1, 3).mean(0) + 1
    return np.log([red / green, blue / green])


def _places(
    evidence: Sequence[Evidence],
    regions: Sequence[Sequence[Cells]],
    group: str,
    members: Sequence[int],
    others: Sequence[int],
) -> Iterator[Candidate]:
    """Yields the places where more images of the group have salient cells than images of other groups."""
    salient = {index: np.any(regions[index], axis=0) for index in (*members, *others) if regions[index]}
    grid = evidence[members[0]].saliency.shape[0]
    counts, expected = np.zeros((grid, grid), int), np.zeros((grid, grid), int)
    for index in members:
        counts += salient.get(index, 0)
    for index in others:
        expected += salient.get(index, 0)
    rates = (expected + 1) / (len(others) + 2) if others else np.full((grid, grid), counts.mean() / len(members))
    chances = np.ones((grid, grid))
    for row, column in np.argwhere(counts >= MIN_IMAGES):
        chances[row, column] = binomial_tail(int(counts[row, column]), len(members), float(rates[row, column]))
    parts = connected(chances <= MAX_CHANCE)
    for part in sorted(parts, key=lambda each: float(chances[each].min()))[:MOST_OF_A_KIND]:
        having = [index for index in members if any((each & part).sum() >= part.sum() / 2 for each in regions[index])]
        if len(having) >= MIN_IMAGES:
            mean = np.mean([salient[index] for index in having], axis=0)
            core = max(connected(mean >= 0.5), key=lambda each: int((each & part).sum()), default=part)
            found = {index: evidence[index].off_object(core) for index in having}
            found = {index: region for index, region in found.items() if region.any()}
            if len(found) >= MIN_IMAGES:
                chance = float(chances[part].min())
                yield Candidate(group=group, kinds=("place",), regions=found, chance=chance, fixed=core)


#: Features of an appearance: bins of colours, and of directions of edges.
_COLOURS, _DIRECTIONS = 64, 8
FEATURES = _COLOURS + _DIRECTIONS


@dataclass(frozen=True, slots=True, eq=False)
class Crops:
    """The salient regions of all images, with their appearance."""

    images: NDArray[np.int64]
    """Position of the image of each crop."""
    regions: Sequence[Cells]
    features: NDArray[np.float32]
    """Square roots of histograms, of shape (crops, features): distances of rows are those of Hellinger."""

    @classmethod
    def of(cls, evidence: Sequence[Evidence], regions: Sequence[Sequence[Cells]]) -> "Crops":
        """Returns the crops of some images."""
        images, cells, features = [], [], []
        for index, each in enumerate(evidence):
            picture = each.picture() if regions[index] else None
            for region in regions[index]:
                if picture is None:
                    continue
                images.append(index)
                cells.append(region)
                features.append(appearance(picture, to_pixels(region, picture.shape[0])))
        return cls(np.array(images, np.int64), cells, np.array(features, np.float32).reshape(len(images), FEATURES))


def appearance(picture: Pixels, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Returns the appearance of a region: histograms of its colours and of the directions of its edges.

    The API gives no features of the model, so these are simple ones. They do not depend on place and size.
    """
    left, top, right, bottom = box_of(mask)
    crop = picture[top:bottom, left:right].astype(np.float32)
    shown = mask[top:bottom, left:right]
    levels = np.minimum(crop[shown] / 64, 3).astype(int)
    colours = np.bincount(levels @ np.array([16, 4, 1]), minlength=_COLOURS).astype(np.float32)
    down, across = np.gradient(crop.mean(2)) if min(crop.shape[:2]) > 1 else (np.zeros(shown.shape),) * 2
    strength = np.hypot(down, across)
    directions = ((np.arctan2(down, across) / np.pi + 1) * 4).astype(int) % 8
    edges = np.bincount(directions[shown], weights=strength[shown], minlength=_DIRECTIONS).astype(np.float32)
    parts = [0.7 * colours / max(colours.sum(), 1), 0.3 * edges / max(float(edges.sum()), 1e-6)]
    return np.asarray(np.sqrt(np.concatenate(parts) / 2), np.float32)


def _appearances(crops: Crops, group: str, members: Sequence[int], others: Sequence[int]) -> Iterator[Candidate]:
    """Yields the clusters of crops of the group that look like each other, and not like crops of other groups."""
    if not others:
        return
    (mine, my_images), (theirs, their_images) = (_compared(crops, each) for each in (members, others))
    counts = my_images, their_images
    for chosen, chance in _clusters(
        crops.features[mine], crops.images[mine], crops.features[theirs], crops.images[theirs], counts, CROP_RADII
    ):  # fmt: skip
        found: dict[int, Cells] = {}
        for place in chosen:
            found.setdefault(int(crops.images[mine[place]]), crops.regions[mine[place]])
        yield Candidate(group=group, kinds=("appearance",), regions=found, chance=chance)


def _compared(crops: Crops, images: Sequence[int]) -> tuple[NDArray[np.int64], int]:
    """Returns the crops of evenly spread images, about `MOST_COMPARED` at most, and the number of these images."""
    step = -(-int(np.isin(crops.images, images).sum()) // MOST_COMPARED) or 1
    some = images[::step]
    return np.flatnonzero(np.isin(crops.images, some)), len(some)


def _some(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns at most `MOST_COMPARED` of some places, evenly spread."""
    return places[:: -(-len(places) // MOST_COMPARED) or 1]


def _clusters(
    mine: NDArray[np.floating],
    my_images: NDArray[np.int64],
    theirs: NDArray[np.floating],
    their_images: NDArray[np.int64],
    counts: tuple[int, int],
    radii: Sequence[float],
) -> Iterator[tuple[NDArray[np.int64], float]]:
    """Yields positions of what is alike in one group, nearest to the centre first, with its probability by chance.

    Args:
        mine: Features of the group, of shape (n, features).
        my_images: The image of each of them.
        theirs: Features of others.
        their_images: The image of each of them.
        counts: Numbers of images of the group and of others.
        radii: Distances within which features are alike.
    """
    inner, outer = _distances(mine, mine), _distances(mine, theirs)
    free = np.ones(len(mine), bool)
    for _ in range(MOST_OF_A_KIND):
        best: tuple[float, int, float] | None = None
        for centre in np.flatnonzero(free):
            for radius in radii:
                alike = len(np.unique(my_images[free & (inner[centre] <= radius)]))
                if alike < MIN_IMAGES:
                    continue
                strange = len(np.unique(their_images[outer[centre] <= radius]))
                chance = binomial_tail(alike, counts[0], (strange + 1) / (counts[1] + 2))
                if best is None or chance < best[0]:
                    best = chance, int(centre), radius
        if best is None or best[0] > MAX_CHANCE:
            return
        chance, middle, radius = best
        chosen = np.flatnonzero(free & (inner[middle] <= radius))
        yield chosen[np.argsort(inner[middle][chosen], kind="stable")], chance
        free[chosen] = False


def _distances(one: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.float64]:
    if not len(one) or not len(other):
        return np.zeros((len(one), len(other)))
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1)[None] - 2 * one @ other.T
    return np.asarray(np.sqrt(np.maximum(squares, 0)))


def _borders(
    evidence: Sequence[Evidence], regions: Sequence[Sequence[Cells]], group: str, members: Sequence[int]
) -> Iterator[Candidate]:
    """Yields the tiny regions at the border that have most of the saliency of their images."""
    found = {}
    for index in members:
        saliency = evidence[index].saliency
        for region in regions[index][:1]:
            margin = max(1, round(BORDER * len(region)))
            inner = region[margin:-margin, margin:-margin]
            if not inner.any() and region.mean() <= TINY and saliency[region].sum() >= saliency.sum() / 2:
                found[index] = region
    if len(found) >= MIN_IMAGES:
        yield Candidate(group=group, kinds=("border",), regions=found)


def _outside(
    evidence: Sequence[Evidence], regions: Sequence[Sequence[Cells]], group: str, members: Sequence[int]
) -> Iterator[Candidate]:
    """Yields the regions with most saliency outside the object, one for each image whose object is known."""
    found: dict[int, Cells] = {}
    for index in members:
        each = evidence[index]
        for region in regions[index][:1] if each.read_inside is not None else ():
            if each.saliency[region].sum() >= OWN_SHARE * each.saliency.sum():
                found.setdefault(index, region)
    if len(found) >= MIN_IMAGES:
        yield Candidate(group=group, kinds=("outside",), regions=found)


def _concepts(evidence: Sequence[Evidence], group: str, members: Sequence[int]) -> Iterator[Candidate]:
    """Yields the concepts whose heatmaps are mostly outside the object, where they have most saliency there."""
    found: dict[str, dict[int, Cells]] = {}
    for index in members:
        for concept in evidence[index].concepts:
            alone = replace(evidence[index], saliency=concept.saliency)
            regions = alone.regions if (alone.outside_saliency or 0.0) >= OUTSIDE else ()
            for region in regions[:1]:
                found.setdefault(concept.name, {})[index] = region
    often = sorted((name for name in found if len(found[name]) >= MIN_IMAGES), key=lambda name: -len(found[name]))
    for name in often[:MOST_OF_A_KIND]:
        yield Candidate(group=group, kinds=("concept",), regions=found[name], concept=name)


def _backgrounds(evidence: Sequence[Evidence], group: str, members: Sequence[int]) -> Iterator[Candidate]:
    """Yields the background of a group whose objects are known; whether it matters is for the test."""
    grid = evidence[members[0]].saliency.shape[0]
    known = [index for index in members if evidence[index].read_inside is not None]
    if len(known) >= MIN_IMAGES:
        everything = np.ones((grid, grid), bool)
        yield Candidate(group=group, kinds=("background",), regions=dict.fromkeys(known, everything))


def _colours(
    evidence: Sequence[Evidence],
    colours: NDArray[np.float64],
    group: str,
    members: Sequence[int],
    others: Sequence[int],
) -> Iterator[Candidate]:
    """Yields the mean colours that recur in the group and not in others."""
    if not others:
        return
    mine, theirs = _some(np.array(members)), _some(np.array(others))
    everything = np.ones_like(evidence[members[0]].saliency, bool)
    counts = len(mine), len(theirs)
    for chosen, chance in _clusters(colours[mine], mine, colours[theirs], theirs, counts, COLOUR_RADII):
        regions = {int(mine[place]): everything for place in chosen}
        yield Candidate(group=group, kinds=("colour",), regions=regions, chance=chance)


def _mean_colour(picture: Pixels) -> NDArray[np.float64]:
    return np.asarray(picture.reshape(-1, 3).mean(0) / 255)


def _merged(found: Sequence[Candidate]) -> list[Candidate]:
    """Returns candidates without repetitions: those in the same images at the same places are one."""
    kept: list[Candidate] = []
    for each in found:
        for place, other in enumerate(kept):
            if _same(each, other):
                kinds = tuple(dict.fromkeys((*other.kinds, *each.kinds)))
                kept[place] = replace(other, kinds=kinds, concept=other.concept or each.concept)
                break
        else:
            kept.append(each)
    return kept


def _same(one: Candidate, other: Candidate) -> bool:
    common = one.regions.keys() & other.regions.keys()
    if len(common) < min(len(one.regions), len(other.regions)) / 2:
        return False
    return float(np.mean([overlap(one.regions[index], other.regions[index]) for index in common])) >= SAME

"""The global view of each x-feature: exciting images, heatmaps, contribution, and whether it mixes two concepts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sagittal.engine.requests import Inspect, ModelView, Subject
from sagittal.explain.attribution.layers import Unsupported
from sagittal.explain.concepts.features import ImageSet, UnfitImages
from sagittal.explain.concepts.fitted import FittedConcepts
from sagittal.explain.concepts.heatmaps import excitation
from sagittal.explain.concepts.training import Examples, Share
from sagittal.explain.events import Progress, Warning
from sagittal.explain.problem import derive_seed
from sagittal.explain.steps import Steps, ask

EXCITING = 0.3
"""Share of the images that count as exciting an x-feature, those with the highest values."""

FEWEST = 8
"""Minimum number of exciting images; with fewer, mixtures are not detected."""

SMALLEST_GROUP = 0.15
"""Minimum share of the exciting images in the smaller group."""

DEEPEST_DIRECTIONS = 5
"""Number of directions of the feature space that are considered, the strongest among the exciting images."""

DEPTH = 0.4
"""Minimum mean silhouette of a cut into two groups, from -1 to 1."""

DRAWS = 50
"""Number of sets of normally distributed points that the cut is compared with; it must be deeper than all of them."""

ROUNDS = 20
"""Maximum number of rounds of 2-means."""


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """Whether an x-feature mixes unrelated concepts ("A or B"): groups among its exciting images.

    Equation (1) does not exclude them: two natural features that never occur together can share an x-feature that is
    orthogonal to the others and faithful. Their sign is that the exciting images form groups in the model's feature
    space. Any points can be cut in two. The cut is therefore compared with cuts of points from one normal distribution
    of the same spread in each direction: it counts only if it is deeper than these, and deep enough.
    """

    exciting: Tensor
    """Int64: indices of the exciting images, most exciting first."""
    groups: Tensor
    """Int64 of the same length: 0 or 1; all 0 if there is one group."""
    depth: float
    """Mean silhouette of the best cut."""
    mixed: bool
    """Whether there are two groups."""


def find_mixture(values: Tensor, features: Tensor, *, seed: int = 0) -> Mixture:
    """Searches for groups among the images that excite an x-feature.

    Args:
        values: Values of the x-feature, of shape (images,).
        features: Features of the images, of shape (images, features).
        seed: Seed of the comparison.
    """
    count = min(len(values), max(FEWEST, round(EXCITING * len(values))))
    exciting = values.argsort(descending=True)[:count]
    single = Mixture(exciting, torch.zeros(count, dtype=torch.int64), 0.0, mixed=False)
    if count < FEWEST:
        return single
    points = _strongest_directions(features[exciting].float().cpu())
    groups, depth = _cut(points)
    smaller = min(float(groups.float().mean()), 1 - float(groups.float().mean()))
    if depth < DEPTH or smaller < SMALLEST_GROUP or depth <= _chance(points, seed):
        return Mixture(exciting, single.groups, depth, mixed=False)
    if groups[0] == 1:
        groups = 1 - groups
    return Mixture(exciting, groups, depth, mixed=True)


def agreement(features: Tensor) -> float:
    """Returns the similarity of images (n, features): the mean cosine between centred features."""
    if len(features) < 2:
        return 1.0
    directions = torch.nn.functional.normalize(features, dim=1)
    cosines = directions @ directions.T
    count = len(features)
    return float((cosines.sum() - torch.diagonal(cosines).sum()) / (count * (count - 1)))


def _strongest_directions(points: Tensor) -> Tensor:
    """Returns points (n, features) in their strongest principal directions, (n, up to DEEPEST_DIRECTIONS)."""
    centred = points - points.mean(0)
    left, spread, _ = torch.linalg.svd(centred, full_matrices=False)
    kept = min(DEEPEST_DIRECTIONS, max(1, len(points) // 4), len(spread))
    strongest: Tensor = left[:, :kept] * spread[:kept]
    return strongest


def _cut(points: Tensor) -> tuple[Tensor, float]:
    """Returns the best of the 2-means cuts that start along each direction, as groups (n,), and its mean silhouette."""
    best, depth = torch.zeros(len(points), dtype=torch.int64), -1.0
    for direction in range(points.shape[1]):
        groups = (points[:, direction] > points[:, direction].median()).long()
        groups = _two_means(points, groups)
        found = _silhouette(points, groups)
        if found > depth:
            best, depth = groups, found
    return best, depth


def _two_means(points: Tensor, groups: Tensor) -> Tensor:
    for _ in range(ROUNDS):
        if not 0 < int(groups.sum()) < len(groups):
            return groups
        centres = torch.stack([points[groups == group].mean(0) for group in (0, 1)])
        nearer = torch.cdist(points, centres).argmin(1)
        if torch.equal(nearer, groups):
            return groups
        groups = nearer
    return groups


def _silhouette(points: Tensor, groups: Tensor) -> float:
    """Returns the mean silhouette: how much nearer points are to their own group than to the other."""
    if min(int(groups.sum()), int((1 - groups).sum())) < 2:
        return -1.0
    distances = torch.cdist(points, points)
    own = groups.unsqueeze(0) == groups.unsqueeze(1)
    inside = (distances * own).sum(1) / (own.sum(1) - 1).clamp(min=1)
    outside = (distances * ~own).sum(1) / (~own).sum(1)
    return float(((outside - inside) / torch.maximum(inside, outside).clamp(min=1e-12)).mean())


def _chance(points: Tensor, seed: int) -> float:
    """Returns the deepest cut of normally distributed points with the same spread."""
    generator = torch.Generator().manual_seed(seed)
    spread = points.std(0)
    return max(_cut(torch.randn(points.shape, generator=generator) * spread)[1] for _ in range(DRAWS))


SHOWN = 6
"""Number of images shown of each x-feature, in each of its groups if it is mixed."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shown:
    """An image that excites an x-feature."""

    index: int
    """Its index in the set."""
    value: float
    group: int
    """The group of the image; 0 unless the x-feature is mixed."""
    image: Tensor
    """The model's input."""
    heatmap: Tensor | None
    """Heatmap of the x-feature; None if excitation backpropagation is not defined."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class XFeature:
    """The global view of an x-feature."""

    mean_contribution: float
    """Contribution to the output of the target that it affects most, over all images."""
    contribution_spread: float
    """Standard deviation of the contribution."""
    target: int
    """That target, by its index among the targets."""
    mean: float
    spread: float
    """Standard deviation of its value over all images."""
    agreement: float
    """Similarity of its exciting images in feature space, -1 to 1."""
    mixed: bool
    shown: Sequence[Shown]


def view_x_features(
    images: ImageSet, fitted: FittedConcepts, data: Examples, kept: Tensor, *, seed: int, share: Share, subject: Subject
) -> Steps[tuple[list[XFeature], list[Warning]]]:
    """Returns the global view of each x-feature, and warnings.

    Args:
        images: The set.
        fitted: The explanation network.
        data: Features and outputs of the images.
        kept: Index of each of them in the set.
        seed: Seed of the comparison that detects mixed x-features.
        share: The range of the job's progress that this is.
        subject: Any subject, for the requests.
    """
    values = fitted.srae.encode(data.features)
    x_features: list[XFeature] = []
    warnings: list[Warning] = []
    missing: list[str] = []
    for index in range(values.shape[1]):
        mixture = find_mixture(values[:, index], data.features, seed=derive_seed(seed, "mix", index))
        shown: list[Shown] = []
        for place, group in _chosen(mixture.exciting, mixture.groups, mixed=mixture.mixed):
            position, value = int(kept[place]), float(values[place, index])
            one = Shown(index=position, value=value, group=group, image=subject.image, heatmap=None)
            shown.append((yield from _show(images, fitted, index, one, subject, missing)))
        x_features.append(_describe(fitted, index, values, data, mixture, shown))
        if mixture.mixed:
            warnings.append(_mixed_warning(index, mixture.groups))
        yield Progress(share.at((index + 1) / values.shape[1]), phase="examples")
    if missing:
        warnings.append(Warning("CONCEPT_HEATMAPS_MISSING", f"The images are shown without heatmaps: {missing[0]}"))
    return x_features, warnings


def _describe(
    fitted: FittedConcepts, index: int, values: Tensor, data: Examples, mixture: Mixture, shown: Sequence[Shown]
) -> XFeature:
    weights = fitted.srae.weights()[index]
    target = int(weights.abs().argmax())
    parts = values[:, index] * weights[target]
    centred = data.features - data.features.mean(0)
    return XFeature(
        mean_contribution=float(parts.mean()),
        contribution_spread=float(parts.std()),
        target=target,
        mean=float(values[:, index].mean()),
        spread=float(values[:, index].std()),
        agreement=agreement(centred[mixture.exciting]),
        mixed=mixture.mixed,
        shown=shown,
    )


def _chosen(exciting: Tensor, groups: Tensor, *, mixed: bool) -> Sequence[tuple[int, int]]:
    """Returns the most exciting images of each group, with the group."""
    pairs = list(zip(exciting.tolist(), groups.tolist(), strict=True))
    return [pair for group in range(1 + mixed) for pair in [p for p in pairs if p[1] == group][:SHOWN]]


def _show(
    images: ImageSet, fitted: FittedConcepts, index: int, shown: Shown, subject: Subject, missing: list[str]
) -> Steps[Shown]:
    """Returns an example with its image and the heatmap of the x-feature."""

    def call(view: ModelView) -> Shown:
        image = images.read(shown.index).image
        if image is None:
            raise UnfitImages(f"image {shown.index} can no longer be read: send the images again")
        seen = replace(view, subject=replace(view.subject, image=image))
        try:
            return replace(shown, image=image, heatmap=excitation(seen, fitted, index))
        except Unsupported as error:
            missing.append(str(error))
            return replace(shown, image=image)

    return (yield from ask(Inspect(subject=subject, call=call, evaluations=3, gradient_evaluations=1)))


def _mixed_warning(index: int, groups: Tensor) -> Warning:
    first, second = int((groups == 0).sum()), int((groups == 1).sum())
    return Warning(
        "CONCEPT_MIXED",
        f"x{index + 1} may mix two unrelated concepts: the images that excite it most form two groups ({first} and "
        f"{second} images), which are shown apart. Interpret it as one or the other.",
    )

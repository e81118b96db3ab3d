"""The global view of each x-feature: what excites it, where it looks there, what it adds, whether it is one thing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from sagittal.explain.concepts.features import ImageSet, UnfitImages
from sagittal.explain.concepts.fitted import FittedConcepts
from sagittal.explain.concepts.heatmaps import excitation
from sagittal.explain.concepts.mixture import Mixture, agreement, find_mixture
from sagittal.explain.concepts.training import Examples, Share
from sagittal.explain.events import Notice, Progress
from sagittal.explain.layers import Unsupported
from sagittal.explain.problem import derive_seed
from sagittal.explain.requests import Inspect, ModelView, Steps, Subject

SHOWN = 6
"""Images shown of each x-feature, in each of its groups where it is mixed."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shown:
    """An image that excites an x-feature."""

    index: int
    """Its place in the set."""
    value: float
    group: int
    """Which group of images it belongs to; 0 unless the x-feature is mixed."""
    image: Tensor
    """As the model takes it."""
    heatmap: Tensor | None
    """Where the x-feature looks; None where excitation backpropagation cannot tell."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class XFeature:
    """The global view of an x-feature."""

    mean_contribution: float
    """To the output of the target that it moves most, over all images."""
    contribution_spread: float
    """Standard deviation of it."""
    target: int
    """That target, by its place among the targets."""
    mean: float
    spread: float
    """Of its value over all images."""
    agreement: float
    """How alike its exciting images are in feature space, -1 to 1."""
    mixed: bool
    shown: Sequence[Shown]


def view_x_features(
    images: ImageSet, fitted: FittedConcepts, data: Examples, kept: Tensor, *, seed: int, share: Share, subject: Subject
) -> Steps:
    """Returns the global view of each x-feature, and notices.

    Args:
        images: The set.
        fitted: The explanation network.
        data: What the layer and the model say of the images.
        kept: The place of each of them in the set.
        seed: Of what x-features are compared with to find out mixed ones.
        share: The part of the job's progress that this is.
        subject: Any, for the requests.
    """
    values = fitted.srae.encode(data.features)
    x_features: list[XFeature] = []
    notices: list[Notice] = []
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
            notices.append(_mixed_notice(index, mixture.groups))
        yield Progress(share.at((index + 1) / values.shape[1]), phase="examples")
    if missing:
        notices.append(Notice("CONCEPT_HEATMAPS_MISSING", f"The images are shown without heatmaps: {missing[0]}"))
    return x_features, notices


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
) -> Steps:
    """Returns an example with its image and where the x-feature looks in it."""

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

    return (yield Inspect(subject=subject, call=call, evaluations=3, gradient_evaluations=1))


def _mixed_notice(index: int, groups: Tensor) -> Notice:
    first, second = int((groups == 0).sum()), int((groups == 1).sum())
    return Notice(
        "CONCEPT_MIXED",
        f"x{index + 1} may stand for two unrelated things: the images that excite it most fall into two groups "
        f"({first} and {second} images), which are shown apart. Read it as one or the other.",
    )

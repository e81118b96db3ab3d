"""The whole fit: features, training, what it is worth, and the global view of each x-feature."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sagittal.explain.checkpoints import State
from sagittal.explain.concepts.features import (
    Extracted,
    FeatureCache,
    ImageSet,
    NoCache,
    Read,
    extract,
    find_layer,
)
from sagittal.explain.concepts.fitted import FittedConcepts
from sagittal.explain.concepts.heatmaps import excitation
from sagittal.explain.concepts.mixture import agreement, find_mixture
from sagittal.explain.concepts.quality import Quality, measure, stability
from sagittal.explain.concepts.settings import FitSettings
from sagittal.explain.concepts.srae import SRAE, TINY
from sagittal.explain.concepts.training import Examples, Share, train
from sagittal.explain.layers import Unsupported
from sagittal.explain.parameters import InvalidParameter
from sagittal.explain.problem import derive_seed
from sagittal.explain.seam import Inspect, ModelView, Notice, Progress, Steps, Subject

HELD_OUT = 0.2
"""Share of the images that quality is measured on, and the fit never sees."""

SHOWN = 6
"""Images shown of each x-feature, in each of its groups where it is mixed."""

EXTRACTION, TRAINING = 0.5, 0.9
"""Shares of the progress at which features are extracted, and all fits have ended."""


class UnfitImages(Exception):
    """The images do not allow a fit; the message says what is wrong and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FitQuestion:
    """What is to be fitted."""

    images: ImageSet
    targets: Sequence[int]
    """Classes whose outputs are predicted."""
    settings: FitSettings = field(default_factory=FitSettings)
    layer: str = ""
    """Empty for the last layer whose output is flat and not yet the model's."""
    size: int = 224
    """Side of the model's input in pixels."""
    rows: int = 16
    """Images and crops that the model is run on at once."""
    cache: FeatureCache = field(default_factory=NoCache)
    restored: State = field(default_factory=dict)
    """State of the last checkpoint of an earlier attempt."""


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConceptFit:
    """A fit with all that is said of it."""

    fitted: FittedConcepts
    x_features: Sequence[XFeature]
    quality: Quality
    stability: float | None
    """Mean absolute correlation of its x-features with those of fits from other seeds; None with one seed."""
    skipped: Sequence[Read]
    """Images that could not be read."""
    images: int
    """Images that were fitted and held out."""
    notices: Sequence[Notice]


def fit_concepts(question: FitQuestion) -> Steps:
    """Yields requests, progress and checkpoints; returns a ConceptFit.

    Raises:
        UnfitImages: there are too few images, or the model says the same of all of them.
        InvalidParameter: there is no such layer.
    """
    settings, subject = question.settings, _no_image(question.size)
    layer: str = yield from _layer(question.layer, subject)
    extracted: Extracted = yield from extract(
        question.images,
        layer,
        views=settings.views,
        seed=settings.seed,
        rows=question.rows,
        cache=question.cache,
        subject=subject,
        until=EXTRACTION,
    )
    data = _of_targets(extracted, question.targets)
    _check(data, extracted, settings, len(question.images))
    training, held_out = _split(len(extracted.kept), settings.seed)
    fits: list[SRAE] = []
    states = dict(question.restored)
    for number in range(settings.seeds):
        fit: SRAE = yield from _train(question, data, training, number, states)
        fits.append(fit)
    srae = fits[0]
    originals = _originals(data)
    quality = measure(srae, originals.rows(held_out))
    values = [fit.encode(originals.features) for fit in fits]
    fitted = FittedConcepts(
        layer=layer,
        targets=tuple(question.targets),
        srae=srae,
        error=quality.faithfulness_error,
        spread=tuple(values[0].std(0).tolist()),
    )
    notices = _notices(quality, len(training) * (1 + settings.views), data.features.shape[2])
    x_features, found = yield from _global_view(question, fitted, originals, extracted.kept, values[0], subject)
    return ConceptFit(
        fitted=fitted,
        x_features=x_features,
        quality=quality,
        stability=stability(values),
        skipped=_skipped(question.images, extracted.kept),
        images=len(extracted.kept),
        notices=[*notices, *found],
    )


def _layer(name: str, subject: Subject) -> Steps:
    """Returns the layer to read. Its errors are raised here and not in the engine: steps around these can name it."""

    def call(view: ModelView) -> str | InvalidParameter:
        try:
            return find_layer(view, name)
        except InvalidParameter as error:
            return error

    found = yield Inspect(subject=subject, call=call, evaluations=1)
    if isinstance(found, InvalidParameter):
        raise found
    return found


def _no_image(size: int) -> Subject:
    """Returns the subject of requests that bring images of their own."""
    blank = torch.zeros(3, size, size)
    return Subject(blank, blank, None)


def _train(question: FitQuestion, data: "_Views", training: Tensor, number: int, states: dict[str, Tensor]) -> Steps:
    settings = question.settings
    each = (TRAINING - EXTRACTION) / settings.seeds
    share = Share(EXTRACTION + number * each, EXTRACTION + (number + 1) * each)
    part = "fit" if number == 0 else f"refit-{number}"
    seed = derive_seed(settings.seed, "fit", number)
    rows = Examples(data.features[training].flatten(0, 1), data.outputs[training].flatten(0, 1))
    return (yield from train(rows, settings, seed, _no_image(question.size), states=states, share=share, part=part))


@dataclass(frozen=True, slots=True, eq=False)
class _Views:
    """Features (images, 1 + views, features) and outputs (images, 1 + views, targets)."""

    features: Tensor
    outputs: Tensor


def _of_targets(extracted: Extracted, targets: Sequence[int]) -> _Views:
    if not len(extracted.kept):
        return _Views(extracted.features, extracted.outputs)
    classes = extracted.outputs.shape[2]
    for target in targets:
        if not 0 <= target < classes:
            raise InvalidParameter("targets", f"{target} is no class of the model; give 0 to {classes - 1}")
    return _Views(extracted.features, extracted.outputs[..., list(targets)])


def _originals(data: _Views) -> Examples:
    """Returns the images alone, without their crops."""
    return Examples(data.features[:, 0], data.outputs[:, 0])


def _check(data: _Views, extracted: Extracted, settings: FitSettings, sent: int) -> None:
    count = len(extracted.kept)
    needed = settings.concepts + max(2, round(HELD_OUT * (settings.concepts + 2)))
    if count < needed:
        unreadable = f" ({sent - count} of {sent} could not be read)" if sent > count else ""
        raise UnfitImages(
            f"there are {count} images{unreadable}; {settings.concepts} x-features need at least {needed}, and "
            "hundreds make a good fit: send more images, or ask for fewer x-features"
        )
    features, outputs = data.features.flatten(0, 1), data.outputs.flatten(0, 1)
    if float(features.std(0).max()) < TINY:
        raise UnfitImages(
            "the layer says the same of every image, so that there is nothing to explain: send images that differ, or "
            "choose a layer nearer to the input"
        )
    if float(outputs.std(0).min()) < TINY:
        raise UnfitImages("the model gives a target the same score on every image: send images that differ in it")


def _split(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns the images to fit and those that are held out, two at least."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(seed, "held-out")))
    held_out = max(2, round(HELD_OUT * count))
    return order[held_out:], order[:held_out]


def _skipped(images: ImageSet, kept: Tensor) -> Sequence[Read]:
    sound = set(kept.tolist())
    return [images.read(index) for index in range(len(images)) if index not in sound]


def _notices(quality: Quality, rows: int, width: int) -> Sequence[Notice]:
    notices = []
    if quality.faithfulness_correlation < 0.9:
        few = f" {rows} images and crops are fewer than the layer's {width} features." if rows < width else ""
        notices.append(
            Notice(
                "CONCEPTS_UNFAITHFUL",
                f"On held-out images the explanation network's output has a correlation of only "
                f"{quality.faithfulness_correlation:.2f} with the model's.{few} Send more images, or ask for more "
                "crops of each (views).",
            )
        )
    return notices


def _global_view(
    question: FitQuestion, fitted: FittedConcepts, data: Examples, kept: Tensor, values: Tensor, subject: Subject
) -> Steps:
    """Returns the global view of each x-feature, and notices."""
    weights = fitted.srae.weights()
    centred = data.features - data.features.mean(0)
    x_features: list[XFeature] = []
    notices: list[Notice] = []
    missing: list[str] = []
    for index in range(values.shape[1]):
        mixture = find_mixture(values[:, index], data.features, seed=derive_seed(question.settings.seed, "mix", index))
        shown: list[Shown] = []
        for place, group in _chosen(mixture.exciting, mixture.groups, mixed=mixture.mixed):
            position = int(kept[place])
            value = float(values[place, index])
            one = Shown(index=position, value=value, group=group, image=subject.image, heatmap=None)
            shown.append((yield from _show(question, fitted, index, one, subject, missing)))
        target = int(weights[index].abs().argmax())
        parts = values[:, index] * weights[index, target]
        x_features.append(
            XFeature(
                mean_contribution=float(parts.mean()),
                contribution_spread=float(parts.std()),
                target=target,
                mean=float(values[:, index].mean()),
                spread=float(values[:, index].std()),
                agreement=agreement(centred[mixture.exciting]),
                mixed=mixture.mixed,
                shown=shown,
            )
        )
        if mixture.mixed:
            notices.append(_mixed_notice(index, mixture.groups))
        yield Progress(TRAINING + (1 - TRAINING) * (index + 1) / values.shape[1], phase="examples")
    if missing:
        notices.append(Notice("CONCEPT_HEATMAPS_MISSING", f"The images are shown without heatmaps: {missing[0]}"))
    return x_features, notices


def _chosen(exciting: Tensor, groups: Tensor, *, mixed: bool) -> Sequence[tuple[int, int]]:
    """Returns the most exciting images of each group, with the group."""
    pairs = list(zip(exciting.tolist(), groups.tolist(), strict=True))
    return [pair for group in range(1 + mixed) for pair in [p for p in pairs if p[1] == group][:SHOWN]]


def _show(
    question: FitQuestion, fitted: FittedConcepts, index: int, shown: Shown, subject: Subject, missing: list[str]
) -> Steps:
    """Returns an example with its image and where the x-feature looks in it."""

    def call(view: ModelView) -> Shown:
        image = question.images.read(shown.index).image
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
        f"x-feature {index} may stand for two unrelated things: the images that excite it most fall into two groups "
        f"({first} and {second} images), which are shown apart. Read it as one or the other.",
    )

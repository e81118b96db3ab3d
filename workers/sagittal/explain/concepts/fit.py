"""The complete fit: features, training, quality, and the global view of each x-feature."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sagittal.engine.requests import Inspect, ModelView, Subject
from sagittal.explain.concepts.components import ROWS, Components
from sagittal.explain.concepts.features import (
    Extracted,
    FeatureCache,
    ImageSet,
    NoCache,
    Read,
    UnfitImages,
    extract,
    find_layer,
)
from sagittal.explain.concepts.fitted import FittedConcepts
from sagittal.explain.concepts.quality import Locality, Quality, measure, measure_locality, stability
from sagittal.explain.concepts.srae import SRAE, TINY
from sagittal.explain.concepts.training import Examples, Fit, FitSettings, Share, Training, train
from sagittal.explain.concepts.view import XFeature, view_x_features
from sagittal.explain.events import Warning
from sagittal.explain.parameters import InvalidParameter
from sagittal.explain.problem import State, derive_seed, within
from sagittal.explain.steps import Steps, ask

HELD_OUT = 0.2
"""Share of the images that are held out of the fit; quality is measured on them."""

TRAININGS: Mapping[str, Callable[[Examples, FitSettings, int, Mapping[str, Tensor]], Training]] = {
    "srae": Fit,
    "components": Components,
}
"""The fits, by `FitSettings.method`: each is made from data, settings, a seed and the state of an earlier attempt."""

POSITIONS = 16
"""Largest number of positions of an image or crop that independent components are found on."""

EXTRACTION, TRAINING, VIEWED = 0.5, 0.9, 0.97
"""Progress of the job after feature extraction, after all fits, and after the search for examples."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FitQuestion:
    """The request for a fit."""

    images: ImageSet
    targets: Sequence[int]
    """Classes whose outputs are predicted."""
    settings: FitSettings = field(default_factory=FitSettings)
    layer: str = ""
    """Empty for the last layer before the model's output with flat output, for components with a spatial output."""
    size: int = 224
    """Side of the model's input in pixels."""
    rows: int = 16
    """Images and crops per forward pass."""
    cache: FeatureCache = field(default_factory=NoCache)
    restored: State = field(default_factory=dict)
    """State of the last checkpoint of an earlier attempt."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConceptFit:
    """A fit with its quality and its global view."""

    fitted: FittedConcepts
    x_features: Sequence[XFeature]
    quality: Quality
    stability: float | None
    """Mean absolute correlation of its x-features with those of fits from other seeds; None with one seed."""
    locality: Locality
    """Distribution of x-features over annotated parts, on held-out images."""
    skipped: Sequence[Read]
    """Unreadable images."""
    images: int
    """Numbers of fitted and held-out images."""
    warnings: Sequence[Warning]


def fit_concepts(question: FitQuestion) -> Steps[ConceptFit]:
    """Yields requests, progress and checkpoints; returns a ConceptFit.

    Raises:
        UnfitImages: there are too few images, or the model's features or outputs are the same for all of them.
        InvalidParameter: there is no such layer.
    """
    settings, subject = question.settings, _no_image(question.size)
    spatial = settings.method == "components"
    layer: str = yield from _layer(question.layer, subject, spatial=spatial)
    extracted: Extracted = yield from extract(
        question.images,
        layer,
        views=settings.views,
        positions=_positions(len(question.images) * (1 + settings.views)) if spatial else 0,
        seed=settings.seed,
        rows=question.rows,
        cache=question.cache,
        subject=subject,
        until=EXTRACTION,
    )
    data = _of_targets(extracted, question.targets)
    _check(data, extracted, settings, question.images)
    training, held_out = _split(len(extracted.kept), settings.seed)
    fits: list[SRAE] = []
    states = dict(question.restored)
    for number in range(settings.seeds):
        fit: SRAE = yield from _train(question, data, training, number, states)
        fits.append(fit)
    seen = _Seen(data=data, kept=extracted.kept, training=training, held_out=held_out)
    return (yield from _judge(question, layer, fits, seen, subject))


def _judge(
    question: FitQuestion, layer: str, fits: Sequence[SRAE], seen: "_Seen", subject: Subject
) -> Steps[ConceptFit]:
    """Returns the ConceptFit of fitted networks, of which the first is kept."""
    images, settings = question.images, question.settings
    originals = _originals(seen.data)
    quality = measure(fits[0], originals.rows(seen.held_out))
    values = [fit.encode(originals.features) for fit in fits]
    fitted = FittedConcepts(
        layer=layer,
        targets=tuple(question.targets),
        srae=fits[0],
        error=quality.faithfulness_error,
        spread=tuple(values[0].std(0).tolist()),
    )
    x_features, found = yield from view_x_features(
        images, fitted, originals, seen.kept, seed=settings.seed, share=Share(TRAINING, VIEWED), subject=subject
    )
    apart = seen.kept[seen.held_out].tolist()
    local, unmeasured = yield from measure_locality(images, apart, fitted, share=Share(VIEWED, 1), subject=subject)
    rows, width = len(seen.training) * (1 + settings.views), seen.data.features.shape[2]
    return ConceptFit(
        fitted=fitted,
        x_features=x_features,
        quality=quality,
        stability=stability(values),
        locality=local,
        skipped=_skipped(images, seen.kept),
        images=len(seen.kept),
        warnings=[*_warnings(quality, rows, width), *found, *unmeasured],
    )


def _layer(name: str, subject: Subject, *, spatial: bool) -> Steps[str]:
    """Returns the layer to read. Raises errors here and not in the engine, so that callers can name the parameter."""

    def call(view: ModelView) -> str | InvalidParameter:
        try:
            return find_layer(view, name, spatial=spatial)
        except InvalidParameter as error:
            return error

    found = yield from ask(Inspect(subject=subject, call=call, evaluations=1))
    if isinstance(found, InvalidParameter):
        raise found
    return found


def _positions(rows: int) -> int:
    """Returns the number of positions of each image or crop: together not many more than are used."""
    return min(POSITIONS, max(1, ROWS // max(rows, 1)))


def _no_image(size: int) -> Subject:
    """Returns the subject of requests that carry images of their own."""
    blank = torch.zeros(3, size, size)
    return Subject(blank, blank, None)


def _train(
    question: FitQuestion, data: "_Views", training: Tensor, number: int, states: dict[str, Tensor]
) -> Steps[SRAE]:
    settings = question.settings
    each = (TRAINING - EXTRACTION) / settings.seeds
    share = Share(EXTRACTION + number * each, EXTRACTION + (number + 1) * each)
    part = "fit" if number == 0 else f"refit-{number}"
    seed = derive_seed(settings.seed, "fit", number)
    rows = Examples(
        data.features[training].flatten(0, 1),
        data.outputs[training].flatten(0, 1),
        data.positions[training].flatten(0, 2),
    )
    fit = TRAININGS[settings.method](rows, settings, seed, within(states, part))
    return (yield from train(fit, settings, _no_image(question.size), states=states, share=share, part=part))


@dataclass(frozen=True, slots=True, eq=False)
class _Views:
    """Features (images, 1 + views, features), outputs (images, 1 + views, targets), and positions as extracted."""

    features: Tensor
    outputs: Tensor
    positions: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Seen:
    """Inputs of the model, and which of them were fitted."""

    data: _Views
    kept: Tensor
    """Index of each in the set."""
    training: Tensor
    held_out: Tensor


def _of_targets(extracted: Extracted, targets: Sequence[int]) -> _Views:
    if not len(extracted.kept):
        return _Views(extracted.features, extracted.outputs, extracted.positions)
    classes = extracted.outputs.shape[2]
    for target in targets:
        if not 0 <= target < classes:
            raise InvalidParameter("targets", f"{target} is no class of the model; give 0 to {classes - 1}")
    return _Views(extracted.features, extracted.outputs[..., list(targets)], extracted.positions)


def _originals(data: _Views) -> Examples:
    """Returns the images without their crops."""
    return Examples(data.features[:, 0], data.outputs[:, 0])


def _check(data: _Views, extracted: Extracted, settings: FitSettings, images: ImageSet) -> None:
    count = len(extracted.kept)
    needed = settings.concepts + max(2, round(HELD_OUT * (settings.concepts + 2)))
    if count < needed:
        unreadable = ""
        if count < len(images):
            first = _skipped(images, extracted.kept)[0]
            unreadable = (
                f" ({len(images) - count} of {len(images)} could not be read; image {first.index}: {first.fault})"
            )
        raise UnfitImages(
            f"there are {count} images{unreadable}; {settings.concepts} x-features need at least {needed}, and "
            "hundreds make a good fit: send more images, or ask for fewer x-features"
        )
    features, outputs = data.features.flatten(0, 1), data.outputs.flatten(0, 1)
    if float(features.std(0).max()) < TINY:
        raise UnfitImages(
            "the layer's features are the same for every image, so there is nothing to explain: send images that "
            "differ, or choose a layer nearer to the input"
        )
    if float(outputs.std(0).min()) < TINY:
        raise UnfitImages("the model gives a target the same score on every image: send images that differ in it")


def _split(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns the images to fit and those to hold out, at least two."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(seed, "held-out")))
    held_out = max(2, round(HELD_OUT * count))
    return order[held_out:], order[:held_out]


def _skipped(images: ImageSet, kept: Tensor) -> Sequence[Read]:
    sound = set(kept.tolist())
    return [images.read(index) for index in range(len(images)) if index not in sound]


def _warnings(quality: Quality, rows: int, width: int) -> Sequence[Warning]:
    warnings = []
    if quality.faithfulness_correlation < 0.9:
        few = f" {rows} images and crops are fewer than the layer's {width} features." if rows < width else ""
        warnings.append(
            Warning(
                "CONCEPTS_UNFAITHFUL",
                f"On held-out images the explanation network's output has a correlation of only "
                f"{quality.faithfulness_correlation:.2f} with the model's.{few} Send more images, or request more "
                "crops of each (views).",
            )
        )
    return warnings

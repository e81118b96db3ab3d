"""Heatmaps of x-features: excitation backpropagation, or a mask that changes the value of the x-feature.

Both explain the x-feature itself, not the class. The probability of excitation backpropagation starts at the x-feature
and passes through the encoder to the layer. The score of a masked image is the value of its x-feature, scaled to 1 on
the image and 0 on the baseline.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sagittal.engine.masking import compose, upsample
from sagittal.engine.requests import Evaluate, Inspect, ModelView, Scores, Subject
from sagittal.explain.attribution.excitation_backprop import winning_probability
from sagittal.explain.attribution.layers import SpatialLayer, Unsupported, heatmap, layout_of, spatial_layers
from sagittal.explain.concepts.features import flat, layer_features
from sagittal.explain.concepts.fitted import FittedConcepts, XFeatures
from sagittal.explain.concepts.srae import SRAE, TINY
from sagittal.explain.events import SaliencyMask
from sagittal.explain.explainer import Explainer
from sagittal.explain.masks.igos import IGOS, IGOSPlusPlus
from sagittal.explain.problem import Problem, derive_seed
from sagittal.explain.steps import Steps, ask

ROWS = 8
"""Masked images per forward pass."""

UNMOVED = 0.05
"""An x-feature whose value differs from the baseline's by less than this many standard deviations has no heatmap."""


def x_feature_heatmap(problem: Problem, fitted: FittedConcepts, index: int, method: str) -> Steps[Tensor]:
    """Yields requests; returns the heatmap (rows, columns) of an x-feature on the problem's image, 0 to 1."""
    return (yield from METHODS[method](problem, fitted, index))


def _by_excitation(problem: Problem, fitted: FittedConcepts, index: int) -> Steps[Tensor]:
    def call(view: ModelView) -> Tensor:
        return excitation(view, fitted, index)

    subject = Subject(problem.image, problem.baseline, index)
    return (yield from ask(Inspect(subject=subject, call=call, evaluations=3, gradient_evaluations=1)))


def excitation(view: ModelView, fitted: FittedConcepts, index: int) -> Tensor:
    """Returns the probability that each position excites the x-feature, (rows, columns)."""
    image = view.subject.image.detach().unsqueeze(0)
    with torch.no_grad():
        features, output, _ = layer_features(view.module, fitted.layer, image)
    winning = winning_features(fitted.srae, features, index)
    if not float(winning.sum()):
        return torch.zeros(1, 1)
    whole = ModelView(XFeatures(view.module, fitted), view.probabilities, replace(view.subject, target=index))
    reached = [layer for layer in spatial_layers(whole).values() if layer.reached]
    if not reached:
        raise Unsupported("no layer with a spatial output leads to the x-features; use igos")
    reading = _within_model(reached[-1])
    spread = _to_places(winning, output, (image.shape[-2], image.shape[-1]))
    if reading.name == fitted.layer:
        places = reading.layout.to_channels(spread)[0].sum(0)
    else:
        places = winning_probability(view, reading, (fitted.layer, spread)).sum(0)
    return heatmap(places, float(places.sum()))


def winning_features(srae: SRAE, features: Tensor, index: int) -> Tensor:
    """Returns the winning probability of each feature (1, features) for an x-feature: sums to 1, or to 0 for none."""
    encoder = srae.encoder
    active = features.clamp(min=0)
    with torch.no_grad():
        hidden = torch.relu(encoder.hidden((features - srae.feature_mean) / srae.feature_scale))
    direct = active * encoder.direct.weight[index].clamp(min=0) / srae.feature_scale
    bent = hidden * encoder.bent.weight[index].clamp(min=0)
    through = active * (encoder.hidden.weight.clamp(min=0) / srae.feature_scale)
    through = through / through.sum(1, keepdim=True).clamp(min=TINY)
    total = direct.sum() + bent.sum()
    return (direct + bent @ through) / total.clamp(min=TINY)


def _to_places(winning: Tensor, output: Tensor, size: tuple[int, int]) -> Tensor:
    """Distributes the probability of flat features over the positions they are the mean of, in the layer's shape."""
    if flat(output, size).numel() == output.numel():
        return winning.reshape(output.shape)
    layout = layout_of(output.shape, size)
    if layout is None:
        raise Unsupported(f"an output of shape {tuple(output.shape)} has no spatial positions")
    channels = layout.to_channels(output).clamp(min=0)
    shares = channels / channels.sum((2, 3), keepdim=True).clamp(min=TINY)
    return layout.from_channels(shares * winning[..., None, None], torch.zeros_like(output))


def _within_model(layer: SpatialLayer) -> SpatialLayer:
    """Returns a layer under its name in the model itself."""
    return replace(layer, name=layer.name.removeprefix("model."))


def _by_masks(explainer: Explainer) -> Callable[[Problem, FittedConcepts, int], Steps[Tensor]]:
    def run(problem: Problem, fitted: FittedConcepts, index: int) -> Steps[Tensor]:
        ends = yield from _values_at_ends(problem, fitted, index)
        if abs(ends[1] - ends[0]) < UNMOVED * fitted.spread[index]:
            return problem.full(1, 0.0)
        inner = replace(
            problem,
            subject=replace(problem.subject, target=index),
            unmasked_score=1.0,
            baseline_score=0.0,
            seed=derive_seed(problem.seed, "x-feature", index),
            restored={},
        )
        return (yield from _answered(explainer.explain(inner), fitted, ends))

    return run


def _values_at_ends(problem: Problem, fitted: FittedConcepts, index: int) -> Steps[tuple[float, float]]:
    """Returns the x-feature's value on the baseline and on the image."""

    def call(view: ModelView) -> tuple[float, float]:
        with torch.no_grad():
            values = XFeatures(view.module, fitted)(torch.stack([problem.baseline, problem.image]))
        return float(values[0, index]), float(values[1, index])

    return (yield from ask(Inspect(subject=problem.subject, call=call, evaluations=2)))


def _answered(steps: Steps[None], fitted: FittedConcepts, ends: tuple[float, float]) -> Steps[Tensor]:
    """Runs an explainer of a class on an x-feature; returns its final heatmap and discards its other events."""
    saliency = torch.zeros(1, 1)
    answer: Any = None
    while True:
        try:
            item = steps.send(answer)
        except StopIteration:
            return saliency
        answer = None
        if isinstance(item, Evaluate):
            answer = yield from _scores(item, fitted, ends)
        elif isinstance(item, SaliencyMask) and item.final:
            saliency = item.saliency


def _scores(request: Evaluate, fitted: FittedConcepts, ends: tuple[float, float]) -> Steps[Scores]:
    """Returns the scores of masked images: 1 for the x-feature's value on the image, 0 for that on the baseline."""
    parts: list[tuple[Tensor, Tensor | None]] = []
    for start in range(0, len(request.masks), ROWS):
        masks = request.masks[start : start + ROWS]

        def call(view: ModelView, masks: Tensor = masks, start: int = start) -> tuple[Tensor, Tensor | None]:
            return _evaluate(view, request, masks, start, fitted, ends)

        counted = len(masks) if request.gradient else 0
        asked = Inspect(subject=request.subject, call=call, evaluations=len(masks), gradient_evaluations=counted)
        parts.append((yield from ask(asked)))
    target = torch.cat([scores for scores, _ in parts])
    gradients = [gradient for _, gradient in parts if gradient is not None]
    classes = torch.zeros(len(target), dtype=torch.int64)
    return Scores(target, classes, target, torch.cat(gradients) if gradients else None)


def _evaluate(
    view: ModelView,
    request: Evaluate,
    masks: Tensor,
    start: int,
    fitted: FittedConcepts,
    ends: tuple[float, float],
) -> tuple[Tensor, Tensor | None]:
    subject = request.subject
    index = 0 if subject.target is None else subject.target
    masks = masks.detach().clone().requires_grad_(request.gradient)
    with torch.enable_grad() if request.gradient else torch.no_grad():
        size = (subject.image.shape[-2], subject.image.shape[-1])
        images = compose(subject.image, subject.baseline, upsample(masks, size, request.upsampling))
        if request.noise:
            images = images + request.noise * _noise(images, request.noise_seed, start)
        values = XFeatures(view.module, fitted)(images)[:, index]
        scores = (values - ends[0]) / (ends[1] - ends[0])
        gradient = torch.autograd.grad(scores.sum(), masks)[0] if request.gradient else None
    return scores.detach(), gradient


def _noise(images: Tensor, seed: int, start: int) -> Tensor:
    """Returns noise of the images' shape that depends only on the seed and the row indices."""
    rows = [
        torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(derive_seed(seed, start + row)))
        for row in range(len(images))
    ]
    return torch.stack(rows).to(images)


METHODS: Mapping[str, Callable[[Problem, FittedConcepts, int], Steps[Tensor]]] = {
    "excitation-bp": _by_excitation,
    "igos": _by_masks(IGOS()),
    "igos++": _by_masks(IGOSPlusPlus()),
}
"""Methods for the heatmap of an x-feature, by name."""

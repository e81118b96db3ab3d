"""Quality of an explanation network, measured on images that were held out of the fit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sagittal.engine.requests import Inspect, ModelView, Subject
from sagittal.explain.attribution.layers import Unsupported
from sagittal.explain.concepts.features import Box, ImageSet
from sagittal.explain.concepts.fitted import FittedConcepts
from sagittal.explain.concepts.heatmaps import excitation
from sagittal.explain.concepts.srae import SRAE, TINY, pull_away
from sagittal.explain.concepts.training import Examples, Share
from sagittal.explain.events import Progress, Warning
from sagittal.explain.steps import Steps, ask

REBUILT = 0.5
"""Explained share of a feature's variance from which the feature counts as reconstructed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Measurements of an explanation network."""

    faithfulness_correlation: float
    """Pearson's correlation of its output with the model's, the mean over targets; 0 if one is constant."""
    faithfulness_error: float
    """Mean absolute difference of the two, in units of the model's output."""
    class_agreement: float | None
    """Share of images on which both rank the same target first; None with one target."""
    orthogonality: float
    """Mean squared cosine between x-features."""
    reconstructed_share: float
    """Share of the layer's features of whose variance at least half is reconstructed."""
    images: int
    """Number of images it was measured on."""


def measure(srae: SRAE, held_out: Examples) -> Quality:
    """Measures an explanation network on images."""
    with torch.no_grad():
        values = srae.encode(held_out.features)
        predicted = values @ srae.weights()
        rebuilt = srae.decode(values)
    outputs = held_out.outputs
    several = outputs.shape[1] > 1
    agreement = float((predicted.argmax(1) == outputs.argmax(1)).float().mean()) if several else None
    return Quality(
        faithfulness_correlation=sum(_correlations(predicted, outputs)) / outputs.shape[1],
        faithfulness_error=float((predicted - outputs).abs().mean()),
        class_agreement=agreement,
        orthogonality=float(pull_away(values)),
        reconstructed_share=rebuilt_share(held_out.features, rebuilt),
        images=len(held_out),
    )


def rebuilt_share(features: Tensor, rebuilt: Tensor) -> float:
    """Returns the share of features (images, features) of whose variance at least half is reconstructed."""
    spread = (features - features.mean(0)).square().mean(0)
    lost = (features - rebuilt).square().mean(0)
    return float(((spread > TINY) & (lost <= (1 - REBUILT) * spread)).float().mean())


def stability(values: Sequence[Tensor]) -> float | None:
    """Returns how well fits from other seeds recover the x-features of the first: mean absolute correlation, matched.

    Args:
        values: Values of the x-features on the same images, (images, x-features) for each fit; None for a single fit.
    """
    if len(values) < 2:
        return None
    return sum(_matched(values[0], other) for other in values[1:]) / (len(values) - 1)


def _matched(first: Tensor, second: Tensor) -> float:
    """Matches x-features, the most similar first, and returns the mean of their absolute correlations."""
    likeness = correlation_matrix(first, second).abs()
    total, count = 0.0, likeness.shape[0]
    for _ in range(count):
        best = int(likeness.argmax())
        row, column = divmod(best, count)
        total += float(likeness[row, column])
        likeness[row, :], likeness[:, column] = -1, -1
    return total / count


def correlation_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Returns Pearson's correlations of the columns of (images, n) and (images, m), 0 for constant columns."""
    return _standard(first).T @ _standard(second) / len(first)


def _correlations(first: Tensor, second: Tensor) -> Sequence[float]:
    matrix: Sequence[float] = torch.diagonal(correlation_matrix(first, second)).tolist()
    return matrix


def _standard(columns: Tensor) -> Tensor:
    centred = columns - columns.mean(0)
    spread = centred.square().mean(0).sqrt()
    return torch.where(spread > TINY, centred / spread.clamp(min=TINY), 0)


MOST_IMAGES = 100
"""Maximum number of annotated images that it is measured on, the first of those held out."""

SIDE = 224
"""Side to which heatmaps are enlarged before they are divided, in pixels."""

Shares = Mapping[str, float]
"""Shares of an x-feature by part, the largest first; they add up to 1. Empty if it covers no part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Locality:
    """Distribution of x-features over annotated parts.

    On each annotated held-out image, the heatmap of the x-feature is divided among the parts. The mean of the shares
    over the images shows which parts the x-feature covers, and their entropy how many: `exp(entropy)` is 1 for an
    x-feature on a single part, and the number of parts for an even distribution (Qi, Khorram, Li; the x-features of the
    paper cover 7 of the 15 parts of CUB's birds). Evidence outside every part does not count.
    """

    images: int = 0
    """Number of annotated images it was measured on."""
    shares: Sequence[Shares] = field(default_factory=tuple)
    """Shares of each x-feature; empty if no image was annotated."""

    @property
    def entropies(self) -> Sequence[float]:
        """Entropy of each x-feature that covers a part, in nats."""
        return [entropy(shares) for shares in self.shares if shares]

    @property
    def mean_entropy(self) -> float | None:
        """Mean over x-features, in nats; None if it was not measured."""
        found = self.entropies
        return sum(found) / len(found) if found else None

    @property
    def parts_covered(self) -> float | None:
        """Mean number of parts that an x-feature covers; None if it was not measured."""
        found = self.entropies
        return sum(map(math.exp, found)) / len(found) if found else None


def entropy(shares: Shares) -> float:
    """Returns the entropy of shares that add up to 1, in nats: 0 if a single part has all."""
    return -sum(share * math.log(share) for share in shares.values() if share > 0)


def spread_over(heatmap: Tensor, parts: Mapping[str, Box]) -> Shares:
    """Returns the distribution of a non-negative heatmap (rows, columns) over parts; empty if it covers none."""
    large = F.interpolate(heatmap[None, None].float().cpu(), size=(SIDE, SIDE), mode="bilinear")[0, 0]
    mass = {name: float(_within(large, box).sum()) for name, box in parts.items()}
    total = sum(mass.values())
    return {name: one / total for name, one in mass.items()} if total > 0 else {}


def mean_shares(spreads: Sequence[Shares]) -> Shares:
    """Returns the mean of the shares over the images that have any, the largest first."""
    there = [shares for shares in spreads if shares]
    total: dict[str, float] = {}
    for shares in there:
        for name, share in shares.items():
            total[name] = total.get(name, 0.0) + share / len(there)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def measure_locality(
    images: ImageSet, held_out: Sequence[int], fitted: FittedConcepts, *, share: Share, subject: Subject
) -> Steps[tuple[Locality, Sequence[Warning]]]:
    """Returns the Locality of a fit, and warnings.

    Args:
        images: The set, with its annotations.
        held_out: Indices in the set of the images that were held out.
        fitted: The explanation network.
        share: The part of the job's progress that this is.
        subject: Any subject, for the requests.
    """
    annotated = [(index, parts) for index in held_out if (parts := images.parts(index))][:MOST_IMAGES]
    if not annotated:
        return Locality(), _without(images, len(held_out))
    spreads: list[list[Shares]] = [[] for _ in range(fitted.srae.x_features)]
    for done, (index, parts) in enumerate(annotated):
        for x_feature, found in enumerate(spreads):
            shares = yield from _look(images, index, parts, fitted, x_feature, subject)
            if isinstance(shares, Unsupported):
                return Locality(), [Warning("LOCALITY_NOT_MEASURED", f"Locality is not measured: {shares}")]
            found.append(shares)
        yield Progress(share.at((done + 1) / len(annotated)), phase="locality")
    return Locality(images=len(annotated), shares=tuple(map(mean_shares, spreads))), []


def _look(
    images: ImageSet, index: int, parts: Mapping[str, Box], fitted: FittedConcepts, x_feature: int, subject: Subject
) -> Steps[Shares | Unsupported]:
    """Returns the distribution of an x-feature over the parts of an image: Shares, or why it is undefined."""

    def call(view: ModelView) -> Shares | Unsupported:
        image = images.read(index).image
        if image is None:
            return {}
        try:
            seen = replace(view, subject=replace(view.subject, image=image))
            return spread_over(excitation(seen, fitted, x_feature), parts)
        except Unsupported as error:
            return error

    return ask(Inspect(subject=subject, call=call, evaluations=3, gradient_evaluations=1))


def _without(images: ImageSet, held_out: int) -> Sequence[Warning]:
    """Returns a warning if images have annotated parts, but no held-out image does."""
    if not any(images.parts(index) for index in range(len(images))):
        return []
    return [
        Warning(
            "LOCALITY_NOT_MEASURED",
            f"Locality is not measured: none of the {held_out} held-out images has annotated parts. "
            "Annotate more images.",
        )
    ]


def _within(large: Tensor, box: Box) -> Tensor:
    """Returns the pixels of a square that are in a box, at least one."""
    left, top, right, bottom = (round(edge * SIDE) for edge in box)
    left, top = min(left, SIDE - 1), min(top, SIDE - 1)
    return large[top : max(bottom, top + 1), left : max(right, left + 1)]

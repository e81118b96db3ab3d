"""Locality: how many of the parts that a person annotated an x-feature covers.

Of each held-out image that carries parts, the heatmap of the x-feature is cut up among them; the mean of the shares
over the images says what the x-feature is about, and their entropy how many things that is: `exp(entropy)` is 1 for an
x-feature that looks at a single part, and the number of parts for one that looks at all of them alike (Qi, Khorram, Li;
the x-features of the paper cover 7 of the 15 parts of CUB's birds). What lies on no part does not count.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch.nn.functional as F
from torch import Tensor

from sagittal.explain.attribution.layers import Unsupported
from sagittal.explain.concepts.features import Box, ImageSet
from sagittal.explain.concepts.fitted import FittedConcepts
from sagittal.explain.concepts.heatmaps import excitation
from sagittal.explain.concepts.training import Share
from sagittal.explain.events import Progress, Warning
from sagittal.explain.requests import Inspect, ModelView, Steps, Subject

MOST_IMAGES = 100
"""Annotated images that it is measured on, the first of those held out."""

SIDE = 224
"""Side to which heatmaps are enlarged before they are cut up, in pixels."""

Shares = Mapping[str, float]
"""How an x-feature spreads over parts, by name, the largest share first: adds up to 1; empty where it meets none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Locality:
    """How x-features spread over annotated parts."""

    images: int = 0
    """Annotated images it was measured on."""
    shares: Sequence[Shares] = field(default_factory=tuple)
    """Of each x-feature; empty where no image was annotated."""

    @property
    def entropies(self) -> Sequence[float]:
        """Entropy of each x-feature that meets a part, in nats."""
        return [entropy(shares) for shares in self.shares if shares]

    @property
    def mean_entropy(self) -> float | None:
        """Mean over x-features, in nats; None where it was not measured."""
        found = self.entropies
        return sum(found) / len(found) if found else None

    @property
    def parts_covered(self) -> float | None:
        """Mean number of parts that an x-feature covers; None where it was not measured."""
        found = self.entropies
        return sum(map(math.exp, found)) / len(found) if found else None


def entropy(shares: Shares) -> float:
    """Returns the entropy of shares that add up to 1, in nats: 0 where a single part has all."""
    return -sum(share * math.log(share) for share in shares.values() if share > 0)


def spread_over(heatmap: Tensor, parts: Mapping[str, Box]) -> Shares:
    """Returns how a heatmap (rows, columns) that is not negative spreads over parts; none where it meets none."""
    large = F.interpolate(heatmap[None, None].float().cpu(), size=(SIDE, SIDE), mode="bilinear")[0, 0]
    mass = {name: float(_within(large, box).sum()) for name, box in parts.items()}
    total = sum(mass.values())
    return {name: one / total for name, one in mass.items()} if total > 0 else {}


def mean_shares(spreads: Sequence[Shares]) -> Shares:
    """Returns the mean of the shares over the images on which there are any, the largest first."""
    there = [shares for shares in spreads if shares]
    total: dict[str, float] = {}
    for shares in there:
        for name, share in shares.items():
            total[name] = total.get(name, 0.0) + share / len(there)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def measure_locality(
    images: ImageSet, held_out: Sequence[int], fitted: FittedConcepts, *, share: Share, subject: Subject
) -> Steps:
    """Returns the Locality of a fit, and warnings.

    Args:
        images: The set, with its annotations.
        held_out: Places in the set of the images that were held out.
        fitted: The explanation network.
        share: The part of the job's progress that this is.
        subject: Any, for the requests.
    """
    annotated = [(index, parts) for index in held_out if (parts := images.parts(index))][:MOST_IMAGES]
    if not annotated:
        return Locality(), _without(images, len(held_out))
    spreads: list[list[Shares]] = [[] for _ in range(fitted.srae.x_features)]
    for done, (index, parts) in enumerate(annotated):
        for x_feature, found in enumerate(spreads):
            shares = yield _look(images, index, parts, fitted, x_feature, subject)
            if isinstance(shares, Unsupported):
                return Locality(), [Warning("LOCALITY_NOT_MEASURED", f"Locality is not measured: {shares}")]
            found.append(shares)
        yield Progress(share.at((done + 1) / len(annotated)), phase="locality")
    return Locality(images=len(annotated), shares=tuple(map(mean_shares, spreads))), []


def _look(
    images: ImageSet, index: int, parts: Mapping[str, Box], fitted: FittedConcepts, x_feature: int, subject: Subject
) -> Inspect:
    """Asks how an x-feature spreads over the parts of an image: Shares, or why that cannot be found."""

    def call(view: ModelView) -> Shares | Unsupported:
        image = images.read(index).image
        if image is None:
            return {}
        try:
            seen = replace(view, subject=replace(view.subject, image=image))
            return spread_over(excitation(seen, fitted, x_feature), parts)
        except Unsupported as error:
            return error

    return Inspect(subject=subject, call=call, evaluations=3, gradient_evaluations=1)


def _without(images: ImageSet, held_out: int) -> Sequence[Warning]:
    """Says so where images carry parts, but none of those that are held out."""
    if not any(images.parts(index) for index in range(len(images))):
        return []
    return [
        Warning(
            "LOCALITY_NOT_MEASURED",
            f"Locality is not measured: none of the {held_out} images that were held out has annotated parts. "
            "Annotate more of them.",
        )
    ]


def _within(large: Tensor, box: Box) -> Tensor:
    """Returns the pixels of a square that are in a box, one at least."""
    left, top, right, bottom = (round(edge * SIDE) for edge in box)
    left, top = min(left, SIDE - 1), min(top, SIDE - 1)
    return large[top : max(bottom, top + 1), left : max(right, left + 1)]

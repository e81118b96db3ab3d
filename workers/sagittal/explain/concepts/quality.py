"""How good an explanation network is, measured on images that it was not fitted to."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sagittal.explain.concepts.srae import SRAE, TINY, pull_away
from sagittal.explain.concepts.training import Examples

REBUILT = 0.5
"""Share of a feature's variance that is explained where it counts as rebuilt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What was measured."""

    faithfulness_correlation: float
    """Pearson's correlation of its output with the model's, the mean over targets; 0 where one is constant."""
    faithfulness_error: float
    """Mean absolute difference of the two, in units of the model's output."""
    class_agreement: float | None
    """Share of images on which both put the same target first; None with one target."""
    orthogonality: float
    """Mean squared cosine between x-features."""
    reconstructed_share: float
    """Share of the layer's features of whose variance at least half is rebuilt."""
    images: int
    """Images it was measured on."""


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
    """Returns the share of features (images, features) of whose variance half at least is rebuilt."""
    spread = (features - features.mean(0)).square().mean(0)
    lost = (features - rebuilt).square().mean(0)
    return float(((spread > TINY) & (lost <= (1 - REBUILT) * spread)).float().mean())


def stability(values: Sequence[Tensor]) -> float | None:
    """Returns how far fits from other seeds find the x-features of the first: mean absolute correlation, matched.

    Args:
        values: Of the x-features on the same images, (images, x-features) for each fit; None for a single fit.
    """
    if len(values) < 2:
        return None
    return sum(_matched(values[0], other) for other in values[1:]) / (len(values) - 1)


def _matched(first: Tensor, second: Tensor) -> float:
    """Pairs x-features, the most alike first, and returns the mean of their absolute correlations."""
    likeness = correlation_matrix(first, second).abs()
    total, count = 0.0, likeness.shape[0]
    for _ in range(count):
        best = int(likeness.argmax())
        row, column = divmod(best, count)
        total += float(likeness[row, column])
        likeness[row, :], likeness[:, column] = -1, -1
    return total / count


def correlation_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Returns Pearson's correlations of the columns of (images, n) and (images, m), 0 for constant ones."""
    return _standard(first).T @ _standard(second) / len(first)


def _correlations(first: Tensor, second: Tensor) -> Sequence[float]:
    matrix: Sequence[float] = torch.diagonal(correlation_matrix(first, second)).tolist()
    return matrix


def _standard(columns: Tensor) -> Tensor:
    centred = columns - columns.mean(0)
    spread = centred.square().mean(0).sqrt()
    return torch.where(spread > TINY, centred / spread.clamp(min=TINY), 0)

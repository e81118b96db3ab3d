"""Which of the solutions that equation (1) cannot tell apart is shown.

Faithfulness and reconstruction see x-features through linear maps, and orthogonal x-features of equal length stay so
when they are turned: the loss leaves a rotation free, and with it which mixtures of concepts are shown as one. The
rotation that is chosen makes the x-features as independent as they can be, by the principle of independent component
analysis: mixtures of independent causes are closer to normally distributed than the causes are. Then signs and order
are settled: more of an x-feature means more of the class, and the one that moves the prediction most comes first.
"""

import math

import torch
from torch import Tensor

from sagittal.explain.concepts.srae import SRAE, TINY

ANGLES = 90
"""Angles tried for each pair of x-features, from 0 to a quarter turn."""

SWEEPS = 8
"""Most rounds over all pairs."""

NORMAL = 0.374567
"""Mean of log cosh(u) for a standard normal u."""

PEAK_WEIGHT = 33.67
"""Weight of the squared difference to it, beside that of the squared skewness."""


def settle(srae: SRAE, features: Tensor) -> None:
    """Turns, flips, scales and orders the x-features of a fitted network in place; its predictions stay the same."""
    with torch.no_grad():
        values = srae.encode(features)
        lengths = values.square().mean(0).sqrt().clamp(min=TINY)
        _transform(srae, torch.diag(1 / lengths))
        values = srae.encode(features)
        _transform(srae, independent_rotation(values).T)
        values = srae.encode(features)
        strongest = srae.readout.abs().argmax(1)
        signs = srae.readout.gather(1, strongest.unsqueeze(1)).squeeze(1).sign()
        signs[signs == 0] = 1
        effect = values.std(0) * srae.readout.norm(dim=1)
        order = effect.argsort(descending=True)
        _transform(srae, torch.diag(signs)[order])


def independent_rotation(values: Tensor) -> Tensor:
    """Returns the rotation (n, n) after which the columns of values (images, n) are the least normally distributed."""
    rotation = torch.eye(values.shape[1]).to(values)
    turned = values.clone()
    for _ in range(SWEEPS):
        largest = 0.0
        for first in range(values.shape[1]):
            for second in range(first + 1, values.shape[1]):
                angle = _best_angle(turned[:, first], turned[:, second])
                turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
                pair = [first, second]
                turned[:, pair] = turned[:, pair] @ turn.to(values)
                rotation[:, pair] = rotation[:, pair] @ turn.to(values)
                largest = max(largest, min(angle, math.pi / 2 - angle))
        if largest < math.pi / 2 / ANGLES:
            break
    return rotation


def _best_angle(first: Tensor, second: Tensor) -> float:
    """Returns the angle in [0, pi / 2) that makes a pair of columns the least normal together."""
    angles = torch.arange(ANGLES).to(first) * (math.pi / 2 / ANGLES)
    cosine, sine = torch.cos(angles).unsqueeze(1), torch.sin(angles).unsqueeze(1)
    distance = _distance(cosine * first + sine * second) + _distance(cosine * second - sine * first)
    return float(angles[distance.argmax()])


def _distance(lines: Tensor) -> Tensor:
    """Returns how far each line (lines, images) is from a normal distribution: an approximation of negentropy."""
    centred = lines - lines.mean(1, keepdim=True)
    standard = centred / centred.square().mean(1, keepdim=True).sqrt().clamp(min=TINY)
    skew = standard.pow(3).mean(1)
    # log cosh, written so that it cannot overflow
    peaked = (standard.abs() + torch.log1p(torch.exp(-2 * standard.abs())) - math.log(2)).mean(1) - NORMAL
    return skew.square() / 12 + PEAK_WEIGHT * peaked.square()


def _transform(srae: SRAE, matrix: Tensor) -> None:
    """Replaces the x-features x by `matrix @ x`, and undoes it behind them."""
    inverse = torch.linalg.inv(matrix)
    for weight in (srae.encoder.direct.weight, srae.encoder.direct.bias, srae.encoder.bent.weight):
        weight.copy_(matrix @ weight)
    for weight in (srae.decoder.direct.weight, srae.decoder.hidden.weight):
        weight.copy_(weight @ inverse)
    srae.readout.copy_(inverse.T @ srae.readout)

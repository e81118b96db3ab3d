"""Where a fit begins: at a linear explanation network that is already faithful.

From random weights, descent finds one of the many networks that agree on the images at hand, and not the one that
agrees on others. The best linear prediction of the outputs does, as far as there is one: so the x-features begin as
that prediction and the strongest directions of the features beside it (principal components), in a rotation that the
seed draws. What descent adds is the rest of equation (1), in what is linear and what is not.
"""

import torch
from torch import Tensor, nn

from sagittal.explain.concepts.srae import SRAE, Perceptron

RIDGE = 1e-3
"""Weight of the squared coefficients, relative to the mean squared length of the features."""

TINY = 1e-12
"""Keeps divisions by the spread of a constant direction finite."""


def initialise(srae: SRAE, features: Tensor, outputs: Tensor, generator: torch.Generator) -> None:
    """Sets all weights, and the units, from features (images, features) and outputs (images, outputs)."""
    with torch.no_grad():
        srae.feature_mean.copy_(features.mean(0))
        srae.feature_scale.copy_((features - srae.feature_mean).square().mean().sqrt())
        srae.output_scale.copy_((outputs - outputs.mean(0)).square().mean().sqrt())
        for perceptron in (srae.encoder, srae.decoder):
            _draw(perceptron, generator)
        scaled = ((features - srae.feature_mean) / srae.feature_scale).double()
        wanted = (outputs / srae.output_scale).double()
        directions = _directions(scaled, wanted - wanted.mean(0), srae.x_features)
        rotation = _rotation(srae.x_features, generator).to(directions)
        directions = directions @ rotation
        values = scaled @ directions
        readout = torch.linalg.lstsq(values, wanted - wanted.mean(0)).solution
        offset = torch.linalg.pinv(readout.T) @ wanted.mean(0)
        rebuilt = torch.linalg.lstsq(values, scaled).solution
        srae.encoder.direct.weight.copy_(directions.T)
        srae.encoder.direct.bias.copy_(offset)
        srae.decoder.direct.weight.copy_(rebuilt.T)
        srae.decoder.direct.bias.copy_(-offset @ rebuilt)
        srae.readout.copy_(readout)


def _draw(perceptron: Perceptron, generator: torch.Generator) -> None:
    """Draws the hidden units; they begin without a say, so that the linear map is all there is."""
    hidden = perceptron.hidden
    bound = hidden.in_features**-0.5
    for weight in (hidden.weight, hidden.bias):
        weight.copy_((torch.rand(weight.shape, generator=generator) * 2 - 1) * bound)
    nn.init.zeros_(perceptron.bent.weight)


def _directions(features: Tensor, outputs: Tensor, count: int) -> Tensor:
    """Returns directions (features, count) of unit spread: those that predict, then principal components."""
    coefficients = _ridge(features, outputs)
    predicted = features @ coefficients
    _, spread, mixture = torch.linalg.svd(predicted, full_matrices=False)
    kept = int((spread > spread.max() * 1e-6).sum())
    predicting = coefficients @ mixture.T[:, : min(kept, count)]
    used = features @ predicting
    # what the predicting directions say of the features is taken out before the principal components are looked for
    left = features - used @ torch.linalg.lstsq(used, features).solution
    missing = count - predicting.shape[1]
    _, _, components = torch.linalg.svd(left, full_matrices=False)
    principal = components.T[:, :missing]
    beside = principal - predicting @ torch.linalg.lstsq(used, features @ principal).solution
    directions = torch.cat([predicting, beside], 1)
    return directions / (features @ directions).square().mean(0).sqrt().clamp(min=TINY)


def _ridge(features: Tensor, outputs: Tensor) -> Tensor:
    """Returns the coefficients (features, outputs) of the ridge regression, by whichever side is smaller."""
    images, width = features.shape
    weight = RIDGE * features.square().sum(1).mean()
    if images < width:
        gram = features @ features.T + weight * torch.eye(images).to(features)
        coefficients: Tensor = features.T @ torch.linalg.solve(gram, outputs)
        return coefficients
    gram = features.T @ features + weight * torch.eye(width).to(features)
    solved: Tensor = torch.linalg.solve(gram, features.T @ outputs)
    return solved


def _rotation(count: int, generator: torch.Generator) -> Tensor:
    """Returns a random rotation (count, count)."""
    drawn = torch.randn(count, count, generator=generator, dtype=torch.float64)
    rotation: Tensor = torch.linalg.qr(drawn).Q
    return rotation

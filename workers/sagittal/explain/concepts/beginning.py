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

LEFT = 0.05
"""Share of the prediction's variance below which it is not divided any further."""

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
    """Returns directions (features, count) of unit spread that together predict as well as the best prediction."""
    coefficients = _ridge(features, outputs)
    _, spread, mixture = torch.linalg.svd(features @ coefficients, full_matrices=False)
    kept = min(int((spread > spread.max() * 1e-6).sum()), count)
    predicting = coefficients @ mixture.T[:, :kept]
    whole = (features @ predicting).square().sum()
    directions = predicting[:, :0]
    for _ in range(count - kept):
        left = features @ _beyond(predicting, directions, features)
        if left.square().sum() > LEFT * whole:
            varying = torch.linalg.svd(features.T @ left, full_matrices=False)[0][:, :1]
        else:
            used = features @ torch.cat([predicting, directions], 1)
            rest = features - used @ torch.linalg.lstsq(used, features).solution
            varying = torch.linalg.svd(rest, full_matrices=False)[2][:1].T
        directions = torch.cat([directions, _beyond(varying, directions, features)], 1)
    directions = torch.cat([_beyond(predicting, directions, features), directions], 1)
    return directions / (features @ directions).square().mean(0).sqrt().clamp(min=TINY)


def _beyond(directions: Tensor, others: Tensor, features: Tensor) -> Tensor:
    """Returns what of directions the features do not have along other directions."""
    if not others.shape[1]:
        return directions
    along: Tensor = torch.linalg.lstsq(features @ others, features @ directions).solution
    return directions - others @ along


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

"""The sparse reconstruction autoencoder (SRAE) and its loss, equation (1) of the paper.

Qi, Khorram, Li: Embedding Deep Networks into Visual Explanations (Artificial Intelligence, 2021). For features `Z` of M
images and the model's outputs `y` on them:

    1/M sum_i |v'E(Z_i) - y_i|^2
    + beta * 1/S sum_k log(1 + q * 1/M sum_i (D(E(Z_i))_k - Z_ik)^2)
    + eta * 1/(n (n - 1)) sum_{l != m} cos(E_l, E_m)^2

The first term makes the explanation faithful. The second reconstructs features, which excludes the trivial `E(Z) = y`;
its logarithm tolerates features that are not reconstructed. The third separates the x-features `E_l`, vectors over the
images. Encoder `E` and decoder `D` are a linear map plus one hidden layer of rectified units each. The readout `v` is
linear without bias, so that the contributions of the x-features add up to the prediction.

The loss covers all images at once, because the logarithm of a mean is not a mean over batches. Features are centred and
divided by one number, their root mean square, and outputs by their standard deviation, so that `beta`, `q` and `eta`
are comparable across models. Both scales are part of the network: its inputs and outputs have the model's own units.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TINY = 1e-8
"""Keeps divisions by the norm of a dead x-feature finite."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The three unweighted terms of the loss; scalars."""

    faithfulness: Tensor
    reconstruction: Tensor
    pull_away: Tensor


class Perceptron(nn.Module):
    """A linear map plus one hidden layer of rectified units: `A x + B relu(C x)`, with biases."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        """Constructs layers whose weights are not set yet."""
        super().__init__()
        self.direct = nn.Linear(inputs, outputs)
        self.hidden = nn.Linear(inputs, hidden)
        self.bent = nn.Linear(hidden, outputs, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps (images, inputs) to (images, outputs)."""
        outputs: Tensor = self.direct(inputs) + self.bent(torch.relu(self.hidden(inputs)))
        return outputs


class SRAE(nn.Module):
    """Encodes features (images, features) as x-features (images, x-features), and predicts the outputs from them."""

    feature_mean: Tensor
    feature_scale: Tensor
    output_scale: Tensor

    def __init__(self, features: int, x_features: int, outputs: int, hidden: int) -> None:
        """Constructs a network whose weights are not set yet: use `initialise` or `of_state`."""
        super().__init__()
        self.encoder = Perceptron(features, hidden, x_features)
        self.decoder = Perceptron(x_features, hidden, features)
        self.readout = nn.Parameter(torch.empty(x_features, outputs))
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_scale", torch.ones(()))
        self.register_buffer("output_scale", torch.ones(()))

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> "SRAE":
        """Returns the network with this `state_dict`."""
        hidden, features = state["encoder.hidden.weight"].shape
        x_features, outputs = state["readout"].shape
        srae = cls(features, x_features, outputs, hidden)
        srae.load_state_dict(state)
        return srae.eval().requires_grad_(False)

    @property
    def x_features(self) -> int:
        """Number of x-features."""
        return self.readout.shape[0]

    def encode(self, features: Tensor) -> Tensor:
        """Returns the values of the x-features, of shape (images, x-features)."""
        values: Tensor = self.encoder((features - self.feature_mean) / self.feature_scale)
        return values

    def decode(self, values: Tensor) -> Tensor:
        """Returns the features reconstructed from x-features, of shape (images, features)."""
        rebuilt: Tensor = self.decoder(values) * self.feature_scale + self.feature_mean
        return rebuilt

    def weights(self) -> Tensor:
        """Returns the readout in the model's units, of shape (x-features, outputs)."""
        return self.readout * self.output_scale

    def contributions(self, values: Tensor) -> Tensor:
        """Returns the contributions of x-features to outputs, (images, x-features, outputs); their sum is `forward`."""
        return values.unsqueeze(-1) * self.weights()

    def forward(self, features: Tensor) -> Tensor:
        """Returns the prediction of the model's outputs, of shape (images, outputs)."""
        return self.encode(features) @ self.weights()


def loss_terms(srae: SRAE, features: Tensor, outputs: Tensor, *, q: float) -> Terms:
    """Returns the terms of equation (1) for features (images, features) and outputs (images, outputs)."""
    values = srae.encode(features)
    missed = (values @ srae.weights() - outputs) / srae.output_scale
    lost = (srae.decode(values) - features) / srae.feature_scale
    return Terms(
        faithfulness=missed.square().sum(1).mean(),
        reconstruction=torch.log1p(q * lost.square().mean(0)).mean(),
        pull_away=pull_away(values),
    )


def pull_away(values: Tensor) -> Tensor:
    """Returns the mean squared cosine between x-features (images, x-features); 0 if there is only one."""
    count = values.shape[1]
    if count < 2:
        return values.sum() * 0
    directions = F.normalize(values, dim=0, eps=TINY)
    cosines = directions.T @ directions
    apart = cosines - torch.diag(torch.diagonal(cosines))
    return apart.square().sum() / (count * (count - 1))

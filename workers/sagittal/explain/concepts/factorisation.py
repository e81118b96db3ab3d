"""X-features by non-negative factorisation: a method beside the published loss, for layers of rectified units.

The features of an image are a sum of a few non-negative parts, as in CRAFT (Fel and others, CVPR 2023), which
factorises the features of crops: request them by `views`. Multiplicative updates find the parts (Lee and Seung, Nature,
1999), without regard to the outputs. A part adds and never subtracts: what the layer keeps apart is seldom mixed in one
x-feature. Values of x-features are the least-squares coefficients of the parts, and the readout is the least-squares
prediction of the outputs from them. The result is an SRAE of linear maps.
"""

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from sagittal.explain.concepts.features import UnfitImages
from sagittal.explain.concepts.srae import SRAE, TINY, Terms, loss_terms
from sagittal.explain.concepts.training import Examples, FitSettings, by_effect, transform
from sagittal.explain.problem import derive_seed

NEGATIVE = 0.01
"""Largest share of negative values in the squares of the features."""


class Factorisation:
    """A factorisation that can be stopped and resumed after any update of parts and weights, which is an epoch."""

    def __init__(self, data: Examples, settings: FitSettings, seed: int, restored: Mapping[str, Tensor]) -> None:
        """Starts, or resumes from the state of an earlier attempt.

        Raises:
            UnfitImages: the features are not non-negative.
        """
        lost = data.features.clamp(max=0).square().sum()
        if float(lost) > NEGATIVE * float(data.features.square().sum()):
            raise UnfitImages(
                "the layer has negative features, which a non-negative factorisation cannot explain: choose a layer "
                "after rectified units, or the method srae"
            )
        self._data, self._settings = data, settings
        self._features = data.features.clamp(min=0)
        count = settings.concepts
        generator = torch.Generator().manual_seed(derive_seed(seed, "factorisation"))
        drawn = torch.randperm(len(data), generator=generator)[:count].to(self._features.device)
        size = self._features.mean().clamp(min=TINY)
        self.epoch = int(restored.get("epoch", 0))
        self._parts = restored.get("parts", self._features[drawn] + 0.1 * size)
        start = torch.rand(len(data), count, generator=generator).to(self._features)
        self._weights = restored.get("weights", start)
        self.terms: Terms | None = None
        """Terms of the published loss after the last epoch; the factorisation does not minimise them."""

    @property
    def state(self) -> Mapping[str, Tensor]:
        """Everything that later epochs depend on."""
        return {**self.result, "weights": self._weights}

    @property
    def result(self) -> Mapping[str, Tensor]:
        """The remaining state when the fit is done."""
        return {"epoch": torch.tensor(self.epoch), "parts": self._parts}

    @property
    def done(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch >= self._settings.epochs

    def run(self, seconds: float) -> None:
        """Runs epochs for this time, at least one."""
        until = time.monotonic() + seconds
        while not self.done:
            self._step()
            if time.monotonic() >= until:
                break
        srae = self._as_network()
        with torch.no_grad():
            self.terms = loss_terms(srae, self._data.features, self._data.outputs, q=self._settings.q)

    def finish(self) -> SRAE:
        """Returns the parts as a network: x-features of equal length, the one with the largest effect first."""
        srae = self._as_network()
        with torch.no_grad():
            lengths = srae.encode(self._data.features).square().mean(0).sqrt().clamp(min=TINY)
            transform(srae, torch.diag(1 / lengths))
            transform(srae, torch.eye(len(lengths)).to(lengths)[by_effect(srae, self._data.features)])
        return srae

    def _step(self) -> None:
        features, parts, weights = self._features, self._parts, self._weights
        weights = weights * (features @ parts.T) / (weights @ (parts @ parts.T) + TINY)
        parts = parts * (weights.T @ features) / ((weights.T @ weights) @ parts + TINY)
        self._parts, self._weights = parts, weights
        self.epoch += 1

    def _as_network(self) -> SRAE:
        """Returns the network whose x-features are the least-squares coefficients of the parts."""
        features, outputs, parts = self._data.features, self._data.outputs, self._parts
        srae = SRAE(features.shape[1], len(parts), outputs.shape[1], hidden=1).to(features)
        with torch.no_grad():
            for parameter in srae.parameters():
                parameter.zero_()
            srae.feature_mean.copy_(features.mean(0))
            srae.feature_scale.copy_((features - srae.feature_mean).square().mean().sqrt())
            srae.output_scale.copy_((outputs - outputs.mean(0)).square().mean().sqrt())
            reading = torch.linalg.pinv(parts.double())
            srae.encoder.direct.weight.copy_(reading.T * srae.feature_scale)
            srae.encoder.direct.bias.copy_(srae.feature_mean.double() @ reading)
            srae.decoder.direct.weight.copy_(parts.T / srae.feature_scale)
            srae.decoder.direct.bias.copy_(-srae.feature_mean / srae.feature_scale)
            values = srae.encode(features).double()
            # The predicted outputs have no constant, so that an x-feature of 0 contributes nothing.
            srae.readout.copy_(torch.linalg.lstsq(values, (outputs / srae.output_scale).double()).solution)
        return srae

"""X-features as independent components of the layer's positions: a method beside the published loss.

A part of an object is seen at few positions of a layer. Directions in which positions are seldom active therefore
separate parts, also if the class needs any one of them. FastICA (Hyvärinen, 1999) finds these directions among the
strongest principal components of the positions, without regard to the outputs. The features of an image are the mean
over its positions, so the same directions are its x-features. The readout is the least-squares prediction of the
outputs from them. The result is an SRAE of linear maps.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from sagittal.explain.concepts.features import UnfitImages
from sagittal.explain.concepts.srae import SRAE, TINY, loss_terms
from sagittal.explain.concepts.training import Examples, FitSettings, Training, arrange, fit_linear_part
from sagittal.explain.problem import derive_seed

ROWS = 20_000
"""Largest number of positions that directions are found on: a random choice of them."""


class Components(Training):
    """A search for independent components that can be stopped and resumed after any iteration, which is an epoch."""

    def __init__(self, data: Examples, settings: FitSettings, seed: int, restored: Mapping[str, Tensor]) -> None:
        """Starts, or resumes from the state of an earlier attempt.

        Raises:
            UnfitImages: the layer has fewer features than there should be x-features.
        """
        width = data.features.shape[1]
        if settings.concepts > width:
            raise UnfitImages(
                f"the layer has {width} features, fewer than {settings.concepts} x-features: ask for fewer"
            )
        super().__init__(data, settings, restored)
        generator = torch.Generator().manual_seed(derive_seed(seed, "components"))
        chosen = torch.randperm(len(data.positions), generator=generator)[:ROWS]
        positions = data.positions[chosen.to(data.positions.device)].double()
        self._mean = positions.mean(0)
        self._whitening = _whitening(positions - self._mean, settings.concepts)
        self._white = (positions - self._mean) @ self._whitening
        drawn = torch.randn(settings.concepts, settings.concepts, generator=generator, dtype=torch.float64)
        self._rotation = restored.get("rotation", torch.linalg.qr(drawn).Q).to(self._white)

    @property
    def state(self) -> Mapping[str, Tensor]:
        """Everything that later epochs depend on."""
        return {"epoch": torch.tensor(self.epoch), "rotation": self._rotation}

    @property
    def result(self) -> Mapping[str, Tensor]:
        """The remaining state when the fit is done."""
        return self.state

    def run(self, seconds: float) -> None:
        """Runs iterations for this time, at least one; the search does not minimise the terms of the published loss."""
        super().run(seconds)
        with torch.no_grad():
            self.terms = loss_terms(self._as_network(), self._data.features, self._data.outputs, q=self._settings.q)

    def finish(self) -> SRAE:
        """Returns the components as a network: of equal length, the one with the largest effect first."""
        srae = self._as_network()
        arrange(srae, self._data.features)
        return srae

    def _step(self) -> None:
        """Makes one fixed-point iteration for all directions, which stay orthogonal."""
        active = torch.tanh(self._white @ self._rotation.T)
        slope = (1 - active.square()).mean(0)
        moved = active.T @ self._white / len(self._white) - slope.unsqueeze(1) * self._rotation
        left, _, right = torch.linalg.svd(moved, full_matrices=False)
        self._rotation = left @ right
        self.epoch += 1

    def _as_network(self) -> SRAE:
        """Returns the network whose x-features are the components of an image's features."""
        features, outputs = self._data.features, self._data.outputs
        directions = self._whitening @ self._rotation.T
        srae = SRAE(features.shape[1], directions.shape[1], outputs.shape[1], hidden=1).to(features)
        with torch.no_grad():
            for parameter in srae.parameters():
                parameter.zero_()
        fit_linear_part(srae, directions, features, outputs)
        return srae


def _whitening(centred: Tensor, count: int) -> Tensor:
    """Returns the map (features, count) to the strongest principal components, each of unit variance."""
    spread, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
    least = TINY * float(spread[-1]) + 1e-30
    strongest: Tensor = directions[:, -count:] / spread[-count:].clamp(min=least).sqrt()
    return strongest

"""A fitted explanation network, and a model whose outputs are its x-features."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from sagittal.explain.attribution.layers import hooked
from sagittal.explain.concepts.features import flat, layer_features
from sagittal.explain.concepts.srae import SRAE


@dataclass(frozen=True, slots=True, eq=False)
class FittedConcepts:
    """The result of a fit that explanations by concepts use."""

    layer: str
    """The layer that it reads."""
    targets: Sequence[int]
    """The classes whose outputs it predicts."""
    srae: SRAE
    error: float
    """Mean absolute difference between its output and the model's on held-out images."""
    spread: Sequence[float]
    """Standard deviation of each x-feature over the images of the fit."""
    names: Sequence[str] = field(default_factory=tuple)
    """Names of the x-features; empty for none."""
    merged_into: Sequence[int] = field(default_factory=tuple)
    """For each x-feature, the index of the x-feature that it is shown together with; its own index for none."""

    def name(self, index: int) -> str:
        """Returns the name of an x-feature; empty if it has none."""
        return self.names[index] if self.names else ""

    def groups(self) -> Sequence[tuple[int, Sequence[int]]]:
        """Returns the groups of x-features that are shown together, by the first of each."""
        merged = self.merged_into or range(self.srae.x_features)
        heads = sorted({self._head(merged, index) for index in range(self.srae.x_features)})
        members = range(self.srae.x_features)
        return [(head, [index for index in members if self._head(merged, index) == head]) for head in heads]

    @staticmethod
    def _head(merged: Sequence[int], index: int) -> int:
        for _ in merged:
            if merged[index] == index:
                return index
            index = merged[index]
        return index


class XFeatures(nn.Module):
    """Maps images (n, 3, height, width) to x-features (n, x-features)."""

    def __init__(self, model: nn.Module, fitted: FittedConcepts) -> None:
        """Puts an explanation network behind a layer of a model; the model itself is unchanged."""
        super().__init__()
        self.model = model
        self.srae = fitted.srae
        self._layer = fitted.layer

    def forward(self, images: Tensor) -> Tensor:
        """Returns the values of the x-features."""
        caught: list[Tensor] = []

        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            caught.append(output)

        with hooked({self.model.get_submodule(self._layer): hook}):
            self.model(images)
        return self.srae.encode(flat(caught[-1], (images.shape[-2], images.shape[-1])))


def read_image(model: nn.Module, fitted: FittedConcepts, image: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the values (x-features,) of an image (3, height, width) and the model's outputs (targets,)."""
    features, _, outputs = layer_features(model, fitted.layer, image.unsqueeze(0))
    return fitted.srae.encode(features)[0], outputs[0, list(fitted.targets)]

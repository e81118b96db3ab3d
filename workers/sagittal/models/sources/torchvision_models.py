"""Architectures of torchvision, by name."""

import importlib
from typing import Any

from pydantic import Field

from sagittal.models.sources.access import Access
from sagittal.models.sources.files import check_sum, open_weights
from sagittal.models.sources.source import ModelUnavailable, Source, Sourced, seeded
from sagittal.models.sources.weights import Weights, load_weights


class Torchvision(Source):
    """A torchvision architecture with weights from a file, or random weights from a seed if no file is named."""

    model: str
    """Name in `torchvision.models.list_models`, such as `resnet50`."""
    weights: Weights | None = None
    """File of weights. By default random weights."""
    preset: str = ""
    """Name of torchvision's weights that the file must contain, such as `IMAGENET1K_V2`; it is checked against
    torchvision's own checksum. Nothing is downloaded."""
    seed: int = Field(default=0, ge=0)
    """Seed of random weights."""
    classes: int = Field(default=1000, ge=1)
    """Number of classes of the last layer."""

    def load(self, access: Access) -> Sourced:
        """Returns the model. Raises ModelUnavailable."""
        models: Any = importlib.import_module("torchvision.models")
        if self.model not in models.list_models(module=models):
            raise ModelUnavailable(
                f"source.model: torchvision has no classifier {self.model!r}; "
                'python -c "import torchvision; print(torchvision.models.list_models())" lists them'
            )
        if self.preset:
            self._check_preset(models, access)
        with seeded(self.seed):
            module = models.get_model(self.model, weights=None, num_classes=self.classes)
        if self.weights is not None:
            load_weights(module, self.weights, access)
        return Sourced(module)

    def _check_preset(self, models: Any, access: Access) -> None:
        known = {preset.name: preset for preset in models.get_model_weights(self.model)}
        if self.preset not in known:
            raise ModelUnavailable(
                f"source.preset: {self.model} has no weights {self.preset!r}; it has {', '.join(known)}"
            )
        url = known[self.preset].url
        if self.weights is None:
            raise ModelUnavailable(f"source.weights: preset {self.preset} requires its file; download it from {url}")
        # The name of a torchvision file ends with the first digits of its SHA-256.
        check_sum(open_weights(self.weights, access), url.rpartition("-")[2].partition(".")[0])

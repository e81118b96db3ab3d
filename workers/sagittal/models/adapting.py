"""What stands between the engine, which hands over images channels first, and a model that wants them otherwise."""

import importlib

import torch
from torch import Tensor, nn

from sagittal.core.entries import ModelEntry, Preprocessing
from sagittal.engine.black_box import BlackBox
from sagittal.models.sources import ModelUnavailable


class ChannelsLastInput(nn.Module):
    """A model that takes (n, height, width, 3), for images of (n, 3, height, width)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Returns what the model says of images, (n, classes)."""
        return self.model(images.permute(0, 2, 3, 1))  # type: ignore[no-any-return]


def adapt(module: nn.Module, preprocessing: Preprocessing) -> nn.Module:
    """Returns a module that takes channels first; where that takes a wrapper, layers are named `model.` and so on."""
    if preprocessing.layout == "NCHW":
        return module
    if isinstance(module, BlackBox):
        raise ModelUnavailable("preprocessing.layout: a model that only answers takes NCHW; say NHWC in its source")
    return ChannelsLastInput(module)


def resolve_preset(preprocessing: Preprocessing) -> Preprocessing:
    """Returns preprocessing with what its preset says of size, cropping and scale. Raises ModelUnavailable."""
    if not preprocessing.preset:
        return preprocessing
    models = importlib.import_module("torchvision.models")
    try:
        transform = models.get_weight(preprocessing.preset).transforms()
        said = {
            "input_size": int(transform.crop_size[0]),
            "resize": int(transform.resize_size[0]),
            "interpolation": str(transform.interpolation.value),
            "mean": tuple(transform.mean),
            "std": tuple(transform.std),
        }
    except (ValueError, AttributeError) as error:
        raise ModelUnavailable(
            f"preprocessing.preset: torchvision has no classification weights {preprocessing.preset!r}; give a name "
            f"such as ResNet50_Weights.IMAGENET1K_V2 ({error})"
        ) from error
    return preprocessing.model_copy(update=said)


def choose_place(entry: ModelEntry, device: torch.device) -> torch.device:
    """Returns where a model runs on a worker with this device. Raises ModelUnavailable for a wish it cannot grant."""
    if entry.device.kind == "cpu":
        return torch.device("cpu")
    if entry.device.kind == "cuda" and device.type != "cuda":
        raise ModelUnavailable(f"the model wishes to run on cuda, and this worker runs on {device}; serve it elsewhere")
    return device

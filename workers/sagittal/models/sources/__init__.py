"""Sources of models: a table of kinds, each with settings and a loader.

The operator's settings limit what a source may access (see `access`); a model file or a registration names things
within these limits. Nothing is ever unpickled, and callers of explanations cannot name sources.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from sagittal.models.sources.access import EVERYTHING, Access
from sagittal.models.sources.efficientnet_lite import EfficientNetLite
from sagittal.models.sources.onnx_models import Onnx
from sagittal.models.sources.python_models import Python
from sagittal.models.sources.remote_models import Remote
from sagittal.models.sources.saved_programs import TorchExport, TorchScript
from sagittal.models.sources.source import ModelUnavailable, Source, Sourced
from sagittal.models.sources.timm_models import Timm
from sagittal.models.sources.torchvision_models import Torchvision

__all__ = ["EVERYTHING", "SOURCES", "Access", "ModelUnavailable", "Sourced", "load_source"]

SOURCES: Mapping[str, type[Source]] = {
    "efficientnet-lite": EfficientNetLite,
    "onnx": Onnx,
    "python": Python,
    "remote": Remote,
    "timm": Timm,
    "torch-export": TorchExport,
    "torchscript": TorchScript,
    "torchvision": Torchvision,
}
"""Settings of each kind, by the `kind` in model files."""


def load_source(source: Mapping[str, Any], access: Access = EVERYTHING) -> Sourced:
    """Returns the model of a source such as `{kind = "torchvision", model = "resnet50"}`. Raises ModelUnavailable."""
    return read_source(source).load(access)


def read_source(source: Mapping[str, Any]) -> Source:
    """Returns the checked settings of a source. Raises ModelUnavailable with the name of the field."""
    settings = dict(source)
    kind = settings.pop("kind", None)
    if kind not in SOURCES:
        raise ModelUnavailable(f"source.kind is {kind!r}; give one of {', '.join(sorted(SOURCES))}")
    try:
        return SOURCES[kind].model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in ("source", *first["loc"]))
        raise ModelUnavailable(f"{field}: {first['msg']} (source of kind {kind!r})") from error

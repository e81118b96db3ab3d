"""Loads weights into an architecture: only tensors are read, and each must fit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BeforeValidator, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sagittal.models.sources.access import Access
from sagittal.models.sources.files import FileReference, check_archive, open_weights, path_alone
from sagittal.models.sources.source import ModelUnavailable

COUNTERS = "num_batches_tracked"
"""Endings of tensor names that do not matter in evaluation mode, and that older files lack."""


class WeightsReference(FileReference):
    """A file of weights, and the location of the tensors in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str = ""
    """Key of the tensors in a training checkpoint, such as `state_dict`."""
    prefix: str = ""
    """Prefix of the tensor names beyond the architecture's, such as `module.`; other tensors are ignored."""


def load_weights(module: nn.Module, reference: WeightsReference, access: Access) -> None:
    """Loads a module's weights. Raises ModelUnavailable with the name of the first tensor that does not fit."""
    path = open_weights(reference, access)
    fit_tensors(module, _select(read_tensors(path), reference, path), path)


def read_tensors(path: Path) -> Mapping[str, object]:
    """Returns the content of a file of weights by name, without running code in it."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ModelUnavailable(f"the weights {path} cannot be read: {error}; is it a safetensors file?") from error
    except ModelUnavailable:
        raise
    except Exception as error:
        # PyTorch's message about a refused pickle advises to trust it.
        raise ModelUnavailable(
            f"the weights {path} cannot be read: {type(error).__name__}; expected safetensors, or a state dict of "
            "tensors written by torch.save"
        ) from error
    if not isinstance(state, Mapping):
        raise ModelUnavailable(f"the weights {path} hold {type(state).__name__}; expected tensors by name")
    return state


def _select(state: Mapping[str, object], reference: WeightsReference, path: Path) -> Mapping[str, object]:
    if reference.key:
        inner = state.get(reference.key)
        if not isinstance(inner, Mapping):
            raise ModelUnavailable(f"the weights {path} have no tensors under {reference.key!r}, but {_some(state)}")
        state = inner
    prefix = reference.prefix
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def fit_tensors(module: nn.Module, state: Mapping[str, object], path: Path) -> None:
    """Copies tensors into a module. Raises ModelUnavailable with the first that does not fit, and both shapes."""
    expected = module.state_dict()
    for name, wanted in expected.items():
        _check_tensor(name, wanted, state, path)
    for name, tensor in state.items():
        if name not in expected and not name.endswith(COUNTERS):
            shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ModelUnavailable(
                f"the weights {path} have {name} of shape {shape}, which the architecture lacks; check the architecture"
            )
    module.load_state_dict({name: state[name] for name in expected if name in state}, strict=False)


def _check_tensor(name: str, wanted: Tensor, state: Mapping[str, object], path: Path) -> None:
    found = state.get(name)
    if name.endswith(COUNTERS) and found is None:
        return
    if not isinstance(found, Tensor):
        raise ModelUnavailable(
            f"the weights {path} lack the tensor {name}, of shape {tuple(wanted.shape)}: they have {_some(state)}. "
            "Check the architecture, or set `key` and `prefix` if the tensors have other names."
        )
    if found.shape != wanted.shape:
        raise ModelUnavailable(
            f"the weights {path} have {name} of shape {tuple(found.shape)}, the architecture requires "
            f"{tuple(wanted.shape)}; check the architecture and its number of classes"
        )


def _some(state: Mapping[str, object]) -> str:
    names = list(map(str, state))
    return (", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")) if names else "nothing"


Weights = Annotated[WeightsReference, BeforeValidator(path_alone)]
"""The type of a setting that names weights: a path, or a table."""

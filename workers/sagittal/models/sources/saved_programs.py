"""Models saved with their code: TorchScript and `torch.export`. Loading them can run that code.

They are loaded only from the directories that the operator lists for such files.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sagittal.models.sources.access import MIB, Access
from sagittal.models.sources.files import Reference, check_archive, open_code
from sagittal.models.sources.source import ModelUnavailable, Source, Sourced

CODE_BYTES = 64 * MIB
"""Maximum size of the code in an archive, in bytes."""


class SavedProgram(nn.Module):
    """A program saved in evaluation mode, which it may be unable to change."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def train(self, mode: bool = True) -> "SavedProgram":
        """Does nothing: the program keeps its saved mode."""
        self.training = mode
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Returns the program's outputs for images (n, 3, height, width)."""
        outputs: Tensor = self.program(images)
        return outputs


class TorchScript(Source):
    """A TorchScript file, with gradients and without layers."""

    file: Reference
    """The file, in a directory for files that can run code."""

    def load(self, access: Access) -> Sourced:
        """Returns the model. Raises ModelUnavailable."""
        return Sourced(SavedProgram(_loaded(open_code(self.file, access), "TorchScript", _load_script)))


class TorchExport(Source):
    """A `torch.export` archive (.pt2), with gradients and without layers."""

    file: Reference
    """The file, in a directory for files that can run code."""

    def load(self, access: Access) -> Sourced:
        """Returns the model. Raises ModelUnavailable."""
        return Sourced(SavedProgram(_loaded(open_code(self.file, access), "a torch.export archive", _load_export)))


def _loaded(path: Path, what: str, loader: Callable[[Path], nn.Module]) -> nn.Module:
    check_archive(path, code_bytes=CODE_BYTES)
    try:
        return loader(path)
    except Exception as error:  # the loaders may raise anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        raise ModelUnavailable(
            f"{path} cannot be loaded as {what}: {type(error).__name__}: {reason}; check that it is undamaged and of "
            "this kind"
        ) from error


def _load_script(path: Path) -> nn.Module:
    with warnings.catch_warnings():
        # PyTorch's advice to export the model again is not for the operator who serves it.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        module: nn.Module = torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
    return module


def _load_export(path: Path) -> nn.Module:
    program: Any = torch.export.load(path)
    module: nn.Module = program.module()
    return module

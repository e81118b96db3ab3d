"""Models that were saved with their code, TorchScript and `torch.export`: loading them can run it.

They come from the directories that the operator lists for such files, and from nowhere else.
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
"""Most bytes of code in an archive."""


class SavedProgram(nn.Module):
    """A program that was saved in evaluation mode, which it may not be able to change."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def train(self, mode: bool = True) -> "SavedProgram":
        """Leaves the program as it was saved."""
        self.training = mode
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Returns what the program makes of images (n, 3, height, width)."""
        outputs: Tensor = self.program(images)
        return outputs


class TorchScript(Source):
    """A TorchScript file, with gradients and without layers."""

    file: Reference
    """The file, under a directory for files that can run code."""

    def load(self, access: Access) -> Sourced:
        """Returns the model. Raises ModelUnavailable."""
        return Sourced(SavedProgram(_loaded(open_code(self.file, access), "TorchScript", _load_script)))


class TorchExport(Source):
    """A `torch.export` archive (.pt2), with gradients and without layers."""

    file: Reference
    """The file, under a directory for files that can run code."""

    def load(self, access: Access) -> Sourced:
        """Returns the model. Raises ModelUnavailable."""
        return Sourced(SavedProgram(_loaded(open_code(self.file, access), "a torch.export archive", _load_export)))


def _loaded(path: Path, what: str, loader: Callable[[Path], nn.Module]) -> nn.Module:
    check_archive(path, code_bytes=CODE_BYTES)
    try:
        return loader(path)
    except Exception as error:  # the loaders raise whatever the file makes them
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        raise ModelUnavailable(
            f"{path} cannot be loaded as {what}: {type(error).__name__}: {reason}; is it damaged, or of another kind?"
        ) from error


def _load_script(path: Path) -> nn.Module:
    with warnings.catch_warnings():
        # PyTorch advises to export anew, which is not for the one who serves the model to do.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        module: nn.Module = torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
    return module


def _load_export(path: Path) -> nn.Module:
    program: Any = torch.export.load(path)
    module: nn.Module = program.module()
    return module

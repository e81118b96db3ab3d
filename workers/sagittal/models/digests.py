"""What tells a model from others: digests over its weights, whatever file they came in."""

import hashlib
from typing import Any

import torch
from torch import nn

from sagittal.core.entries import ModelEntry
from sagittal.engine.black_box import BlackBox


def model_digest(module: nn.Module, entry: ModelEntry) -> str:
    """Returns SHA-256 over names, shapes and values of all weights, and over preprocessing and output."""
    digest = hashlib.sha256(f"{entry.preprocessing.model_dump_json()} {entry.output} {type(module)}".encode())
    _digest_weights(digest, module)
    return digest.hexdigest()


def weights_digest(module: nn.Module) -> str:
    """Returns SHA-256 over names, shapes, types and values of all weights, whatever file they came in."""
    digest = hashlib.sha256()
    _digest_weights(digest, module)
    return digest.hexdigest()


def _digest_weights(digest: Any, module: nn.Module) -> None:
    if isinstance(module, BlackBox):
        digest.update(module.identity.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())

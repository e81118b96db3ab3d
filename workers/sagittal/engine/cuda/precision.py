"""Reduced precision of a search: weights converted once, and a check against full precision."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sagittal.engine.scoring import TOP, Mode, Pass

LARGEST_DRIFT = 0.01
"""Largest difference of a probability on the probe at which a model may run in reduced precision."""

_CONVERTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers that autocast runs in reduced precision. Norms stay in full precision."""


def require_full_precision() -> None:
    """Makes float32 mean float32, and kernels deterministic, in this process.

    Convolutions on CUDA otherwise round their inputs to 10 bits (TF32), and may add gradients in the order of threads.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def reduced_type(device: torch.device) -> torch.dtype:
    """Returns the reduced precision that a CUDA device computes in by itself: bfloat16, or float16 before Ampere."""
    major, _ = torch.cuda.get_device_capability(device)
    return torch.bfloat16 if major >= 8 else torch.float16


def reduced_copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Returns a copy whose weights of convolutions and linear layers are in reduced precision, to be run by autocast.

    Autocast converts frozen weights again in every pass; converted weights stay as they are.
    """
    reduced = copy.deepcopy(module)
    for layer in reduced.modules():
        if isinstance(layer, _CONVERTED):
            layer.to(dtype)
    return reduced


@dataclass(frozen=True, slots=True)
class Drift:
    """How far reduced precision moves the scores of a model."""

    probability: float
    """Largest difference of a probability; NaN if one is not finite."""
    same_class: int
    """Number of images with the same top class."""
    images: int
    finite: bool
    """Whether all gradients are finite."""

    @property
    def refusal(self) -> str:
        """Why the model must run in full precision; empty if it need not."""
        if not self.finite:
            return "gradients are not finite in reduced precision"
        if not self.probability <= LARGEST_DRIFT:
            return f"reduced precision changes a probability by {self.probability:.2g}, more than {LARGEST_DRIFT:g}"
        return ""


def measure_drift(score: Pass, inputs: Tensor, *, gradient: bool) -> Drift:
    """Compares reduced with full precision.

    Args:
        score: The pass of a model that has a reduced precision.
        inputs: Of shape (n, 3, height, width).
        gradient: Whether the model returns gradients.
    """
    targets = torch.full((len(inputs),), TOP, device=inputs.device)
    full, reduced = (score(inputs, targets, Mode(gradient=gradient, reduced=each)) for each in (False, True))
    apart = (full.probabilities - reduced.probabilities).abs().max()
    same = full.probabilities.argmax(-1) == reduced.probabilities.argmax(-1)
    finite = reduced.of_inputs is None or bool(torch.isfinite(reduced.of_inputs).all())
    return Drift(float(apart), int(same.sum()), len(inputs), finite)

"""Models that only answer: they run elsewhere, or in a runtime that shows neither gradients nor layers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sagittal.engine.evaluator import EvaluationFailed, TorchEvaluator
from sagittal.engine.requests import Inspect

Images = NDArray[np.float32]
"""Of shape (n, 3, height, width), normalised as the model takes them."""

Outputs = NDArray[np.float32]
"""Of shape (n, classes)."""


class ModelUnreachable(EvaluationFailed):
    """The model runs elsewhere and cannot be reached now: the same request may succeed later."""


class BlackBox(nn.Module, ABC):
    """A model that maps images to outputs and shows nothing else.

    Attributes:
        where: Where it runs, for people, such as `on server triton`.
        identity: What tells it from other models, for its digest.
        batch_size: Images in a batch that suit it; 0 lets the worker find out.
        in_process: Whether it runs in this process, for this caller alone, so that what is measured of it stays so.
    """

    def __init__(self, *, where: str, identity: str, batch_size: int = 0, in_process: bool = False) -> None:
        super().__init__()
        self.where = where
        self.identity = identity
        self.batch_size = batch_size
        self.in_process = in_process

    @abstractmethod
    def answer(self, images: Images) -> Outputs:
        """Returns the outputs of images. Raises EvaluationFailed."""

    def forward(self, images: Tensor) -> Tensor:
        """Returns the outputs (n, classes) of images (n, 3, height, width), on the images' device, without gradient."""
        outputs = self.answer(np.ascontiguousarray(images.detach().cpu().numpy(), dtype=np.float32))
        return torch.from_numpy(np.array(outputs, dtype=np.float32)).to(images.device)


@dataclass(slots=True, kw_only=True, eq=False)
class BlackBoxEvaluator(TorchEvaluator):
    """Composes, batches and scores as for any model, and lets a black box answer."""

    supports_gradients: bool = False

    def inspect(self, request: Inspect[object]) -> object:
        """Raises EvaluationFailed: there are no layers to look into."""
        raise EvaluationFailed("the model only answers: its layers cannot be looked into")

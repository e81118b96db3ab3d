"""Evaluates masked images on one model and device: composition, forward pass, scores and gradients."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sagittal.engine.composition import Composed, Composer, Part
from sagittal.engine.requests import Inspect, ModelView, Scores


class Output(Enum):
    """Meaning of a model's output."""

    LOGITS = "logits"
    """One class out of many: the score is the softmax of logits."""
    PROBABILITIES = "probabilities"
    """Probabilities that sum to one."""
    MULTI_LABEL_LOGITS = "multi-label-logits"
    """Independent labels: the score is the sigmoid of each logit."""
    MULTI_LABEL_PROBABILITIES = "multi-label-probabilities"
    """Independent labels, each between zero and one."""


PROBABILITIES: dict[Output, Callable[[Tensor], Tensor]] = {
    Output.LOGITS: lambda outputs: outputs.float().softmax(-1),
    Output.PROBABILITIES: lambda outputs: outputs.float(),
    Output.MULTI_LABEL_LOGITS: lambda outputs: outputs.float().sigmoid(),
    Output.MULTI_LABEL_PROBABILITIES: lambda outputs: outputs.float(),
}


class EvaluationFailed(Exception):
    """The model raised an exception or returned invalid scores: the requesting job fails, others continue."""


class Evaluator(Protocol):
    """Scores masked images."""

    supports_gradients: bool

    def evaluate(self, parts: Sequence[Part]) -> list[Scores]:
        """Scores parts as one batch, all with gradient or all without. Raises EvaluationFailed."""
        ...

    def inspect(self, request: Inspect[object]) -> object:
        """Runs a call with the model. Raises EvaluationFailed."""
        ...


@dataclass(slots=True, kw_only=True, eq=False)
class TorchEvaluator:
    """A PyTorch model on a device.

    Every row of a request has the same noise in every evaluation. A result depends neither on how its rows were divided
    into batches nor, beyond rounding, on the other rows.
    """

    module: nn.Module
    """Maps (n, 3, height, width) to (n, classes); in evaluation mode, with frozen parameters, on the device."""
    device: torch.device
    output: Output = Output.LOGITS
    inspected: nn.Module | None = None
    """The model with its own layers, for `Inspect`; None for the same module."""
    channels_last: bool = False
    autocast: torch.dtype | None = None
    """Reduced precision of requests that are not exact, on CUDA only; None for full precision."""
    supports_gradients: bool = True
    classes: int = 0
    """Number of classes; 0 skips the check."""
    quantum: int = 1
    """Batches are padded to a multiple of this. Kernels sum in another order for other batch sizes. If a quantum is
    found at which they do not on this machine (see `sagittal.models.row_equality`), a result is bit-identical in every
    batch."""
    pads_small: bool = True
    """Whether batches smaller than the quantum are also padded. If not, each must hold a single request; an engine
    whose `unit` is the quantum guarantees this."""
    buckets: tuple[int, ...] = ()
    """Sizes to which batches are further padded, for models that are compiled for each size; empty for others."""

    _composer: Composer = field(init=False)

    def __post_init__(self) -> None:
        self._composer = Composer(self.device, self._layout)

    @property
    def unit(self) -> int:
        """The multiple in which rows must share a batch; see `Engine`."""
        return 1 if self.pads_small else self.quantum

    @property
    def _layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def evaluate(self, parts: Sequence[Part]) -> list[Scores]:
        """Scores parts as one batch, all with gradient or all without. Raises EvaluationFailed."""
        gradient = parts[0].request.gradient
        with torch.inference_mode(not gradient), torch.set_grad_enabled(gradient):
            inputs, composed = self._compose(parts)
            inputs.requires_grad_(gradient)
            exact = any(part.request.exact for part in parts)
            probabilities = self._probabilities(self._run(inputs, exact)[: sum(part.rows for part in parts)])
            targets = self._targets(parts, probabilities)
            gradients = self._gradients(targets, inputs, composed) if gradient else [None] * len(parts)
            return self._split(parts, probabilities.detach(), targets.detach(), gradients)

    def inspect(self, request: Inspect[object]) -> object:
        """Runs a call with the model. Raises EvaluationFailed."""
        module = self.module if self.inspected is None else self.inspected
        with torch.enable_grad():
            return request.call(ModelView(module, PROBABILITIES[self.output], request.subject))

    def _compose(self, parts: Sequence[Part]) -> tuple[Tensor, list[Composed]]:
        """Returns the inputs of all parts as one batch, padded to the quantum, in the model's memory layout."""
        rows, size = sum(part.rows for part in parts), parts[0].request.subject.image.shape
        inputs = torch.empty((self._padded(rows), *size), device=self.device, memory_format=self._layout)
        composed, row = [], 0
        for part in parts:
            composed.append(self._composer.compose(part, inputs[row : row + part.rows]))
            row += part.rows
        inputs[rows:] = inputs[rows - 1]
        return inputs, composed

    def _padded(self, rows: int) -> int:
        """Returns the size of the batch that is run for a number of rows."""
        if self.buckets:
            return padded_size(rows, self.buckets)
        return rows if rows < self.quantum and not self.pads_small else rows + -rows % self.quantum

    @staticmethod
    def _gradients(targets: Tensor, inputs: Tensor, composed: Sequence[Composed]) -> list[Tensor]:
        """Returns the gradient of each part's targets with respect to its masks."""
        (of_inputs,) = torch.autograd.grad(targets.sum(), inputs)
        gradients, row = [], 0
        for one in composed:
            gradients.append(one.gradient(of_inputs[row : row + one.rows]))
            row += one.rows
        return gradients

    def _run(self, inputs: Tensor, exact: bool) -> Tensor:
        reduced = self.autocast is not None and not exact and self.device.type == "cuda"
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=reduced):
            outputs = self.module(inputs)
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(inputs):
            shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise EvaluationFailed(f"the model returned {shape} for {len(inputs)} images; expected (images, classes)")
        return outputs

    def _probabilities(self, outputs: Tensor) -> Tensor:
        if self.classes and outputs.shape[1] != self.classes:
            raise EvaluationFailed(f"the model returned {outputs.shape[1]} classes instead of {self.classes}")
        return PROBABILITIES[self.output](outputs)

    def _targets(self, parts: Sequence[Part], probabilities: Tensor) -> Tensor:
        classes = probabilities.detach().argmax(-1)
        row = 0
        for part in parts:
            if part.request.subject.target is not None:
                classes[row : row + part.rows] = part.request.subject.target
            row += part.rows
        return probabilities.gather(1, classes.unsqueeze(1)).squeeze(1)

    @staticmethod
    def _split(
        parts: Sequence[Part], probabilities: Tensor, targets: Tensor, gradients: Sequence[Tensor | None]
    ) -> list[Scores]:
        top_scores, top_classes = probabilities.max(-1)
        scores, row = [], 0
        for part, gradient in zip(parts, gradients, strict=True):
            rows = slice(row, row + part.rows)
            every = probabilities[rows] if part.request.probabilities else None
            scores.append(Scores(targets[rows], top_classes[rows], top_scores[rows], gradient, every))
            row += part.rows
        return scores


Images = NDArray[np.float32]
"""Of shape (n, 3, height, width), normalised for the model."""

Outputs = NDArray[np.float32]
"""Of shape (n, classes)."""


class ModelUnreachable(EvaluationFailed):
    """A remote model is unreachable now; the same request may succeed later."""


class BlackBox(nn.Module, ABC):
    """A model that maps images to outputs, without gradients or layers.

    Attributes:
        where: Location for messages, such as `on server triton`.
        identity: Identifies the model in its digest.
        batch_size: Recommended number of images in a batch; 0 lets the worker measure it.
        in_process: Whether it runs in this process for this caller alone, so that measurements of it stay valid.
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
    """Composes, batches and scores like any evaluator; a black box computes the outputs."""

    supports_gradients: bool = False

    def inspect(self, request: Inspect[object]) -> object:
        """Raises EvaluationFailed: there are no layers to inspect."""
        raise EvaluationFailed("the model returns only outputs: its layers cannot be inspected")


def bucket_sizes(batch_size: int, stretched: float) -> tuple[int, ...]:
    """Returns the sizes to which batches are padded: powers of two, a full batch and a stretched one."""
    sizes = {batch_size, int(batch_size * stretched)}
    size = 1
    while size < batch_size:
        sizes.add(size)
        size *= 2
    return tuple(sorted(sizes))


def padded_size(rows: int, buckets: Iterable[int]) -> int:
    """Returns the smallest bucket that holds the rows, or the number of rows if none does."""
    return min((size for size in buckets if size >= rows), default=rows)

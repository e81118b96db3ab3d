"""Evaluates masked images on one model and device: composition, forward pass, scores and gradients."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sagittal.engine.composition import Composed, Composer, Part
from sagittal.engine.cuda.graphs import Graphs
from sagittal.engine.requests import Inspect, ModelView, Scores
from sagittal.engine.scoring import TOP, Clock, Launched, Mode, NewSlot, Passed, Slot, pack, to_host


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


FLOAT16_SCALE = 1024.0
"""Factor of scores whose gradient is computed in float16."""


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

    On CUDA, batches run on a stream of their own, and `launch` returns before they end. Only masks that are on the host
    cross the bus for a batch, and its scores, once; images cross it once for each job.
    """

    module: nn.Module
    """Maps (n, 3, height, width) to (n, classes); in evaluation mode, with frozen parameters, on the device."""
    device: torch.device
    output: Output = Output.LOGITS
    inspected: nn.Module | None = None
    """The model with its own layers, for `Inspect`; None for the same module."""
    channels_last: bool = False
    autocast: torch.dtype | None = None
    """Reduced precision of requests that are not exact; None for full precision. Loading sets it on CUDA only."""
    reduced: nn.Module | None = None
    """The model with weights in reduced precision, for autocast only; None to convert weights in each pass."""
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
    """Sizes to which batches are further padded, for models that are compiled or captured for each size; empty for
    others."""
    graphs: Graphs | None = None
    """Captured passes for the sizes of `buckets`; None to launch each kernel of every pass."""

    _composer: Composer = field(init=False)
    _stream: "torch.cuda.Stream | None" = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._composer = Composer(self.device, self._layout)
        if self.device.type == "cuda":
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    @property
    def unit(self) -> int:
        """The multiple in which rows must share a batch; see `Engine`."""
        return 1 if self.pads_small else self.quantum

    @property
    def depth(self) -> int:
        """Number of batches that an engine should keep on the device: the next is prepared while one runs on CUDA."""
        return 2 if self.device.type == "cuda" else 1

    @property
    def composer(self) -> Composer:
        """Composes its inputs."""
        return self._composer

    @property
    def _layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def evaluate(self, parts: Sequence[Part]) -> list[Scores]:
        """Scores parts as one batch, all with gradient or all without. Raises EvaluationFailed."""
        return self.launch(parts).read()

    def launch(self, parts: Sequence[Part]) -> Launched:
        """Starts the evaluation of parts as one batch. Raises EvaluationFailed."""
        try:
            with self._computing() as caller:
                return self._launch(parts, caller)
        except torch.cuda.OutOfMemoryError:
            if self.graphs is not None:
                self.graphs.clear()  # smaller batches are captured again
            raise

    def inspect(self, request: Inspect[object]) -> object:
        """Runs a call with the model. Raises EvaluationFailed."""
        module = self.module if self.inspected is None else self.inspected
        with torch.enable_grad():
            return request.call(ModelView(module, PROBABILITIES[self.output], request.subject))

    def score(self, inputs: Tensor, targets: Tensor, mode: Mode) -> Passed:
        """Runs a pass.

        Args:
            inputs: Of shape (n, 3, height, width), in the model's memory layout.
            targets: Int64 of shape (n,): the class that is scored for each row, or `TOP`.
            mode: Precision, and whether the gradient with respect to the inputs is computed.
        """
        with torch.inference_mode(not mode.gradient), torch.set_grad_enabled(mode.gradient):
            leaf = inputs.detach().requires_grad_() if mode.gradient else inputs
            probabilities = self._probabilities(self._run(leaf, reduced=mode.reduced))
            classes = torch.where(targets < 0, probabilities.detach().argmax(-1), targets)
            scores = probabilities.gather(1, classes.unsqueeze(1)).squeeze(1)
            gradient = self._of_inputs(scores, leaf, mode) if mode.gradient else None
            return Passed(probabilities.detach(), scores.detach(), gradient)

    def slot(self, size: int, shape: torch.Size, mode: Mode) -> Slot:
        """Returns memory for a batch of a size, whose images have a shape (3, height, width)."""
        if self.graphs is not None and size in self.buckets and shape == self.graphs.shape:
            return self.graphs.slot(size, mode)
        inputs = torch.empty((size, *shape), device=self.device, memory_format=self._layout)
        return NewSlot(inputs, torch.empty(size, dtype=torch.int64, device=self.device), mode, self.score)

    @contextmanager
    def _computing(self) -> Iterator["torch.cuda.Stream | None"]:
        """Runs a block on the stream of batches, after the work of the caller's stream; yields the caller's stream."""
        if self._stream is None:
            yield None
            return
        caller = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            yield caller

    def _launch(self, parts: Sequence[Part], caller: "torch.cuda.Stream | None") -> Launched:
        exact, gradient = any(part.request.exact for part in parts), parts[0].request.gradient
        mode = Mode(gradient=gradient, reduced=self.autocast is not None and not exact)
        every = any(part.request.probabilities for part in parts)
        rows = sum(part.rows for part in parts)
        with torch.no_grad():
            clock = Clock(self.device)
            slot = self.slot(self._padded(rows), parts[0].request.subject.image.shape, mode)
            composed = self._compose(parts, slot)
            passed = slot.run()
            gradients = self._gradients(passed, composed)
            packed = to_host(pack(passed, rows, gradients, probabilities=every))
            clock.stop()
        if caller is not None:
            for each in gradients:
                if each is not None:
                    each.record_stream(caller)  # the explainer reads it there, after this stream has freed it
        return Launched(parts, gradients, packed, passed.probabilities.shape[1] if every else 0, clock)

    def _compose(self, parts: Sequence[Part], slot: Slot) -> list[Composed]:
        """Writes the inputs and targets of all parts into the slot, which has rows for padding."""
        composed, row = [], 0
        for part in parts:
            composed.append(self._composer.compose(part, slot.inputs[row : row + part.rows]))
            row += part.rows
        slot.inputs[row:] = slot.inputs[row - 1]
        slot.targets.copy_(self._composer.moved(_targets(parts, len(slot.targets))))
        return composed

    def _padded(self, rows: int) -> int:
        """Returns the size of the batch that is run for a number of rows."""
        if self.buckets:
            return padded_size(rows, self.buckets)
        return rows if rows < self.quantum and not self.pads_small else rows + -rows % self.quantum

    @staticmethod
    def _gradients(passed: Passed, composed: Sequence[Composed]) -> list[Tensor | None]:
        """Returns the gradient of each part's targets with respect to its masks; None without gradient."""
        if passed.of_inputs is None:
            return [None] * len(composed)
        gradients: list[Tensor | None] = []
        row = 0
        for one in composed:
            gradients.append(one.gradient(passed.of_inputs[row : row + one.rows]))
            row += one.rows
        return gradients

    def _of_inputs(self, scores: Tensor, inputs: Tensor, mode: Mode) -> Tensor:
        """Returns the gradient of the scores with respect to the inputs."""
        # Small gradients would vanish in float16.
        scale = FLOAT16_SCALE if mode.reduced and self.autocast is torch.float16 else 1.0
        (gradient,) = torch.autograd.grad(scores.sum() * scale if scale != 1 else scores.sum(), inputs)
        return gradient / scale if scale != 1 else gradient

    def _run(self, inputs: Tensor, *, reduced: bool) -> Tensor:
        module = self.reduced if reduced and self.reduced is not None else self.module
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=reduced, cache_enabled=False):
            outputs = module(inputs)
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(inputs):
            shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise EvaluationFailed(f"the model returned {shape} for {len(inputs)} images; expected (images, classes)")
        return outputs

    def _probabilities(self, outputs: Tensor) -> Tensor:
        if self.classes and outputs.shape[1] != self.classes:
            raise EvaluationFailed(f"the model returned {outputs.shape[1]} classes instead of {self.classes}")
        return PROBABILITIES[self.output](outputs)


def _targets(parts: Sequence[Part], size: int) -> Tensor:
    """Returns the class that each row of a batch is scored for; rows of padding are scored for their top class."""
    targets: list[int] = []
    for part in parts:
        target = part.request.subject.target
        targets += [TOP if target is None else target] * part.rows
    return torch.tensor(targets + [TOP] * (size - len(targets)))


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

"""A loaded model, ready for the engine, with its measured properties."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from sagittal.core.models import ModelEntry
from sagittal.engine import Engine
from sagittal.engine.evaluator import TorchEvaluator
from sagittal.engine.memo import ScoreMemo
from sagittal.engine.optimise import Step
from sagittal.models.checking import Check
from sagittal.models.row_equality import EQUAL_ROWS


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Properties of a model that were found at load."""

    classes: int
    supports_gradients: bool
    spatial_layers: tuple[str, ...]
    """Layers whose output has spatial positions, in order of execution."""
    feature_layers: tuple[str, ...]
    """Layers whose output is (n, features), in order of execution."""
    steps: tuple[Step, ...]
    """Steps that optimised it, and whether rows are equal in every batch."""
    batch_size: int
    evaluations_per_second: float
    gradient_evaluations_per_second: float
    refused: Mapping[str, str] = field(default_factory=dict)
    """Methods that are not defined for this model although it meets their needs, with the reason."""
    patch_grid: tuple[int, int] | None = None
    """Rows and columns of a transformer's patches."""
    input_limits: tuple[int, int] = (0, 0)
    """Smallest and largest side of inputs that the model accepted in tests, in pixels."""
    checks: tuple[Check, ...] = ()
    """Results of the self-check."""
    weights_digest: str = ""
    """SHA-256 over its weights, in hexadecimal."""

    @property
    def deterministic(self) -> bool:
        """Whether the same input gives the same scores."""
        return all(check.passed for check in self.checks if check.name == "deterministic")

    @property
    def equal_rows(self) -> bool:
        """Whether a masked image has bit-identical scores and gradients in every batch, as measured on this machine."""
        return any(step.applied for step in self.steps if step.name == EQUAL_ROWS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A model on a device, ready for the engine."""

    entry: ModelEntry
    digest: str
    """SHA-256 over weights and preprocessing, in hexadecimal."""
    labels: Sequence[str]
    evaluator: TorchEvaluator
    found: Found
    load_seconds: float = field(default=0.0)
    activation_bytes: int = 0
    """Peak memory of a batch in addition to the weights, in bytes."""

    @property
    def device(self) -> torch.device:
        """The device it runs on."""
        return self.evaluator.device

    def engine(self, *, memo_bytes: int = 0) -> Engine:
        """Returns a new engine for the model, with the batch size found for it.

        Args:
            memo_bytes: Memory for scores that tasks on the same image share; 0 for none. It is not used for a model
            whose
                outputs vary for the same input.
        """
        reduced = self.evaluator.autocast is not None
        memo = ScoreMemo(memo_bytes, reduced=reduced) if memo_bytes and self.found.deterministic else None
        unit, size, depth = self.evaluator.unit, self.found.batch_size, self.evaluator.depth
        return Engine(self.evaluator, batch_size=size, unit=unit, reduced=reduced, depth=depth, memo=memo)

    @property
    def memory_bytes(self) -> int:
        """Memory that the model keeps on the device, in bytes.

        It holds the weights of the original, the optimised and the reduced model, and captured passes.
        """
        evaluator = self.evaluator
        modules = {evaluator.module, evaluator.inspected or evaluator.module, evaluator.reduced or evaluator.module}
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        # Layers that keep a second layout of their weights report its size.
        laid_out = sum(getattr(layer, "laid_out_bytes", 0) for layer in self.evaluator.module.modules())
        captured = evaluator.graphs.bytes if evaluator.graphs is not None else 0
        return laid_out + captured + sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())

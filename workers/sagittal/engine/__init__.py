"""The engine: evaluates what explainers ask, in batches shared by all that run."""

from sagittal.engine.engine import Engine
from sagittal.engine.evaluator import EvaluationFailed, Evaluator, Output, TorchEvaluator
from sagittal.engine.opaque import ModelUnreachable, Opaque, OpaqueEvaluator
from sagittal.engine.task import INTERACTIVE_WEIGHT, Budget, Task, TaskCancelled, Usage

__all__ = [
    "INTERACTIVE_WEIGHT",
    "Budget",
    "Engine",
    "EvaluationFailed",
    "Evaluator",
    "ModelUnreachable",
    "Opaque",
    "OpaqueEvaluator",
    "Output",
    "Task",
    "TaskCancelled",
    "TorchEvaluator",
    "Usage",
]

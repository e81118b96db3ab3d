"""The engine: evaluates what explainers ask, in batches shared by all that run."""

from sagittal.engine.engine import Engine
from sagittal.engine.evaluator import (
    BlackBox,
    BlackBoxEvaluator,
    EvaluationFailed,
    Evaluator,
    ModelUnreachable,
    Output,
    TorchEvaluator,
)
from sagittal.engine.task import INTERACTIVE_WEIGHT, Budget, Task, TaskCancelled, Usage

__all__ = [
    "INTERACTIVE_WEIGHT",
    "BlackBox",
    "BlackBoxEvaluator",
    "Budget",
    "Engine",
    "EvaluationFailed",
    "Evaluator",
    "ModelUnreachable",
    "Output",
    "Task",
    "TaskCancelled",
    "TorchEvaluator",
    "Usage",
]

"""The engine: evaluates the requests of explainers in batches that all running tasks share."""

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

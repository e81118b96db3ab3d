"""Models of which the score of every patch set is known by construction, run through the real engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from sagittal.engine import Budget, Engine, Output, Task, TorchEvaluator
from sagittal.engine.requests import Subject
from sagittal.engine.task import Usage
from sagittal.explain import Explainer
from sagittal.explain.events import Event, SufficientSet
from sagittal.explain.problem import Problem
from sagittal.explain.steps import Steps

CELL = 4
"""Pixels of a patch's side."""


class SetModel(nn.Module):
    """The probabilities are a function of the patches shown: `score` maps (n, patches) of 0 and 1 to (n, classes).

    A score of shape (n,) is the probability of class 0 of two. `evaluated` lists the bit sets it was asked for.
    """

    def __init__(self, grid: int, score: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.grid, self.score = grid, score
        self.evaluated: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        shown = nn.functional.adaptive_avg_pool2d(inputs[:, :1], self.grid).flatten(1).round()
        self.evaluated += [sum(1 << place for place, on in enumerate(row) if on) for row in shown.tolist()]
        scores = self.score(shown)
        return scores if scores.ndim == 2 else torch.stack([scores, 1 - scores], -1)


@dataclass
class Run:
    """What an explainer told, what it used, and how it ended."""

    model: SetModel
    problem: Problem
    events: list[Event] = field(default_factory=list)
    ends: list[BaseException | None] = field(default_factory=list)
    usage: Usage | None = None

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def sets(self) -> dict[tuple[int, ...], SufficientSet]:
        """The sets by their patches; of two events the later one holds."""
        return {event.patches: event for event in self.of(SufficientSet)}

    @property
    def diverse(self) -> set[tuple[int, ...]]:
        return {patches for patches, each in self.sets.items() if each.diverse}

    @property
    def warnings(self) -> list[str]:
        return [event.reason for event in self.events if hasattr(event, "reason")]


def problem_of(model: SetModel) -> Problem:
    """Returns the problem of explaining class 0 on white, hidden by black."""
    image = torch.ones(3, model.grid * CELL, model.grid * CELL)
    full, empty = model(torch.stack([image, 0 * image]))[:, 0].tolist()
    model.evaluated.clear()
    return Problem(subject=Subject(image, 0 * image, 0), unmasked_score=full, baseline_score=empty)


def run_steps(model: SetModel, problem: Problem, steps: Steps, budget: Budget | None = None) -> Run:
    """Runs a generator through the engine."""
    evaluator = TorchEvaluator(module=model.eval(), device=torch.device("cpu"), output=Output.PROBABILITIES)
    run = Run(model, problem)
    task = Task(steps=steps, on_event=run.events.append, on_end=run.ends.append, budget=budget or Budget())
    Engine(evaluator).run(task)
    run.usage = task.usage
    if run.ends[0] is not None:
        raise run.ends[0]
    return run


@pytest.fixture(scope="session")
def search() -> Callable[..., Run]:
    """Runs an explainer on the model whose score of the shown patches is the given function."""

    def run(score: Callable[[Tensor], Tensor], explainer: Explainer, budget: Budget | None = None) -> Run:
        model = SetModel(explainer.grid, score)
        problem = problem_of(model)
        return run_steps(model, problem, explainer.explain(problem), budget)

    return run


@pytest.fixture(scope="session")
def steps() -> Callable[..., Run]:
    """Runs a generator made from the problem of a model."""

    def run(score: Callable[[Tensor], Tensor], grid: int, make: Callable[[Problem], Steps]) -> Run:
        model = SetModel(grid, score)
        problem = problem_of(model)
        return run_steps(model, problem, make(problem))

    return run


@pytest.fixture(scope="session")
def known() -> type:
    """Score functions by construction."""
    return Known


class Known:
    """Score functions by construction."""

    @staticmethod
    def additive(weights: Sequence[float], bias: float = 0.0) -> Callable[[Tensor], Tensor]:
        """The sum of the weights of the shown patches."""
        return lambda shown: bias + shown @ torch.tensor(weights, dtype=shown.dtype)

    @staticmethod
    def any_of(*groups: Sequence[int]) -> Callable[[Tensor], Tensor]:
        """High when all patches of some group are shown; otherwise rises a little with each patch of a group."""

        def score(shown: Tensor) -> Tensor:
            parts = torch.stack([shown[:, list(group)].mean(-1) for group in groups])
            return torch.where((parts == 1).any(0), 0.9, 0.02 + 0.3 * parts.max(0).values ** 2)

        return score

    @staticmethod
    def table(scores: Sequence[float]) -> Callable[[Tensor], Tensor]:
        """The score of each bit set, looked up."""
        values = torch.tensor(scores)
        return lambda shown: values[(shown.long() << torch.arange(shown.shape[1])).sum(-1)]

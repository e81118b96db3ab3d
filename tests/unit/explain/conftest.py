"""Runs explainers through the real engine, and small models whose truth can be worked out by hand."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from sagittal.engine import Budget, Engine, Output, Task, TorchEvaluator
from sagittal.engine.evaluator import PROBABILITIES
from sagittal.engine.requests import ModelView, Subject
from sagittal.engine.task import Usage
from sagittal.explain import Explainer
from sagittal.explain.events import Event, SaliencyMask
from sagittal.explain.problem import Problem


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


class Additive(nn.Module):
    """The probability of class 0 is the sum of the first channel's pixels, with weights."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, inputs: Tensor) -> Tensor:
        score = (inputs[:, 0] * self.weights).sum((-2, -1))
        return torch.stack([score, 1 - score], -1)


@dataclass
class Run:
    """What an explainer told, and what it used."""

    events: list[Event]
    usage: Usage
    problem: Problem

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def saliency(self) -> Tensor:
        (final,) = [event for event in self.of(SaliencyMask) if event.final]
        return final.saliency


@pytest.fixture
def additive() -> type[Additive]:
    return Additive


@pytest.fixture
def explained() -> Callable[..., Run]:
    """Runs an explainer on an image against a black baseline, without preparation or metrics."""

    def run(
        module: nn.Module,
        explainer: Explainer,
        image: Tensor,
        *,
        target: int = 0,
        baseline: Tensor | None = None,
        output: Output = Output.LOGITS,
        budget: Budget | None = None,
        seed: int = 0,
    ) -> Run:
        evaluator = TorchEvaluator(
            module=module.eval().requires_grad_(False), device=torch.device("cpu"), output=output
        )
        hidden = torch.zeros_like(image) if baseline is None else baseline
        with torch.no_grad():
            both = view_of(module, image, output=output).probabilities(module(torch.stack([image, hidden])))
        subject = Subject(image, hidden, target)
        problem = Problem(
            subject=subject, unmasked_score=float(both[0, target]), baseline_score=float(both[1, target]), seed=seed
        )
        events, ends = [], []
        task = Task(
            steps=explainer.explain(problem), on_event=events.append, on_end=ends.append, budget=budget or Budget()
        )
        Engine(evaluator).run(task)
        if ends[0] is not None:
            raise ends[0]
        return Run(events, task.usage, problem)

    return run


def view_of(module: nn.Module, image: Tensor, target: int = 0, output: Output = Output.LOGITS) -> ModelView:
    """Returns a model as methods see it that look into its layers."""
    return ModelView(module.eval(), PROBABILITIES[output], Subject(image, torch.zeros_like(image), target))


@pytest.fixture
def view() -> Callable[..., ModelView]:
    return view_of

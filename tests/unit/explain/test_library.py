"""The front door: any PyTorch classifier is explained in three lines, and left as it was."""

import numpy as np
import pytest
import torch
from known_models import LEFT, RIGHT, LooksAtRegions, image
from torch import nn

from sagittal.client import Explanation
from sagittal.engine import EvaluationFailed
from sagittal.engine.requests import OutOfBudget
from sagittal.explain import (
    IGOS,
    GradCAM,
    InvalidParameter,
    Metrics,
    MinimalSufficientExplanations,
    StructuredAttentionGraph,
    Unsupported,
    explain,
)


@pytest.fixture
def model():
    return LooksAtRegions(LEFT)


def small(**changes):
    return IGOS(**{"mask_size": 7, "iterations": 10, "points": 2, "levels": 0} | changes)


def test_a_heatmap_marks_what_the_model_looks_at(model):
    explanation = explain(model, image(LEFT, RIGHT), small(), target=1)
    assert isinstance(explanation, Explanation)
    assert explanation.state == "completed"
    assert explanation.mask.shape == (7, 7)
    row, column = np.unravel_index(explanation.mask.argmax(), explanation.mask.shape)
    assert 1 <= row <= 2
    assert 1 <= column <= 2
    assert explanation.insertion > explanation.deletion
    assert explanation.method == "igos"
    assert explanation.parameters["mask_size"] == 7
    assert explanation.evaluations > explanation.gradient_evaluations > 0
    assert {curve.kind for curve in explanation.curves} == {"insertion", "deletion"}


def test_sets_come_with_certificates_and_graphs_with_nodes(model):
    sets = explain(model, image(LEFT), MinimalSufficientExplanations(grid=3), target=1).sufficient_sets
    assert sets
    assert sets[0].certificate.checked > 0
    graph = explain(model, image(LEFT), StructuredAttentionGraph(grid=3), target=1).graph
    assert graph.roots


def test_labels_name_classes_and_targets(model):
    explanation = explain(model, image(LEFT), small(), target="on", labels=("off", "on"), metrics=Metrics(curves=False))
    assert explanation.target.label == "on"
    assert [found.label for found in explanation.prediction.top] == ["on", "off"]


def test_the_model_is_left_as_it_was(model):
    module = nn.Sequential(model, nn.Dropout(), nn.Linear(2, 2)).train()
    module[1].eval()
    explain(module, image(LEFT), small(iterations=1))
    assert [each.training for each in (module, module[0], module[1], module[2])] == [True, True, False, True]
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_events_are_heard_as_they_come(model):
    heard = []
    explanation = explain(model, image(LEFT), small(), on_event=heard.append)
    names = [type(event).__name__ for event in heard]
    assert names[0] == "Prediction"
    assert names[-1] == "Completed"
    assert [event.sequence for event in heard] == list(range(1, len(heard) + 1))
    assert heard[-1] is explanation.completed


def test_a_progress_bar_is_shown_when_asked_for(model, capsys):
    explain(model, image(LEFT), small(iterations=2), progress=True)
    assert "100%" in capsys.readouterr().err


def test_a_budget_cuts_the_search_and_says_so(model):
    cut = explain(model, image(LEFT), small(iterations=500), max_evaluations=50)
    assert cut.completed.truncated_by == "evaluations"
    with pytest.raises(OutOfBudget):
        explain(model, image(LEFT), GradCAMOfNothing(), max_evaluations=1)


class GradCAMOfNothing(MinimalSufficientExplanations):
    """A search that asks for more than it may before it has found anything."""

    def explain(self, problem):
        yield from problem.evaluate(torch.ones(9, 1, 1))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"image": torch.zeros(56, 56)}, "image"),
        ({"image": torch.zeros(2, 3, 56, 56)}, "image"),
        ({"image": torch.zeros(3, 56, 56, dtype=torch.uint8)}, "image"),
        ({"image": torch.full((3, 56, 56), torch.nan)}, "image"),
        ({"target": "cat", "labels": ("off", "on")}, "target"),
        ({"target": 2}, "target"),
        ({"target": -1}, "target"),
        ({"output": "softmax"}, "output"),
    ],
)
def test_wrong_arguments_are_named(model, changes, name):
    with pytest.raises(InvalidParameter) as refused:
        explain(model, **{"image": image(LEFT), "method": small()} | changes)
    assert refused.value.name == name


def test_what_a_model_raises_is_raised(model):
    class Broken(nn.Module):
        def forward(self, inputs):
            raise RuntimeError("no such layer")

    with pytest.raises(EvaluationFailed, match="no such layer"):
        explain(Broken(), image(LEFT), small())
    with pytest.raises(Unsupported):
        explain(model, image(LEFT), GradCAM())

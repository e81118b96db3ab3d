"""What comes before a method: it costs what the method and the measures use, and no more."""

import pytest
import torch
from known_models import LEFT, LooksAtRegions, image

from sagittal.engine import Engine, Task, TorchEvaluator
from sagittal.engine.requests import Evaluate
from sagittal.explain import (
    EvaluateMask,
    ExcitationBackprop,
    GradCAM,
    IntegratedGradients,
    Metrics,
    Occlusion,
    Question,
    explanation_steps,
)
from sagittal.explain.events import Prediction, Warning
from sagittal.explain.problem import Problem

LOOKERS = [GradCAM(), ExcitationBackprop(), EvaluateMask(heatmap=torch.rand(7, 7))]
"""They hide nothing by themselves."""


def prepared(explainer, *, curves):
    """Returns the requests and the prediction that come before the method's own, and its problem."""
    steps, asked = explanation_steps(Question(image=image(LEFT)), explainer, Metrics(curves=curves)), []
    evaluator = TorchEvaluator(module=LooksAtRegions(LEFT), device=torch.device("cpu"))

    def noted():
        answer = None
        while True:
            item = steps.send(answer)
            if isinstance(item, Prediction):
                asked.append(item)
                return
            asked.append(item)
            answer = yield item

    Engine(evaluator).run(Task(steps=noted()))
    steps.close()
    return asked[:-1], asked[-1]


@pytest.mark.parametrize("explainer", LOOKERS, ids=lambda each: type(each).__name__)
def test_where_nothing_is_hidden_no_baseline_is_made_or_evaluated(explainer):
    requests, prediction = prepared(explainer, curves=False)
    assert [len(request.masks) for request in requests if isinstance(request, Evaluate)] == [1]
    assert (prediction.baseline, prediction.baseline_score, prediction.blur_sigma) == ("", 0.0, 0.0)


@pytest.mark.parametrize("explainer", LOOKERS, ids=lambda each: type(each).__name__)
def test_curves_hide_so_the_baseline_is_checked_for_them(explainer):
    requests, prediction = prepared(explainer, curves=True)
    assert len(requests) >= 2
    assert prediction.baseline == "blur"
    assert prediction.blur_sigma > 0


@pytest.mark.parametrize("explainer", [IntegratedGradients(), Occlusion()], ids=lambda each: type(each).__name__)
def test_a_method_that_hides_gets_a_checked_baseline_without_curves_too(explainer):
    requests, prediction = prepared(explainer, curves=False)
    assert len(requests) >= 2
    assert prediction.baseline == "blur"


def test_without_a_baseline_hiding_changes_nothing_and_nothing_is_said_of_it():
    events = []
    steps = explanation_steps(Question(image=image(LEFT)), Seen(seen := []), Metrics(curves=False))
    evaluator = TorchEvaluator(module=LooksAtRegions(LEFT), device=torch.device("cpu"))
    Engine(evaluator).run(Task(steps=steps, on_event=events.append))
    (problem,) = seen
    assert torch.equal(problem.baseline, problem.image)
    assert problem.baseline_score == problem.unmasked_score
    assert not [event for event in events if isinstance(event, Warning)]


class Seen(GradCAM):
    """Keeps the problem that it was given."""

    __slots__ = ("problems",)

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__()
        object.__setattr__(self, "problems", problems)

    def explain(self, problem):
        self.problems.append(problem)
        yield from ()

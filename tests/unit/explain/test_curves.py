"""Insertion and deletion on cases that can be worked out by hand."""

import pytest
import torch
from torch import nn

from sagittal.engine import Budget, Engine, Output, Task, TorchEvaluator
from sagittal.engine.requests import Subject
from sagittal.engine.task import STRETCHED
from sagittal.explain import Occlusion, explanation_steps
from sagittal.explain.baselines import Black
from sagittal.explain.events import Curve, SaliencyMask, Truncated, Warning
from sagittal.explain.measures.curves import CurveProtocol, Metrics, area, insertion_masks, measure
from sagittal.explain.problem import Problem, Question


class Additive(nn.Module):
    """Scores the sum of the pixels of the first channel, with weights."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, inputs):
        score = (inputs[:, 0] * self.weights).sum((-2, -1))
        return torch.stack([score, 1 - score], -1)


def events_of(weights, saliency, **metrics):
    size = weights.shape[-1]
    subject = Subject(torch.ones(3, size, size), torch.zeros(3, size, size), 0)
    problem = Problem(subject=subject, unmasked_score=float(weights.sum()), baseline_score=0.0)
    evaluator = TorchEvaluator(module=Additive(weights), device=torch.device("cpu"), output=Output.PROBABILITIES)
    events, ends = [], []
    task = Task(steps=measure(problem, saliency, Metrics(**metrics)), on_event=events.append, on_end=ends.append)
    Engine(evaluator).run(task)
    assert ends == [None]
    return events


def curves_of(weights, saliency, **metrics):
    return [event for event in events_of(weights, saliency, **metrics) if isinstance(event, Curve)]


def test_four_cells_in_order_of_their_weight():
    weights = torch.tensor([[0.4, 0.3], [0.2, 0.1]])
    insertion, deletion = curves_of(weights, weights, steps=4)
    assert insertion.fractions == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert insertion.scores == pytest.approx((0.0, 0.4, 0.7, 0.9, 1.0))
    assert deletion.scores == pytest.approx((1.0, 0.6, 0.3, 0.1, 0.0))
    assert insertion.auc == pytest.approx(0.25 * (0.4 + 0.7 + 0.9 + 0.5))
    assert deletion.auc == pytest.approx(0.25 * (0.5 + 0.6 + 0.3 + 0.1))


def test_tied_cells_give_the_mean_over_their_orders():
    weights = torch.tensor([[0.4, 0.3], [0.2, 0.1]])
    insertion, _ = curves_of(weights, torch.tensor([[1.0, 0.5], [0.5, 0.5]]), steps=4)
    assert insertion.scores == pytest.approx((0.0, 0.4, 0.6, 0.8, 1.0))


def test_a_heatmap_without_any_difference_scores_like_chance():
    weights = torch.tensor([[0.4, 0.3], [0.2, 0.1]])
    insertion, deletion = curves_of(weights, torch.zeros(2, 2), steps=4)
    assert insertion.auc == pytest.approx(0.5)
    assert deletion.auc == pytest.approx(0.5)


@pytest.mark.parametrize(("tilt", "warned"), [(-0.02, "is below"), (0.02, "exceeds"), (0.03, "")])
def test_a_heatmap_is_warned_of_below_a_difference_of_a_tenth_of_the_unmasked_score(tilt, warned):
    weights = torch.tensor([[0.1 + tilt, 0.1], [0.1, 0.1 - tilt]])  # insertion exceeds deletion by 1.5 tilt, of 0.4
    events = events_of(weights, torch.tensor([[3.0, 2.0], [1.0, 0.0]]), steps=4)
    warnings = [event for event in events if isinstance(event, Warning)]
    assert [event.reason for event in warnings] == ["CURVES_HARDLY_PART"] * bool(warned)
    assert all(f") {warned} deletion (" in event.message for event in warnings)


def test_normalised_area_is_over_the_unmasked_score():
    weights = torch.tensor([[0.2, 0.15], [0.1, 0.05]])
    insertion, _ = curves_of(weights, weights, steps=4)
    assert insertion.auc_normalized == pytest.approx(insertion.auc / 0.5)


def test_the_last_step_is_whole_even_where_steps_do_not_divide_the_cells():
    masks, fractions = insertion_masks(torch.arange(9.0).view(3, 3), 2)
    assert fractions == pytest.approx((0, 2 / 9, 4 / 9, 6 / 9, 8 / 9, 1))
    assert torch.equal(masks[-1], torch.ones(3, 3))
    assert torch.equal(masks[0], torch.zeros(3, 3))


def test_the_pixel_protocol_takes_one_row_of_pixels_a_step():
    weights = torch.rand(8, 8) / 64
    insertion, _ = curves_of(weights, weights, protocol=CurveProtocol.PIXEL)
    assert len(insertion.fractions) == 9


def test_area_is_that_of_the_trapezoid():
    assert area((0.0, 0.5, 1.0), (0.0, 1.0, 1.0)) == pytest.approx(0.75)


def test_a_deadline_that_passes_while_curves_are_measured_leaves_the_heatmap_and_marks_it():
    class Slow(TorchEvaluator):
        """Takes a second for each row, by the clock that is asked."""

        now = 0.0

        def evaluate(self, parts):
            Slow.now += sum(part.rows for part in parts)
            return super().evaluate(parts)

    weights = torch.full((8, 8), 1 / 64)
    evaluator = Slow(module=Additive(weights), device=torch.device("cpu"), output=Output.PROBABILITIES)
    question = Question(image=torch.ones(3, 8, 8), target=0, baseline=Black())
    events, ends = [], []
    task = Task(
        steps=explanation_steps(question, Occlusion(grid=4, window=1), Metrics(steps=150)),
        on_event=events.append,
        on_end=ends.append,
        budget=Budget(deadline=30.0),
        clock=lambda: Slow.now,
    )
    Engine(evaluator, batch_size=8).run(task)
    assert ends == [None]
    assert [event.final for event in events if isinstance(event, SaliencyMask)][-1]
    assert not [event for event in events if isinstance(event, Curve)]
    assert [event.limit for event in events if isinstance(event, Truncated)] == ["deadline"]
    assert Slow.now <= 30 + STRETCHED * 8

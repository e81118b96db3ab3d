"""A caller's heatmap is measured as it is ordered."""

import pytest
import torch
from known_models import LEFT, LooksAtRegions, image

from sagittal.engine import Engine, Task, TorchEvaluator
from sagittal.explain import EvaluateMask, InvalidParameter, Question, explanation_steps
from sagittal.explain.events import Curve, CurveKind, Warning


def region(size=14):
    heatmap = torch.zeros(size, size)
    cell = 56 // size
    heatmap[LEFT[0] // cell : LEFT[2] // cell, LEFT[1] // cell : LEFT[3] // cell] = 1
    return heatmap


def curves_of(heatmap):
    evaluator = TorchEvaluator(module=LooksAtRegions(LEFT).eval(), device=torch.device("cpu"))
    events, ends = [], []
    steps = explanation_steps(Question(image=image(LEFT), target=1), EvaluateMask(heatmap=heatmap))
    Engine(evaluator).run(Task(steps=steps, on_event=events.append, on_end=ends.append))
    assert ends == [None]
    return {event.kind: event.auc for event in events if isinstance(event, Curve)}, events


def reasons(events):
    return {event.reason for event in events if isinstance(event, Warning)}


def test_the_right_region_beats_its_opposite_on_both_curves():
    right, _ = curves_of(region())
    wrong, _ = curves_of(1 - region())
    assert right[CurveKind.INSERTION] > wrong[CurveKind.INSERTION] + 0.3
    assert right[CurveKind.DELETION] < wrong[CurveKind.DELETION] - 0.3


@pytest.mark.parametrize("heatmap", [1 - region(), torch.ones(14, 14)], ids=["opposite", "no order"])
def test_a_heatmap_whose_curves_hardly_part_is_told(heatmap):
    _, events = curves_of(heatmap)
    assert "CURVES_HARDLY_PART" in reasons(events)


def test_the_right_region_is_not_warned_of():
    _, events = curves_of(region())
    assert "CURVES_HARDLY_PART" not in reasons(events)


def test_the_unit_of_the_heatmap_does_not_matter():
    plain, _ = curves_of(region())
    tiny, events = curves_of((region() * 1e-3).half())
    assert tiny == pytest.approx(plain)
    assert "EMPTY_EXPLANATION" not in reasons(events)


def test_nothing_else_than_curves_is_evaluated(explained):
    run = explained(LooksAtRegions(LEFT), EvaluateMask(heatmap=region()), image(LEFT), target=1)
    assert run.usage.evaluations == 0
    assert torch.equal(run.saliency, region())


def test_an_empty_heatmap_stays_empty():
    _, events = curves_of(torch.zeros(7, 7))
    assert "EMPTY_EXPLANATION" in reasons(events)


def test_a_heatmap_with_negative_values_is_signed(explained):
    run = explained(LooksAtRegions(LEFT), EvaluateMask(heatmap=region() * 3 - 1), image(LEFT), target=1)
    assert float(run.saliency.min()) == -0.5
    assert run.events[0].signed


@pytest.mark.parametrize(
    ("heatmap", "message"),
    [
        (None, "is missing"),
        (torch.zeros(3, 4), "shape"),
        (torch.zeros(1, 1), "shape"),
        (torch.zeros(225, 225), "shape"),
        (torch.zeros(1, 4, 4), "shape"),
        (torch.full((4, 4), float("nan")), "finite"),
        (torch.zeros(4, 4, dtype=torch.int64), "finite"),
    ],
)
def test_what_cannot_be_ordered_is_refused(heatmap, message):
    with pytest.raises(InvalidParameter, match=message) as failure:
        EvaluateMask(heatmap=heatmap)
    assert failure.value.name == "heatmap"

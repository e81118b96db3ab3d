"""Predictability: how well an explanation alone predicts a model whose truth is known on random occlusions."""

import numpy as np
import pytest
import torch
from known_models import LEFT, RIGHT, SIZE, Constant, LooksAtRegions, image

from sagittal.engine import Budget, Engine, Output, Task, TorchEvaluator
from sagittal.explain import EvaluateMask, Metrics, Question, explanation_steps
from sagittal.explain.baselines import Black
from sagittal.explain.events import (
    Certificate,
    CertificateLevel,
    GraphNode,
    Measurement,
    SaliencyMask,
    SufficientSet,
    Warning,
)
from sagittal.explain.measures.predictability import auroc, balanced_accuracy, best_threshold, read
from sagittal.explain.occlusions import CELLS, occlusions

COUNT = 90


def heatmap_of(*regions):
    """Returns a heatmap that is 1 in the regions of the image and 0 elsewhere."""
    saliency = torch.zeros(SIZE, SIZE)
    for top, left, bottom, right in regions:
        saliency[top:bottom, left:right] = 1.0
    return saliency


def run(model, saliency, count=COUNT, **budget):
    """Measures a heatmap; returns the figures by name, the reasons of warnings, and the usage."""
    evaluator = TorchEvaluator(module=model.eval(), device=torch.device("cpu"), output=Output.LOGITS)
    question = Question(image=image(LEFT), target=1, baseline=Black())
    events, ends = [], []
    steps = explanation_steps(question, EvaluateMask(heatmap=saliency), Metrics(curves=False, predictability=count))
    task = Task(steps=steps, on_event=events.append, on_end=ends.append, budget=Budget(**budget))
    Engine(evaluator).run(task)
    assert ends == [None]
    figures = {each.name: each.value for each in events if isinstance(each, Measurement)}
    return figures, [each.reason for each in events if isinstance(each, Warning)], task.usage


def test_the_heatmap_of_the_reason_predicts_the_model_and_another_does_not():
    right, _, usage = run(LooksAtRegions(LEFT), heatmap_of(LEFT))
    wrong, _, _ = run(LooksAtRegions(LEFT), heatmap_of(RIGHT))
    assert right["predictability_auroc"] > 0.95
    assert right["predictability_balanced_accuracy"] > 0.85
    assert wrong["predictability_auroc"] < right["predictability_auroc"] - 0.1
    assert usage.metric_evaluations == usage.evaluations == COUNT + 2


def test_it_is_no_part_of_the_budget_and_is_not_measured_unless_asked_for():
    measured, _, _ = run(LooksAtRegions(LEFT), heatmap_of(LEFT), evaluations=0)
    assert measured.keys() == {"predictability_auroc", "predictability_balanced_accuracy"}
    unasked, _, usage = run(LooksAtRegions(LEFT), heatmap_of(LEFT), count=0)
    assert (unasked, usage.evaluations) == ({}, 1)


def test_a_class_that_no_occlusion_takes_away_is_warned_of_and_not_measured():
    figures, warnings, _ = run(Constant(), heatmap_of(LEFT))
    assert figures == {}
    assert "OCCLUSIONS_ALL_ALIKE" in warnings


def test_occlusions_depend_on_the_seed_alone_and_vary_in_kind_and_size():
    masks = occlusions(torch.Generator().manual_seed(3), 60)
    assert torch.equal(masks, occlusions(torch.Generator().manual_seed(3), 60))
    assert masks.shape == (60, CELLS, CELLS)
    assert masks.unique().tolist() == [0.0, 1.0]
    kept = masks.mean((1, 2))
    assert kept.min() < 0.25
    assert kept.max() > 0.75
    patches = masks[1::3].view(20, 7, 8, 7, 8)
    assert torch.equal(patches, patches[:, :, :1, :, :1].expand_as(patches))


def sufficient(grid, *patches):
    certificate = Certificate(CertificateLevel.SUFFICIENT, 1, 0.9)
    return SufficientSet(grid=grid, patches=patches, score=0.95, certificate=certificate, causal=None)


def node(relative_score, *patches):
    return GraphNode(grid=2, patches=patches, score=0.5, relative_score=relative_score, root=False)


def test_each_kind_of_explanation_is_read_as_documented():
    left, none = torch.zeros(CELLS, CELLS), torch.zeros(CELLS, CELLS)
    left[:, : CELLS // 2] = 1.0
    masks = torch.stack([left, none, 1 - none])
    heatmap = torch.tensor([[3.0, -1.0], [0.0, 1.0]])
    shown = torch.repeat_interleave(torch.repeat_interleave(heatmap, CELLS // 2, 0), CELLS // 2, 1)
    assert read([SaliencyMask(shown)], masks) == pytest.approx([0.75, 0.0, 1.0])
    # Patches 0 and 2 of a 2x2 grid are the left half.
    assert read([sufficient(2, 0, 1), sufficient(2, 1, 3)], masks) == pytest.approx([0.5, 0.0, 1.0])
    assert read([sufficient(2, 0, 2)], masks) == pytest.approx([1.0, 0.0, 1.0])
    assert read([node(0.9, 0, 1), node(0.6, 0, 2)], masks) == pytest.approx([0.6, 0.0, 0.9])
    assert read([], masks) is None


def test_auroc_counts_pairs_in_the_right_order_and_half_of_the_ties():
    survived = np.array([True, True, False, False])
    assert auroc(np.array([3.0, 2.0, 1.0, 0.0]), survived) == 1.0
    assert auroc(np.array([0.0, 1.0, 2.0, 3.0]), survived) == 0.0
    assert auroc(np.array([2.0, 1.0, 1.0, 0.0]), survived) == pytest.approx(3.5 / 4)


def test_a_threshold_is_judged_on_the_half_that_it_was_not_chosen_on():
    numbers = np.array([0.9, 0.8, 0.1, 0.2])
    survived = np.array([True, True, False, False])
    assert best_threshold(numbers, survived) == pytest.approx(0.5)
    assert balanced_accuracy(numbers, survived) == 1.0
    # The even ones are right for high numbers and the odd ones for low numbers: each threshold fails on the other half.
    contrary = np.array([True, False, False, True])
    assert balanced_accuracy(numbers, contrary) < 0.5

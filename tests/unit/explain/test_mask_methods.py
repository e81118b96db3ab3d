"""I-GOS and its kin find the reason that is there by construction, and none where there is none."""

import known_models
import pytest
import torch
import torch.nn.functional as F
from known_models import LEFT, RIGHT, Constant, LooksAtRegions

from sagittal.engine import Budget, Engine, Task, TorchEvaluator
from sagittal.explain import IGOS, IGOSPlus, IGOSPlusPlus, InvalidParameter, Metrics, Question, explanation_steps
from sagittal.explain.events import Curve, CurveKind, Prediction, Progress, SaliencyMask, Truncated, Warning

METHODS = (IGOS, IGOSPlus, IGOSPlusPlus)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def explained(module, image, explainer, *, seed=0, target=1, budget=Budget(), metrics=Metrics()):
    evaluator = TorchEvaluator(module=module.eval(), device=torch.device("cpu"))
    events, ends = [], []
    question = Question(image=image, target=target, seed=seed)
    task = Task(
        steps=explanation_steps(question, explainer, metrics), on_event=events.append, on_end=ends.append, budget=budget
    )
    Engine(evaluator).run(task)
    assert ends == [None], ends
    return events, task.usage


def final(events):
    return next(event.saliency for event in events if isinstance(event, SaliencyMask) and event.final)


def overlap(saliency, *regions):
    """Returns intersection over union of the heatmap, cut at one half, with the regions."""
    truth = torch.zeros(known_models.SIZE, known_models.SIZE)
    for top, left, bottom, right in regions:
        truth[top:bottom, left:right] = 1
    pixels = F.interpolate(saliency[None, None], size=truth.shape, mode="bilinear")[0, 0] > 0.5
    both, either = (pixels & truth.bool()).sum(), (pixels | truth.bool()).sum()
    return float(both / either)


@pytest.mark.parametrize("method", METHODS)
def test_the_mask_finds_the_one_region_that_the_model_looks_at(method):
    events, _ = explained(LooksAtRegions(LEFT), known_models.image(LEFT, RIGHT), method())
    assert overlap(final(events), LEFT) > 0.6


def test_of_two_sufficient_reasons_insertion_needs_one():
    events, _ = explained(LooksAtRegions(LEFT, RIGHT, combine="any"), known_models.image(LEFT, RIGHT), IGOSPlusPlus())
    insertion = next(event for event in events if isinstance(event, Curve) and event.kind is CurveKind.INSERTION)
    assert max(overlap(final(events), LEFT), overlap(final(events), RIGHT), overlap(final(events), LEFT, RIGHT)) > 0.5
    assert insertion.auc > 0.85


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_model_gets_an_empty_mask_and_is_told_so(method):
    events, _ = explained(Constant(), known_models.image(LEFT), method())
    assert float(final(events).max()) < 0.05
    reasons = {event.reason for event in events if isinstance(event, Warning)}
    assert {"BASELINE_STILL_CONFIDENT", "EMPTY_EXPLANATION"} <= reasons


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [7, 14])
def test_results_repeat_to_the_last_bit(method, size):
    picture = known_models.image(LEFT)
    module = LooksAtRegions(LEFT)
    first, again = (
        final(explained(module, picture, method(mask_size=size, iterations=5), seed=4)[0]) for _ in range(2)
    )
    other = final(explained(module, picture, method(mask_size=size, iterations=5), seed=5)[0])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_objective_falls():
    events, _ = explained(LooksAtRegions(LEFT), known_models.image(LEFT), IGOSPlusPlus())
    objectives = [event.objective for event in events if isinstance(event, Progress) and event.objective is not None]
    assert sum(objectives[-5:]) < sum(objectives[:5])


def test_steps_do_not_depend_on_the_scale_of_the_gradient():
    picture = known_models.image(LEFT)
    for gain in (5.0, 40.0):
        events, _ = explained(LooksAtRegions(LEFT, gain=gain), picture, IGOSPlusPlus())
        assert overlap(final(events), LEFT) > 0.6, gain


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_a_fine_mask_has_its_size_from_the_first_event_on(iterations):
    method = IGOSPlusPlus(mask_size=56, iterations=iterations)
    events, _ = explained(LooksAtRegions(LEFT), known_models.image(LEFT), method)
    assert {event.saliency.shape for event in events if isinstance(event, SaliencyMask)} == {(56, 56)}


@pytest.mark.parametrize("size", [56, 112])
def test_a_fine_mask_finds_the_region_too(size):
    events, _ = explained(LooksAtRegions(LEFT), known_models.image(LEFT), IGOSPlusPlus(mask_size=size))
    assert overlap(final(events), LEFT) > 0.6


def test_a_budget_gives_the_best_so_far():
    explainer = IGOSPlusPlus()
    events, usage = explained(
        LooksAtRegions(LEFT), known_models.image(LEFT), explainer, budget=Budget(evaluations=explainer.points * 4 * 3)
    )
    assert any(isinstance(event, Truncated) and event.limit == "evaluations" for event in events)
    assert final(events).shape == (28, 28)
    assert usage.evaluations - usage.metric_evaluations <= explainer.points * 4 * 3


def test_the_prediction_comes_first_with_the_checked_baseline():
    events, _ = explained(LooksAtRegions(LEFT), known_models.image(LEFT), IGOS(iterations=1), target=None)
    prediction = events[0]
    assert isinstance(prediction, Prediction)
    assert prediction.target.index == 1
    assert prediction.target.score > 0.9
    assert prediction.baseline_score < 0.05
    assert prediction.blur_sigma == pytest.approx(50 / 224 * 56)


@pytest.mark.parametrize(("name", "value"), [("mask_size", 6), ("mask_size", 225), ("iterations", 0), ("noise", -1.0)])
def test_parameters_out_of_bounds_name_themselves(name, value):
    with pytest.raises(InvalidParameter, match=name) as failure:
        IGOSPlusPlus(**{name: value})
    assert failure.value.name == name


@pytest.mark.parametrize("method", METHODS)
def test_a_descent_whose_mask_has_settled_ends(method):
    model, image = LooksAtRegions(LEFT), known_models.image(LEFT)
    every, all_steps = explained(
        model, image, method(mask_size=7, iterations=60, tolerance=0), metrics=Metrics(curves=False)
    )
    early, fewer = explained(
        model, image, method(mask_size=7, iterations=60, tolerance=0.01), metrics=Metrics(curves=False)
    )
    assert fewer.evaluations < all_steps.evaluations
    assert (final(early) - final(every)).abs().mean() < 0.05


def test_a_class_of_little_confidence_gets_a_mask_like_one_of_much():
    class Faint(LooksAtRegions):
        """The same reasons, of a class that is never likely."""

        def forward(self, images):
            sure = super().forward(images).softmax(1)
            faint = 0.05 * sure[:, 1]
            return torch.stack([1 - faint, faint], 1).log()

    events, _ = explained(Faint(LEFT), known_models.image(LEFT), IGOSPlusPlus())
    assert overlap(final(events), LEFT) > 0.6

"""The occlusion surrogate predicts models whose truth is known, states its error, and shows what it rests on."""

import math

import numpy as np
import pytest
import torch
from known_models import LEFT, RIGHT, Constant, LooksAtRegions, image

from sagittal.engine import Budget, Engine, Output, Task, TorchEvaluator
from sagittal.explain import InvalidParameter, Metrics, OcclusionSurrogate, Question, explanation_steps
from sagittal.explain.baselines import Black
from sagittal.explain.events import Checkpoint, Measurement, Progress, SaliencyMask, Surrogate, Truncated
from sagittal.explain.measures.predictability import auroc, read
from sagittal.explain.occlusions import CELLS, PATCHES, SUPERPIXELS, occlusions
from sagittal.explain.superpixels import superpixels
from sagittal.explain.surrogate import LEAST, effects, fit
from sagittal.imaging.surrogates import pooled, predict

GRID = 4


def drawn(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, GRID, GRID, generator=torch.Generator().manual_seed(seed)).double()


def both(shown: torch.Tensor) -> torch.Tensor:
    """Returns a score that needs two cells together, and no other."""
    return shown[:, 0, 0] * shown[:, 3, 3]


def test_the_prediction_is_the_mean_of_a_gaussian_process_on_the_roots():
    """As a slow and literal transcription of the formula in the proto."""
    random = np.random.default_rng(0)
    known, others, relevance = random.random((5, 2, 2)), random.random((3, 2, 2)), random.random((2, 2))
    scores, noise = random.random(5), 0.1
    roots = [math.sqrt(score) for score in scores]
    mean = sum(roots) / 5

    def similarity(one, other):
        return math.exp(-sum(relevance[i, j] * (one[i, j] - other[i, j]) ** 2 for i in (0, 1) for j in (0, 1)) / 2)

    matrix = [[similarity(a, b) + noise * (i == j) for j, b in enumerate(known)] for i, a in enumerate(known)]
    weights = np.linalg.solve(matrix, np.array(roots) - mean)
    expected = [
        max(0.0, mean + sum(w * similarity(other, a) for w, a in zip(weights, known, strict=True))) ** 2
        for other in others
    ]
    assert predict(known, scores, relevance, noise, others) == pytest.approx(expected)


def test_shares_are_exact_for_any_size_of_mask():
    masks = np.zeros((2, 6, 5))
    masks[0, :2], masks[1, :, 0] = 1.0, 1.0
    assert pooled(masks, 3)[0] == pytest.approx(np.array([[1.0] * 3, [0.0] * 3, [0.0] * 3]))
    assert pooled(masks, 2)[1] == pytest.approx(np.array([[0.4, 0.0]] * 2))
    for wrong in (np.zeros((6, 5)), np.zeros((1, 0, 5))):
        with pytest.raises(ValueError, match=r"expected \(n, height, width\)"):
            pooled(wrong, 2)


def test_it_learns_what_acts_together_and_states_its_error():
    shown, unseen = drawn(200, 0), drawn(200, 1)
    found = fit(shown, 0.5 * both(shown), 0.5)
    parts = (each.numpy() for each in (found.occlusions, found.scores, found.relevance))
    errors = np.abs(predict(*parts, found.noise, unseen.numpy()) - both(unseen).numpy())
    assert errors.mean() < 0.05
    assert found.usual_error == pytest.approx(errors.mean(), rel=0.5)
    relevant = found.relevance.flatten().argsort(descending=True)[:2]
    assert set(relevant.tolist()) == {0, 15}


def test_the_effects_of_an_additive_score_are_its_weights():
    weights = torch.zeros(GRID, GRID).double()
    weights[0, 1], weights[2, 2] = 0.6, 0.4
    shown = drawn(200, 0)
    found = effects(fit(shown, (shown * weights).sum((1, 2)), 1.0))
    assert torch.allclose(found, weights, atol=0.06)


def test_scores_that_are_all_alike_have_no_effects():
    found = fit(drawn(30, 0), torch.full((30,), 0.5), 0.5)
    assert float(effects(found).abs().max()) < 1e-6
    assert found.usual_error < 1e-6


def test_a_tiny_unmasked_score_leaves_numbers_that_half_precision_holds():
    shown = drawn(40, 0)
    found = fit(shown, both(shown), 1e-9)
    assert bool(found.scores.half().isfinite().all())
    assert math.isfinite(found.usual_error)


@pytest.mark.parametrize("combine", ["any", "all"])
def test_it_predicts_unseen_occlusions_better_than_its_heatmap_does(combine):
    model = LooksAtRegions(LEFT, RIGHT, combine=combine)
    question = Question(image=image(LEFT, RIGHT), target=1, baseline=Black())
    evaluator = TorchEvaluator(module=model.eval(), device=torch.device("cpu"), output=Output.LOGITS)
    events, ends = [], []
    steps = explanation_steps(question, OcclusionSurrogate(occlusions=200), Metrics(curves=False, predictability=90))
    Engine(evaluator).run(Task(steps=steps, on_event=events.append, on_end=ends.append, budget=Budget()))
    assert ends == [None]
    figures = {each.name: each.value for each in events if isinstance(each, Measurement)}
    assert figures["predictability_auroc"] > 0.95
    masks = occlusions(torch.Generator().manual_seed(5), 120)
    region = {each: masks[:, each[0] : each[2], each[1] : each[3]].mean((1, 2)) for each in (LEFT, RIGHT)}
    truth = (
        torch.stack(list(region.values())).amax(0) if combine == "any" else torch.stack(list(region.values())).amin(0)
    )
    survived = (truth > 0.5).numpy()
    finals = [each for each in events if isinstance(each, Surrogate | SaliencyMask) and getattr(each, "final", True)]
    heatmap = [each for each in finals if isinstance(each, SaliencyMask)]
    assert auroc(read(finals, masks), survived) > auroc(read(heatmap, masks), survived)


def test_the_heatmap_points_at_what_the_model_looks_at_and_forms_on_the_way(explained):
    run = explained(LooksAtRegions(LEFT), OcclusionSurrogate(occlusions=200), image(LEFT), target=1)
    row, column = divmod(int(run.saliency.argmax()), 14)
    assert LEFT[0] <= row * 4 < LEFT[2]
    assert LEFT[1] <= column * 4 < LEFT[3]
    assert 0.5 < float(run.saliency.max()) <= 1.0
    assert [mask.final for mask in run.of(SaliencyMask)] == [False, True]
    assert [each.fraction for each in run.of(Progress)] == pytest.approx([128 / 200, 1.0])


def test_a_constant_model_gives_an_empty_heatmap(explained):
    run = explained(Constant(), OcclusionSurrogate(occlusions=40), image(LEFT), target=1)
    assert float(run.saliency.max()) < 1e-3


@pytest.mark.parametrize("evaluations", [0, LEAST - 1, LEAST, 150])
def test_a_budget_is_used_to_the_last_evaluation(explained, evaluations):
    budget = Budget(evaluations=evaluations)
    run = explained(LooksAtRegions(LEFT), OcclusionSurrogate(occlusions=200), image(LEFT), target=1, budget=budget)
    assert run.of(Truncated) == [Truncated("evaluations")]
    assert run.usage.evaluations == evaluations
    assert [len(each.scores) for each in run.of(Surrogate)] == ([evaluations] if evaluations >= LEAST else [])
    assert [mask.final for mask in run.of(SaliencyMask)].count(True) == 1


def test_going_on_from_a_checkpoint_repeats_nothing_and_ends_alike(explained):
    model, method = LooksAtRegions(LEFT), OcclusionSurrogate(occlusions=150)
    whole = explained(model, method, image(LEFT), target=1)
    state = whole.of(Checkpoint)[0].state

    class Resumed:
        def explain(self, problem):
            problem.restored.update(state)
            return method.explain(problem)

    resumed = explained(model, Resumed(), image(LEFT), target=1)
    assert resumed.usage.evaluations == 150 - 128
    torch.testing.assert_close(resumed.saliency, whole.saliency, atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [LEAST - 1, 2001])
def test_a_number_of_occlusions_out_of_bounds_is_refused(value):
    with pytest.raises(InvalidParameter, match="occlusions"):
        OcclusionSurrogate(occlusions=value)


def test_occlusions_of_an_image_have_its_superpixels_too():
    seen = image(LEFT)
    masks = occlusions(torch.Generator().manual_seed(0), 16, seen)
    for mask, wanted in zip(masks[3::4], SUPERPIXELS, strict=True):
        partition = superpixels(seen, wanted, CELLS)
        for region in range(int(partition.max()) + 1):
            assert len(mask[partition == region].unique()) == 1
    side = CELLS // PATCHES
    patches = masks[1::4].view(4, PATCHES, side, PATCHES, side)
    assert torch.equal(patches, patches[:, :, :1, :, :1].expand_as(patches))

"""Integrated Gradients: captum's numbers, completeness, and silence where there is nothing."""

import pytest
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients as CaptumIntegratedGradients
from known_models import LEFT, Constant, LooksAtRegions, image
from torch import nn

from sagittal.engine import Budget, Output
from sagittal.explain import IntegratedGradients
from sagittal.explain.events import SaliencyMask, Truncated, Warning


def small_network():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.Softplus(), nn.Conv2d(8, 8, 3, 2), nn.Softplus(), nn.Flatten(), nn.LazyLinear(4)
    )


def initialised(module, image):
    module(image.unsqueeze(0))
    return module


def test_it_equals_captum_summed_to_cells(explained):
    picture, hidden = torch.randn(3, 28, 28), torch.randn(3, 28, 28)
    module = initialised(small_network(), picture)
    run = explained(module, IntegratedGradients(steps=20, mask_size=7), picture, target=2, baseline=hidden)
    captum = CaptumIntegratedGradients(lambda inputs: module(inputs).softmax(-1))
    attribution = captum.attribute(
        picture.unsqueeze(0).requires_grad_(),
        baselines=hidden.unsqueeze(0),
        target=2,
        n_steps=20,
        method="riemann_middle",
    )
    cells = F.avg_pool2d(attribution.detach().sum(1), 4)[0] * 16
    positive = cells.clamp(min=0)
    strength = min(1.0, float(positive.sum()) / run.problem.unmasked_score)
    assert torch.allclose(run.saliency, positive / positive.max() * strength, atol=1e-5)


def test_on_an_additive_model_one_point_is_exact_and_the_peak_is_the_share_explained(explained, additive):
    weights = torch.zeros(14, 14)
    weights[2, 3], weights[9, 9] = 0.6, 0.3
    run = explained(
        additive(weights),
        IntegratedGradients(steps=1, mask_size=14),
        torch.ones(3, 14, 14),
        output=Output.PROBABILITIES,
    )
    assert float(run.saliency[2, 3]) == pytest.approx(1.0)
    assert float(run.saliency[9, 9]) == pytest.approx(0.5)
    assert float(run.saliency.sum()) == pytest.approx(1.5)


def test_what_the_baseline_explains_already_is_not_claimed(explained, additive):
    weights = torch.full((7, 7), 0.9 / 49)
    run = explained(
        additive(weights),
        IntegratedGradients(steps=2, mask_size=7),
        torch.ones(3, 7, 7),
        baseline=torch.full((3, 7, 7), 0.75),
        output=Output.PROBABILITIES,
    )
    assert float(run.saliency.max()) == pytest.approx(0.25)


def test_attributions_of_a_model_with_a_step_need_enough_points_or_a_notice(explained):
    picture = image(LEFT)
    coarse = explained(LooksAtRegions(LEFT, gain=60), IntegratedGradients(steps=2), picture, target=1)
    fine = explained(LooksAtRegions(LEFT, gain=60), IntegratedGradients(steps=100), picture, target=1)
    assert [warning.reason for warning in coarse.of(Warning)] == ["INTEGRATION_INEXACT"]
    assert fine.of(Warning) == []


def test_it_points_at_the_region(explained):
    run = explained(LooksAtRegions(LEFT), IntegratedGradients(), image(LEFT), target=1)
    inside = torch.zeros(28, 28, dtype=torch.bool)
    inside[LEFT[0] // 2 : LEFT[2] // 2, LEFT[1] // 2 : LEFT[3] // 2] = True
    assert float(run.saliency[inside].min()) > 0.5
    assert float(run.saliency[~inside].max()) < 0.05
    assert run.usage.gradient_evaluations == 50


def test_a_constant_model_gives_nothing(explained):
    run = explained(Constant(), IntegratedGradients(), image(LEFT), target=1)
    assert float(run.saliency.abs().max()) == 0.0


@pytest.mark.parametrize("evaluations", [0, 16, 40])
def test_a_budget_gives_the_mean_of_the_points_so_far(explained, evaluations):
    run = explained(
        LooksAtRegions(LEFT), IntegratedGradients(), image(LEFT), target=1, budget=Budget(evaluations=evaluations)
    )
    assert run.of(Truncated) == [Truncated("evaluations")]
    assert bool(run.saliency.any()) is (evaluations > 0)
    assert len(run.of(SaliencyMask)) == 1 + evaluations // 16

"""Meaningful perturbation is I-GOS with one point at the end of the path and no noise."""

import pytest
import torch
from known_models import LEFT, Constant, LooksAtRegions, image

from sagittal.engine import Budget
from sagittal.explain import IGOS, MeaningfulPerturbation
from sagittal.explain.events import SaliencyMask, Truncated
from sagittal.explain.masks import optimisation
from sagittal.explain.masks.meaningful_perturbation import START


def blurred(picture):
    return torch.linspace(-0.5, 0.5, picture.shape[-1]).expand_as(picture).clone()


def test_it_equals_i_gos_with_one_point_and_no_noise(explained, monkeypatch):
    picture = image(LEFT)
    shared = {"mask_size": 14, "iterations": 8, "l1_weight": 0.7, "tv_weight": 3.0, "step_size": 0.05}
    plain = explained(
        LooksAtRegions(LEFT), MeaningfulPerturbation(**shared), picture, target=1, baseline=blurred(picture)
    )
    monkeypatch.setattr(optimisation, "stratified", lambda terms, points, generator: torch.ones(terms, points))
    monkeypatch.setattr(IGOS, "start", START)
    igos = explained(
        LooksAtRegions(LEFT),
        IGOS(points=1, noise=0.0, levels=0, btv_weight=0.0, **shared),
        picture,
        target=1,
        baseline=blurred(picture),
    )
    assert torch.equal(plain.saliency, igos.saliency)
    assert bool(plain.saliency.any())
    assert plain.usage.gradient_evaluations == igos.usage.gradient_evaluations == 8


def test_it_depends_on_no_seed(explained):
    picture = image(LEFT)
    first, second = (
        explained(
            LooksAtRegions(LEFT),
            MeaningfulPerturbation(iterations=5),
            picture,
            target=1,
            baseline=blurred(picture),
            seed=seed,
        ).saliency
        for seed in (1, 2)
    )
    assert torch.equal(first, second)


def test_it_finds_the_region(explained):
    picture = image(LEFT)
    run = explained(LooksAtRegions(LEFT), MeaningfulPerturbation(), picture, target=1, baseline=blurred(picture))
    inside = torch.zeros(28, 28, dtype=torch.bool)
    inside[LEFT[0] // 2 : LEFT[2] // 2, LEFT[1] // 2 : LEFT[3] // 2] = True
    assert float(run.saliency[inside].mean()) > 0.3
    assert float(run.saliency[~inside].mean()) < 0.05


def test_a_constant_model_gives_nothing(explained):
    run = explained(Constant(), MeaningfulPerturbation(), image(LEFT), target=1)
    assert float(run.saliency.max()) < 0.05


@pytest.mark.parametrize("evaluations", [0, 3])
def test_a_budget_gives_the_best_so_far(explained, evaluations):
    run = explained(
        LooksAtRegions(LEFT), MeaningfulPerturbation(), image(LEFT), target=1, budget=Budget(evaluations=evaluations)
    )
    assert run.of(Truncated) == [Truncated("evaluations")]
    assert run.of(SaliencyMask)[-1].final

"""RISE estimates what its expectation says, and nothing where there is nothing."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from known_models import LEFT, SIZE, Constant, LooksAtRegions, image
from torch import nn

from sagittal.engine import Budget, Output
from sagittal.explain import RISE, InvalidParameter
from sagittal.explain.attribution.rise import random_masks
from sagittal.explain.events import Progress, SaliencyMask, Truncated


def expected_effect(weights, grid):
    """Returns sum_y w(y) cov(M(y), M(x)) / var over all shifts of the grid, exactly."""
    size = weights.shape[-1]
    cell = size // grid
    basis = torch.eye((grid + 1) ** 2).view(-1, 1, grid + 1, grid + 1)
    large = F.interpolate(basis, scale_factor=cell, mode="bilinear", align_corners=False)[:, 0]
    effects = []
    for top, left in itertools.product(range(cell), repeat=2):
        parts = large[:, top : top + size, left : left + size].flatten(1)
        effects.append(parts.T @ (parts @ weights.flatten()))
    return torch.stack(effects).mean(0).view(size, size)


def test_it_converges_to_the_known_expectation_on_an_additive_model(explained, additive):
    weights = torch.zeros(16, 16)
    weights[2:6, 2:6], weights[9:14, 8:12] = 0.03, 0.015
    run = explained(
        additive(weights),
        RISE(masks=20_000, grid=2, probability=0.4, mask_size=16),
        torch.ones(3, 16, 16),
        output=Output.PROBABILITIES,
    )
    expected = expected_effect(weights, 2)
    assert torch.allclose(run.saliency / run.saliency.max(), expected / expected.max(), atol=0.04)


def test_the_peak_is_the_share_of_the_score_that_places_add_together(explained, additive):
    weights = torch.zeros(32, 32)
    weights[8:20, 10:24] = 1 / (12 * 14)
    run = explained(
        additive(weights),
        RISE(masks=20_000, grid=4),
        torch.ones(3, 32, 32),
        baseline=torch.full((3, 32, 32), 0.5),
        output=Output.PROBABILITIES,
    )
    assert float(run.saliency.max()) == pytest.approx(0.5, abs=0.06)


class Noise(nn.Module):
    """Scores that depend on the image as a hash does: on no place of it."""

    def forward(self, inputs):
        score = (inputs.sum((1, 2, 3)) * 1e4).sin() * 0.2 + 0.3
        return torch.stack([score, 1 - score], -1)


def test_noise_looks_empty(explained):
    run = explained(Noise(), RISE(masks=500), torch.ones(3, 56, 56), output=Output.PROBABILITIES)
    assert float(run.saliency.max()) < 0.1


def test_masks_keep_every_pixel_with_the_same_probability():
    masks = random_masks(4000, 5, 0.3, (23, 31), torch.Generator().manual_seed(0))
    assert masks.shape == (4000, 23, 31)
    assert 0 <= float(masks.min()) <= float(masks.max()) <= 1
    assert torch.allclose(masks.mean(0), torch.full((23, 31), 0.3), atol=0.04)


@pytest.mark.parametrize("size", [(224, 224), (30, 45)])
def test_masks_are_windows_of_grids_that_are_upsampled(size):
    """As the paper's procedure makes them: stretch the whole grid, cut a window out at a random place."""
    masks = random_masks(8, 7, 0.5, size, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    kept = (torch.rand(8, 1, 8, 8, generator=generator) < 0.5).float()
    lengths = [-(-side // 7) for side in size]
    tops, lefts = (torch.randint(length, (8,), generator=generator).tolist() for length in lengths)
    stretched = F.interpolate(kept, size=[8 * length for length in lengths], mode="bilinear")[:, 0]
    for mask, whole, top, left in zip(masks, stretched, tops, lefts, strict=True):
        window = whole[top : top + size[0], left : left + size[1]]
        torch.testing.assert_close(mask, window, atol=1e-6, rtol=0)


def test_masks_are_shifted_by_parts_of_a_cell():
    masks = random_masks(50, 4, 0.5, (16, 16), torch.Generator().manual_seed(0))
    changes = (masks.diff(dim=-1).abs() > 0).float().sum((0, 1))
    assert bool((changes > 0).all())


def test_a_constant_model_gives_exactly_nothing_from_any_number_of_masks(explained):
    run = explained(Constant(), RISE(masks=10), image(LEFT), target=1)
    assert float(run.saliency.abs().max()) < 1e-6


def test_it_points_at_the_region_that_the_model_looks_at(explained):
    run = explained(LooksAtRegions(LEFT), RISE(masks=800, mask_size=28), image(LEFT), target=1)
    row, column = divmod(int(run.saliency.argmax()), 28)
    assert LEFT[0] <= row * 2 < LEFT[2]
    assert LEFT[1] <= column * 2 < LEFT[3]
    inside = run.saliency[LEFT[0] // 2 : LEFT[2] // 2, LEFT[1] // 2 : LEFT[3] // 2].mean()
    assert float(inside) > 4 * float(run.saliency[20:, 20:].mean())


def test_forming_heatmaps_come_before_the_final_one(explained):
    run = explained(LooksAtRegions(LEFT), RISE(masks=300), image(LEFT), target=1)
    masks = run.of(SaliencyMask)
    assert len(masks) == 4
    assert [mask.final for mask in masks] == [False, False, False, True]
    assert torch.equal(masks[-2].saliency, masks[-1].saliency)
    assert [progress.fraction for progress in run.of(Progress)] == pytest.approx([128 / 300, 256 / 300, 1.0])


@pytest.mark.parametrize("evaluations", [0, 1, 100, 200])
def test_a_budget_is_used_to_the_last_evaluation(explained, evaluations):
    run = explained(
        LooksAtRegions(LEFT), RISE(masks=1000), image(LEFT), target=1, budget=Budget(evaluations=evaluations)
    )
    assert run.of(Truncated) == [Truncated("evaluations")]
    assert run.usage.evaluations == evaluations
    assert run.saliency.shape == (28, 28)


def test_the_seed_settles_the_masks(explained):
    first, again, other = (
        explained(LooksAtRegions(LEFT), RISE(masks=50), image(LEFT), target=1, seed=seed).saliency for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("name", "value"), [("masks", 0), ("grid", 65), ("probability", 0.0), ("probability", 1.0)])
def test_parameters_out_of_bounds_name_themselves(name, value):
    with pytest.raises(InvalidParameter, match=name):
        RISE(**{name: value})


def test_a_grid_finer_than_the_image_still_works(explained):
    run = explained(LooksAtRegions(LEFT), RISE(masks=8, grid=64), image(LEFT, size=SIZE), target=1)
    assert bool(torch.isfinite(run.saliency).all())

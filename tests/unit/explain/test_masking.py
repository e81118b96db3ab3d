"""Masks and blurs by matrix products are those of the operations that they stand for."""

import pytest
import torch
import torch.nn.functional as F

from sagittal.engine.masking import gaussian_blur, stretched_units, upsample
from sagittal.engine.requests import Subject
from sagittal.explain.masks.descent import smoothed
from sagittal.explain.masks.regularisers import bilateral_total_variation
from sagittal.explain.problem import Problem, edge_weights


def problem(height=30, width=20):
    image = torch.randn(3, height, width, generator=torch.Generator().manual_seed(0))
    return Problem(subject=Subject(image, -image, 0), unmasked_score=0.5, baseline_score=0.0)


@pytest.mark.parametrize("cells", [(1, 1), (7, 5), (28, 28), (30, 20)])
def test_enlarged_masks_and_their_gradient_are_those_of_interpolation(cells):
    asked, masks = problem(), torch.rand(2, *cells, requires_grad=True)
    enlarged, expected = asked.enlarged(masks), upsample(masks, asked.size)[:, 0]
    torch.testing.assert_close(enlarged, expected, atol=1e-6, rtol=1e-5)
    along = torch.randn(enlarged.shape)
    mine, theirs = (torch.autograd.grad(large, masks, along)[0] for large in (enlarged, expected))
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_a_line_keeps_what_is_level():
    assert torch.allclose(stretched_units(7, 100).sum(1), torch.ones(100))


def test_edges_are_worked_out_once():
    asked = problem()
    for found, expected in zip(asked.edges, edge_weights(asked.image), strict=True):
        assert torch.equal(found, expected)
    assert asked.edges is asked.edges


@pytest.mark.parametrize("sigma", [1.0, 4.0, 50.0])
def test_a_blur_weighs_each_pixel_by_its_distance(sigma):
    image = problem().image
    blurred = gaussian_blur(image, sigma)
    for axis, side in ((-2, 30), (-1, 20)):
        radius = min(max(1, -int(-sigma // 2)), side - 1)
        weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
        lines = image.movedim(axis, -1).reshape(-1, 1, side)
        lines = F.conv1d(F.pad(lines, (radius, radius), mode="reflect"), (weights / weights.sum()).view(1, 1, -1))
        image = lines.view(*image.movedim(axis, -1).shape).movedim(-1, axis)
    torch.testing.assert_close(blurred, image, atol=1e-6, rtol=1e-5)


def test_bilateral_total_variation_has_the_gradient_of_what_it_sums():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(2, 6, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    edges = [torch.rand(shape, generator=generator, dtype=torch.float64) for shape in ((5, 5), (6, 4))]
    squares = edges[0] * masks.diff(dim=-2) ** 2, edges[1] * masks.diff(dim=-1) ** 2
    expected = (squares[0].sum((-2, -1)) + squares[1].sum((-2, -1))) / 30
    torch.testing.assert_close(bilateral_total_variation(masks, tuple(edges)), expected)
    assert torch.autograd.gradcheck(lambda masks: bilateral_total_variation(masks, tuple(edges)), masks)


@pytest.mark.parametrize("sigma", [0.5, 2.0, 6.0])
def test_smoothing_weighs_each_cell_by_its_distance_and_repeats_the_ends(sigma):
    values, radius = torch.randn(2, 14, 9, generator=torch.Generator().manual_seed(0)), int(3 * sigma + 0.5)
    kernel = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(values.unsqueeze(1), (radius,) * 4, mode="replicate")
    expected = F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)).squeeze(1)
    torch.testing.assert_close(smoothed(values, sigma), expected, atol=1e-6, rtol=1e-5)


def test_no_smoothing_leaves_values_as_they_are():
    values = torch.randn(1, 3, 3)
    assert smoothed(values, 0) is values

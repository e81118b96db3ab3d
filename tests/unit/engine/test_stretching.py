"""Stretching masks by matrices is upsampling, whatever the batch."""

import pytest
import torch

from sagittal.engine.composition import stretch_of
from sagittal.engine.masking import upsample
from sagittal.engine.requests import Upsampling

CPU = torch.device("cpu")
SIZES = [((7, 7), (224, 224)), ((28, 28), (224, 224)), ((5, 9), (57, 33)), ((16, 8), (16, 40)), ((12, 12), (12, 12))]


@pytest.mark.parametrize("how", list(Upsampling))
@pytest.mark.parametrize(("cells", "size"), SIZES)
def test_stretching_is_upsampling(cells, size, how):
    masks = torch.rand(3, *cells)
    stretched = stretch_of(cells, size, how, CPU).up(masks)
    torch.testing.assert_close(stretched, upsample(masks, size, how)[:, 0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("how", list(Upsampling))
@pytest.mark.parametrize(("cells", "size"), SIZES)
def test_the_way_back_is_the_gradient(cells, size, how):
    masks, of_pixels = torch.rand(3, *cells).requires_grad_(), torch.randn(3, *size)
    (expected,) = torch.autograd.grad(upsample(masks, size, how)[:, 0], masks, of_pixels)
    back = stretch_of(cells, size, how, CPU).back(of_pixels)
    torch.testing.assert_close(back, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("how", list(Upsampling))
@pytest.mark.parametrize(("cells", "size"), SIZES)
def test_a_row_is_the_same_wherever_it_lies(cells, size, how):
    stretch = stretch_of(cells, size, how, CPU)
    masks, of_pixels = torch.rand(9, *cells), torch.randn(9, *size)
    for rows in (slice(0, 1), slice(3, 4), slice(3, 8), slice(1, 9)):
        torch.testing.assert_close(stretch.up(masks[rows]), stretch.up(masks)[rows], atol=1e-6, rtol=0)
        torch.testing.assert_close(stretch.back(of_pixels[rows]), stretch.back(of_pixels)[rows], atol=1e-4, rtol=1e-5)


def test_boxes_stay_exact():
    stretched = stretch_of((7, 7), (224, 224), Upsampling.BOX, CPU).up((torch.rand(4, 7, 7) > 0.5).float())
    assert set(stretched.unique().tolist()) == {0.0, 1.0}

"""A picture of any size becomes the input that the model was trained on."""

import numpy as np
import pytest
import torch

from sagittal.core.models import Preprocessing
from sagittal.imaging.fitting import fit_to_input, visible_box
from sagittal.models.preprocessing import black, to_input

PLAIN = {"input_size": 16, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "nearest"}


def squash(**fields):
    return Preprocessing(**PLAIN | {"fit": "squash"} | fields)


def crop(**fields):
    return Preprocessing(**PLAIN | {"fit": "crop", "resize": 16} | fields)


def thirds(height=48, width=96):
    """Red on the left, green in the middle, blue on the right."""
    picture = np.zeros((height, width, 3), np.uint8)
    for channel, columns in enumerate(np.array_split(np.arange(width), 3)):
        picture[:, columns, channel] = 255
    return picture


def test_squash_shows_the_whole_picture():
    seen = fit_to_input(thirds(), squash())
    assert seen.shape == (16, 16, 3)
    assert seen[:, 0].tolist() == [[255, 0, 0]] * 16
    assert seen[:, -1].tolist() == [[0, 0, 255]] * 16


def test_pad_shows_the_whole_picture_in_its_proportions_between_black():
    seen = fit_to_input(thirds(height=48, width=96), squash(fit="pad"))
    assert seen.shape == (16, 16, 3)
    assert not seen[:4].any()
    assert not seen[12:].any()
    assert np.array_equal(seen[4:12], fit_to_input(thirds(), squash())[4:12])
    assert visible_box((48, 96), squash(fit="pad")) == pytest.approx((0, -24, 96, 72))


@pytest.mark.parametrize("shape", [(1, 3000), (60_000, 2)])
def test_pad_keeps_a_row_of_a_very_long_picture(shape):
    seen = fit_to_input(np.full((*shape, 3), 51, np.uint8), squash(fit="pad"))
    assert (seen == 51).any(axis=2).sum() == 16


def test_crop_shows_the_centre_of_the_longer_side():
    seen = fit_to_input(thirds(height=32, width=96), crop())
    assert (seen == [0, 255, 0]).all()


def test_crop_leaves_out_the_border_by_the_ratio_of_input_to_resize():
    assert visible_box((100, 100), crop(resize=20)) == pytest.approx((10, 10, 90, 90))
    assert visible_box((50, 100), crop()) == pytest.approx((25, 0, 75, 50))


@pytest.mark.parametrize("preprocessing", [squash(), crop(), crop(resize=20)], ids=["squash", "crop", "crop of more"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (60_000, 2), (7, 5)])
def test_a_picture_of_one_colour_stays_so_whatever_its_shape(shape, preprocessing):
    inputs = to_input(np.full((*shape, 3), 51, np.uint8), preprocessing)
    assert inputs.dtype == torch.float32
    torch.testing.assert_close(inputs, torch.full((3, 16, 16), 0.2))


def test_channels_are_normalised_and_ordered_as_the_model_takes_them():
    picture = np.full((4, 4, 3), (255, 51, 0), np.uint8)
    settings = {"mean": (0.5, 0.2, 0.0), "std": (0.5, 1.0, 2.0)}
    assert to_input(picture, squash(**settings))[:, 0, 0].tolist() == pytest.approx([1, 0, 0])
    assert to_input(picture, squash(**settings, channel_order="BGR"))[:, 0, 0].tolist() == pytest.approx([-1, 0, 0.5])


def test_black_is_what_a_black_picture_becomes():
    preprocessing = squash(mean=(0.5, 0.2, 0.1), std=(0.5, 1.0, 2.0))
    inputs = to_input(np.zeros((5, 5, 3), np.uint8), preprocessing)
    torch.testing.assert_close(black(preprocessing).expand(3, 16, 16), inputs)

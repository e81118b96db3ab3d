"""Alterations: what a file or a shift does to an image, on inputs of any scale."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from sagittal.engine.alterations import Jpeg, PixelScale, Rounding, Shift
from sagittal.engine.composition import Composer, Part
from sagittal.engine.memo import ScoreMemo
from sagittal.engine.requests import Evaluate, Scores, Subject

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE = PixelScale(
    tuple(-mean / std for mean, std in zip(MEAN, STD, strict=True)),
    tuple((1 - mean) / std for mean, std in zip(MEAN, STD, strict=True)),
)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)


@pytest.mark.parametrize("scale", [SCALE, PixelScale(SCALE.black, SCALE.white, bgr=True)], ids=["rgb", "bgr"])
def test_pixels_come_back_from_inputs_unchanged(scale, pixels):
    inputs = scale.inputs(pixels)
    assert np.array_equal(scale.pixels(inputs), pixels)
    assert torch.allclose(scale.rounded(inputs), inputs, atol=1e-6)
    channel = 2 if scale.bgr else 0
    assert torch.allclose(inputs[:, 0], (torch.from_numpy(pixels[..., channel]) / 255 - MEAN[0]) / STD[0], atol=1e-5)


def test_an_image_fits_if_its_pixels_are_whole_levels(pixels):
    image = SCALE.inputs(pixels)[0]
    assert SCALE.fits(image)
    assert SCALE.fits(image.half().float())
    assert not SCALE.fits(image + 0.4 / 255 / 0.225)
    assert not SCALE.fits(image * 3)


def test_rounding_gives_whole_levels_between_black_and_white():
    inputs = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 3
    Rounding(SCALE)(inputs)
    assert SCALE.fits(inputs[0])
    assert SCALE.pixels(inputs).max() == 255
    assert SCALE.pixels(inputs).min() == 0


def test_jpeg_is_what_a_file_holds(pixels):
    inputs = SCALE.inputs(pixels)
    Jpeg(SCALE, quality=95)(inputs)
    for row, source in zip(SCALE.pixels(inputs), pixels, strict=True):
        file = io.BytesIO()
        Image.fromarray(source).save(file, "JPEG", quality=95)
        assert np.array_equal(row, np.asarray(Image.open(file)))
        assert not np.array_equal(row, source)


def test_a_shift_moves_the_image_and_repeats_its_border():
    inputs = torch.arange(9.0).view(1, 1, 3, 3).expand(2, 3, 3, 3).clone()
    Shift(1, 0)(inputs)
    assert inputs[0, 0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]
    Shift(0, -1)(inputs)
    assert inputs[1, 2].tolist() == [[1, 2, 2], [1, 2, 2], [4, 5, 5]]


def evaluate(**options) -> Evaluate:
    image = SCALE.inputs(np.full((1, 4, 4, 3), 255, np.uint8))[0]
    return Evaluate(subject=Subject(image, -image, 0), masks=torch.full((3, 2, 2), 0.5), **options)


def test_composed_images_are_altered_in_order_whatever_the_batch():
    request = evaluate(alterations=(Rounding(SCALE), Shift(0, 1)))
    composer = Composer(torch.device("cpu"))
    whole, rows = torch.empty(3, 3, 4, 4), torch.empty(3, 3, 4, 4)
    composer.compose(Part(request, 0, 3), whole)
    for row in range(3):
        composer.compose(Part(request, row, row + 1), rows[row : row + 1])
    assert torch.equal(whole, rows)
    assert SCALE.fits(whole[0])


def test_alterations_have_no_gradient():
    with pytest.raises(ValueError, match="without gradient"):
        Composer(torch.device("cpu")).compose(
            Part(evaluate(alterations=(Rounding(SCALE),), gradient=True), 0, 3), torch.empty(3, 3, 4, 4)
        )


def test_the_memo_keeps_altered_images_apart():
    memo = ScoreMemo(10_000_000)
    plain, altered = evaluate(), evaluate(alterations=(Jpeg(SCALE),))
    first = memo.recall(plain, 1)
    probabilities = torch.tensor([[0.2, 0.8]] * 3)
    memo.remember(first, Scores(probabilities[:, 0], torch.ones(3), probabilities[:, 1], None, probabilities))
    assert memo.recall(plain, 1).rest is None
    assert memo.recall(altered, 1).rest is not None
    assert memo.recall(evaluate(alterations=(Jpeg(SCALE, 90),)), 1).rest is not None

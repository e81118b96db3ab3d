"""A cause in a few images of a group, which is lost in the mean over all, is found by the fall without it."""

from dataclasses import replace

import numpy as np
import pytest
from audited_world import RED, SIZE, draw, evidence_of, red_probability

from sagittal.audit.confirmation import confirm
from sagittal.audit.findings import Thresholds

COUNT, STRIPED = 40, 5

STRIPES = np.where(np.arange(SIZE) // 2 % 2, 40, 215).astype(np.uint8)[:, None, None]


def striped(pixels):
    """Returns how much the pixels are like the stripes, -1 to 1."""
    return float(((STRIPES / 127.5 - 1) * (pixels.mean(2, keepdims=True) / 127.5 - 1)).mean()) / 0.47


def score(edited):
    reds = []
    for pixels, _ in edited:
        odds = red_probability(pixels, reads_mark=False)
        logit = np.log(odds / (1 - odds)) * (0.1 if striped(pixels) > 0.4 else 1) + 8 * max(striped(pixels), 0)
        reds.append(1 / (1 + np.exp(-logit)))
    return [red if label == RED else 1 - red for red, (_, label) in zip(reds, edited, strict=True)]


@pytest.fixture(scope="module")
def evidence():
    images = draw(COUNT, marked=0)
    for index in range(STRIPED):
        pixels = np.where(images[index].square[..., None], (200, 110, 110), STRIPES).astype(np.uint8)
        images[index] = replace(images[index], pixels=pixels)
    found = evidence_of(images, reads_mark=False)
    return [replace(each, score=score([(each.picture(), each.label)])[0]) for each in found]


def test_a_background_of_few_images_is_a_finding_with_these_images_alone(evidence) -> None:
    (first, *_) = confirm(evidence, score, Thresholds()).confirmed
    assert (first.finding.kinds, first.finding.group) == (("background",), "red")
    assert set(first.tested.candidate.regions) == set(range(STRIPED))
    listed = {each.key for each in first.finding.listing if each.listed}
    assert listed == {f"red/{number:03d}.png" for number in range(STRIPED)}
    assert len(first.finding.listing) == COUNT


def test_what_was_chosen_by_removing_is_confirmed_by_adding_alone(evidence) -> None:
    (first, *_) = confirm(evidence, score, Thresholds()).confirmed
    assert first.finding.confirmed_by == ("adding",)
    assert first.finding.removed is None
    assert first.finding.added.low > 0.3

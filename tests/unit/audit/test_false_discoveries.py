"""Candidates without any effect of their own get small p-values as seldom as the tests promise."""

import numpy as np
import pytest

from sagittal.audit.candidates import Candidate
from sagittal.audit.evidence import Evidence
from sagittal.audit.interventions import Laboratory, _own_controls

SIZE, GRID, GROUP = 8, 4, 24


def laboratory(seed: int) -> Laboratory:
    """Returns images that belong to two groups at random, and a classifier that adds up all pixels at random."""
    generator = np.random.default_rng(seed)
    weights = generator.normal(0, 0.3, (SIZE, SIZE, 3))
    tints = generator.normal(128, 30, (2 * GROUP, 1, 1, 3)) + generator.normal(0, 12, (2 * GROUP, SIZE, SIZE, 3))
    pictures = np.clip(tints, 0, 255).astype(np.uint8)
    evidence = [
        Evidence(
            key=f"{index:02d}", label=int(index >= GROUP), group=f"{index >= GROUP}", score=0.5, top=0,
            saliency=np.ones((GRID, GRID), np.float32), picture=lambda each=each: each,
        )
        for index, each in enumerate(pictures)
    ]  # fmt: skip

    def score(edited):
        logits = [float((weights * (pixels / 255 - 0.5)).sum()) * (1 - 2 * label) for pixels, label in edited]
        return [1 / (1 + np.exp(-each)) for each in logits]

    return Laboratory(evidence, score, seed)


def test_pasting_regions_of_a_random_group_is_seldom_significant() -> None:
    region = np.zeros((GRID, GRID), bool)
    region[3, 3] = True
    candidate = Candidate(group="False", kinds=("place",), regions=dict.fromkeys(range(4), region))
    values = [laboratory(seed).test(candidate).added.p for seed in range(60)]
    assert np.mean(np.array(values) <= 0.05) <= 0.15


def test_choosing_images_by_the_fall_without_a_region_makes_pasting_it_no_more_significant() -> None:
    region = np.zeros((GRID, GRID), bool)
    region[3, 3] = True
    candidate = Candidate(group="False", kinds=("outside",), regions=dict.fromkeys(range(GROUP), region))
    values = []
    for seed in range(60):
        world = laboratory(seed)
        falls = sorted(
            world.evidence[index].score - after
            for index, after in enumerate(
                world.score([(world.without(candidate, index, region), 0) for index in range(GROUP)])
            )
        )
        chosen = world.screen(candidate, falls[-8])
        assert len(chosen.regions) == 8
        tested = world.test(chosen)
        assert tested.removed is None
        values.append(tested.added.p)
    assert np.mean(np.array(values) <= 0.05) <= 0.15


@pytest.mark.parametrize(("count", "tested", "controls"), [(8, 8, 1), (30, 24, 1), (16, 8, 1), (60, 12, 3)])
def test_no_image_is_its_own_control_or_that_of_two(count: int, tested: int, controls: int) -> None:
    images = list(range(tested))
    found = _own_controls(np.random.default_rng(0), range(count), images)
    assert {len(each) for each in found} == {controls}
    assert all(image not in each for image, each in zip(images, found, strict=True))
    used = [other for each in found for other in each]
    assert len(set(used)) == len(used)

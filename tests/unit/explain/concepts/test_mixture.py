"""X-features that stand for "A or B" are found out, and others are not accused."""

import torch
from torch import Tensor

from sagittal.explain.concepts.view import agreement, find_mixture


def a_or_b(images: int = 200, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Returns features with two factors that never occur together, the output that wants either, and which is there."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(0, 4, (images,), generator=generator)  # 0: A, 1: B, else neither
    strength = 0.5 + torch.rand(images, generator=generator)
    there = torch.stack([strength * (which == 0), strength * (which == 1)], 1)
    features = there.repeat_interleave(10, 1) + 0.1 * torch.randn(images, 20, generator=generator)
    return features, there.sum(1, keepdim=True), which


def test_a_or_b_is_packed_in_one_x_feature_flagged_and_its_groups_are_a_and_b(fit_network):
    features, outputs, which = a_or_b()
    fit = fit_network(features, outputs, concepts=1, beta=0.1)
    found = find_mixture(fit.srae.encode(features)[:, 0].detach(), features)
    assert found.mixed
    kinds = which[found.exciting]
    assert len(set(kinds[found.groups == 0].tolist())) == 1
    assert set(kinds.tolist()) == {0, 1}


def test_one_thing_is_not_flagged(fit_network):
    generator = torch.Generator().manual_seed(0)
    flagged = 0
    for seed in range(5):
        strength = torch.rand(200, 3, generator=generator)
        features = strength.repeat_interleave(10, 1) + 0.1 * torch.randn(200, 30, generator=generator)
        flagged += find_mixture(strength[:, 0], features, seed=seed).mixed
    assert flagged == 0


def test_noise_is_not_flagged_however_few_images_there_are():
    generator = torch.Generator().manual_seed(0)
    found = [
        find_mixture(torch.rand(40, generator=generator), torch.randn(40, 300, generator=generator), seed=seed).mixed
        for seed in range(10)
    ]
    assert not any(found)


def test_a_handful_of_images_says_nothing():
    assert not find_mixture(torch.rand(5), torch.randn(5, 8)).mixed


def test_agreement_is_one_for_images_that_look_the_same_and_zero_for_unrelated_ones():
    assert abs(agreement(torch.ones(4, 3)) - 1) < 1e-6
    assert abs(agreement(torch.eye(4))) < 1e-6

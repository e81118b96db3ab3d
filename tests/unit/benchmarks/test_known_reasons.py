"""The benchmark of known reasons, on networks and heatmaps whose figures are known by construction."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from known_reasons import concepts, measuring, truth
from known_reasons.networks import MEAN, SIZE, STD, Networks, Recipe, digest_of, to_input, untrained
from torch import Tensor, nn

from sagittal.synthetic import CLASSES, MATTERING, PARTS, Mark, Sample, sample_images


class SeesRed(nn.Module):
    """The logit of the woodpecker is the red of the image, beyond twice its green and blue; others are 0."""

    def forward(self, images: Tensor) -> Tensor:
        pixels = images * STD + MEAN
        redness = (pixels[:, 0] - 2 * pixels[:, 1:].amax(1)).clamp(min=0).mean((1, 2))
        return redness[:, None] * torch.eye(len(CLASSES))[CLASSES.index("woodpecker")]


@pytest.fixture(scope="module")
def both() -> Sample:
    """A woodpecker with a red crown and a spotted belly."""
    return next(each for each in sample_images(200, size=SIZE) if len(each.reasons) == 2)


def test_the_effect_of_a_part_is_what_the_network_uses(both) -> None:
    effects = truth.part_effects(SeesRed(), both)
    assert effects["crown"] > 0
    assert all(abs(effects[part]) < effects["crown"] / 20 for part in set(PARTS) - {"crown"})


def test_a_part_of_no_rule_gets_its_other_traits_and_a_plain_one_is_left_out(both) -> None:
    assert [each.traits["legs"] for each in truth.neutral_scenes(both.scene, "legs")] != [both.scene.traits["legs"]]
    (plain,) = truth.neutral_scenes(both.scene, "crown")
    assert plain.traits["crown"] == "plain"
    (removed,) = truth.neutral_scenes(plain, "crown")
    assert removed.removed == {"crown"}


def test_the_heatmap_of_the_true_parts_has_the_best_figures_and_an_even_one_its_area(both) -> None:
    effects = {part: float(part in ("crown", "belly")) for part in PARTS}
    best, even = (
        measuring.heatmap_figures(measuring.CONTROLS[name](both), both, effects)
        for name in ("the true parts alike", "every pixel alike")
    )
    assert best["share"] == pytest.approx(1)
    assert best["ranking"] == pytest.approx(1)
    assert (best["background"], best["first"]) == (0, 1)
    assert even["share"] == pytest.approx(even["area"])
    assert even["ranking"] == 0


def test_a_set_names_the_reasons_whose_parts_it_shows(both) -> None:
    crown, belly = both.drawing.mask("crown"), both.drawing.mask("belly")
    figures = measuring.set_figures([crown, belly], both)
    assert (figures["recall"], figures["precision"], figures["alone"]) == (1, 1, 1)
    figures = measuring.set_figures([crown, ~both.drawing.bird], both)
    assert (figures["recall"], figures["precision"]) == (0.5, 0.5)
    together = measuring.set_figures([crown | belly], both)
    assert (together["recall"], together["alone"]) == (1, 0)
    none = measuring.set_figures([], both)
    assert none["recall"] == 0
    assert "precision" not in none


def test_a_conjunction_is_named_by_both_of_its_parts_only() -> None:
    warbler = next(each for each in sample_images(20, size=SIZE) if each.label == "warbler")
    belly, bars = warbler.drawing.mask("belly"), warbler.drawing.mask("wing bars")
    assert measuring.set_figures([belly], warbler)["recall"] == 0
    assert measuring.set_figures([belly | bars], warbler)["recall"] == 1
    assert measuring.mattering_parts(warbler) == {"belly", "wing bars"} < MATTERING


def test_methods_find_the_part_that_a_network_uses(both) -> None:
    for saliency, _ in (
        measuring.our_heatmap("occlusion", SeesRed(), both),
        measuring.captum_heatmap("Captum Integrated Gradients", SeesRed(), both),
    ):
        effects = {part: float(part == "crown") for part in PARTS}
        assert saliency.shape == (SIZE, SIZE)
        assert measuring.heatmap_figures(saliency, both, effects)["first"] == 1


def test_networks_are_stored_by_what_they_depend_on(tmp_path) -> None:
    recipe = Recipe(images=12, epochs=1)
    networks = Networks(tmp_path)
    trained = networks.get(recipe)
    stored = Networks(tmp_path).get(recipe)
    image = to_input(next(sample_images(1, size=SIZE)).image)[None]
    assert torch.allclose(trained(image), stored(image), atol=1e-3)
    changed = [
        replace(recipe, seed=1),
        replace(recipe, mark=Mark("printed", {"warbler": 0.5})),
        replace(recipe, epochs=2),
    ]
    assert len({digest_of(each) for each in [recipe, *changed]}) == 4
    assert networks.has(recipe)
    assert not networks.has(changed[0])


@pytest.mark.parametrize("architecture", ["pooled", "hidden", "residual"])
def test_networks_map_images_to_logits(architecture) -> None:
    assert untrained(architecture).eval()(torch.zeros(2, 3, SIZE, SIZE)).shape == (2, len(CLASSES))


def test_inputs_are_normalised() -> None:
    assert to_input(np.full((2, 2, 3), 255, np.uint8)).max() == pytest.approx(2)


def test_x_features_are_matched_with_the_traits_that_they_separate() -> None:
    traits = np.array([[1, 0], [1, 1], [0, 1], [0, 0]] * 5, float)
    values = np.stack([np.tile([1.0, 4, 2, 3], 5), -traits[:, 1], traits[:, 0]], 1)
    separated, pairs = concepts.matching(values, traits)
    assert sorted(pairs) == [(1, 1), (2, 0)]
    assert separated == [1, 1]


def test_x_features_that_are_the_traits_have_the_best_figures_and_equal_shares() -> None:
    traits = (torch.rand(400, 2, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    outputs = traits.sum(1, keepdim=True)
    figures = concepts.judged(traits, outputs, outputs, traits, traits, torch.ones(2, 1), traits)
    assert figures["recovery"] == 1
    assert figures["purity"] > 0.98
    assert figures["largest"] == pytest.approx(0.5, abs=0.02)
    assert (figures["correlation"], figures["rebuilt"]) == (pytest.approx(1), 1)
    mixed = concepts.judged(outputs, outputs, outputs, traits, traits, torch.ones(1, 1), traits)
    assert mixed["purity"] == pytest.approx(0.5, abs=0.05)
    assert mixed["auroc"] < 0.95

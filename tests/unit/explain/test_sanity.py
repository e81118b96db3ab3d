"""The model-randomisation check tells a heatmap of the model from a heatmap of the image."""

import pytest
import torch
from known_models import LEFT, image
from quality.sanity import randomisation_check, randomise, weighted_layers
from torch import nn

from sagittal.explain import ExcitationBackprop, GradCAM, IntegratedGradients, Occlusion

PICTURE = image(LEFT)


def trained():
    """A network that says class 0 where its input is a checkerboard of any sign."""
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(3, 6, 2, stride=2), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    return module.eval().requires_grad_(False)


def edges(module):
    return PICTURE.mean(0).diff(dim=0).abs()


def test_layers_go_from_the_output_down():
    assert weighted_layers(trained()) == ("6", "2", "0")


@pytest.mark.parametrize("explainer", [GradCAM(), ExcitationBackprop(), Occlusion(grid=7, window=1)])
def test_heatmaps_of_the_model_change_with_its_weights(explained, explainer):
    def heatmap(module):
        return explained(module, explainer, PICTURE).saliency

    states = list(randomisation_check(trained, heatmap))
    assert [state.layer for state in states] == ["6", "2", "0"]
    assert min(abs(state.correlation) for state in states) < 0.9


def test_an_edge_detector_fails_the_check():
    assert [state.correlation for state in randomisation_check(trained, edges)] == pytest.approx([1.0, 1.0, 1.0])


def test_a_heatmap_that_goes_empty_agrees_with_nothing():
    maps = iter([PICTURE.mean(0), torch.zeros(56, 56)])
    (state,) = randomisation_check(trained, lambda module: next(maps), layers=1)
    assert (state.layer, state.correlation) == ("0", 0.0)


def test_few_states_are_spread_and_end_with_all_weights_replaced():
    assert [state.layer for state in randomisation_check(trained, edges, layers=1)] == ["0"]
    assert [state.layer for state in randomisation_check(trained, edges, layers=2)][-1] == "0"
    with pytest.raises(ValueError, match="at least 1"):
        list(randomisation_check(trained, edges, layers=0))


def test_random_weights_keep_the_scale_of_those_they_replace_and_nothing_else():
    layer = nn.Linear(200, 100).requires_grad_(False)
    before = layer.weight.clone()
    randomise(layer, seed=1)
    assert float(layer.weight.std()) == pytest.approx(float(before.std()), rel=0.05)
    assert abs(float(torch.corrcoef(torch.stack([before.flatten(), layer.weight.flatten()]))[0, 1])) < 0.05


def test_the_seed_settles_the_check(explained):
    def heatmap(module):
        return explained(module, IntegratedGradients(steps=4, mask_size=7), PICTURE).saliency

    first, again = (list(randomisation_check(trained, heatmap, seed=5)) for _ in range(2))
    assert first == again

"""Grad-CAM on networks whose map can be written down, and on transformers."""

import math

import pytest
import torch
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer, resnet18

from sagittal.engine import Budget
from sagittal.explain import GradCAM, InvalidParameter, Unsupported
from sagittal.explain.events import Truncated


class PooledFeatures(nn.Module):
    """Two given feature maps (the first two channels of the image), their means weighed into two classes."""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True))
        self.head = nn.Linear(2, 2, bias=False)
        self.head.weight.data = torch.tensor([list(weights), [0.0, 0.0]])

    def forward(self, inputs):
        return self.head(self.features(inputs[:, :2] * 1.0).mean((2, 3)))


class Unread(PooledFeatures):
    """It has a layer whose places the class does not depend on, and one that is never run."""

    def __init__(self) -> None:
        super().__init__(2.0, 0.5)
        self.unread, self.never = nn.ReLU(), nn.ReLU()

    def forward(self, inputs):
        return super().forward(inputs) + 0 * self.unread(inputs[:, :2]).sum()


def two_spots():
    picture = torch.zeros(3, 4, 4)
    picture[0, 1, 2], picture[1, 3, 0] = 4.0, 8.0
    return picture


def test_it_is_the_weighted_sum_of_the_features_where_that_is_positive(explained):
    run = explained(PooledFeatures(2.0, 0.5), GradCAM(), two_spots())
    expected = torch.zeros(4, 4)
    expected[1, 2], expected[3, 0] = 2.0 * 4 / 16, 0.5 * 8 / 16
    strength = 1 - math.exp(-float(expected.sum()))
    assert torch.allclose(run.saliency, expected / expected.max() * strength, atol=1e-6)


def test_evidence_against_the_class_is_not_shown(explained):
    run = explained(PooledFeatures(2.0, -0.5), GradCAM(), two_spots())
    assert float(run.saliency[3, 0]) == 0.0
    assert float(run.saliency[1, 2]) > 0.3


def test_no_evidence_for_the_class_is_an_empty_heatmap(explained):
    run = explained(PooledFeatures(-2.0, -0.5), GradCAM(), two_spots())
    assert float(run.saliency.abs().max()) == 0.0


def test_weak_evidence_makes_a_weak_heatmap(explained):
    run = explained(PooledFeatures(0.02, 0.0), GradCAM(), two_spots())
    assert float(run.saliency.max()) == pytest.approx(1 - math.exp(-0.02 * 4 / 16), rel=1e-3)


@pytest.mark.parametrize("layer", [None, "layer4", "layer3.1.bn2", "layer1.0.relu"])
def test_it_works_at_any_spatial_layer_of_a_network_that_works_in_place(explained, layer):
    torch.manual_seed(0)
    run = explained(resnet18(num_classes=4), GradCAM(layer=layer), torch.randn(3, 64, 64), target=2)
    sizes = {None: 2, "layer4": 2, "layer3.1.bn2": 4, "layer1.0.relu": 16}
    assert run.saliency.shape == (sizes[layer], sizes[layer])
    assert 0 <= float(run.saliency.min()) <= float(run.saliency.max()) <= 1
    used = 2 if layer is None else 1  # to choose a layer takes an evaluation
    assert (run.usage.evaluations, run.usage.gradient_evaluations) == (used, used)


def test_at_one_layer_its_values_do_not_depend_on_what_follows_in_place(explained):
    torch.manual_seed(0)
    picture, module = torch.randn(3, 64, 64), resnet18(num_classes=4)
    first = explained(module, GradCAM(layer="layer3.1.bn2"), picture).saliency
    for layer in module.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    assert torch.equal(first, explained(module, GradCAM(layer="layer3.1.bn2"), picture).saliency)


def test_a_vision_transformer_has_a_map_of_its_tokens(explained):
    torch.manual_seed(0)
    module = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=4
    )
    nn.init.normal_(module.heads.head.weight)
    run = explained(module, GradCAM(), torch.randn(3, 32, 32))
    assert run.saliency.shape == (4, 4)
    assert bool(run.saliency.any())


def test_a_swin_transformer_holds_its_channels_last(explained):
    torch.manual_seed(0)
    module = SwinTransformer(
        patch_size=[4, 4], embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=[4, 4], num_classes=4
    )
    module.permute, kept = nn.Identity(), module.permute  # so that the last spatial layer is channels-last
    module.avgpool = nn.Sequential(kept, module.avgpool)
    run = explained(module, GradCAM(layer="norm"), torch.randn(3, 32, 32))
    assert run.saliency.shape == (4, 4)


def test_a_layer_of_no_influence_is_refused_and_one_without_evidence_gives_an_empty_heatmap(explained):
    with pytest.raises(InvalidParameter, match="does not affect the class by its positions"):
        explained(Unread(), GradCAM(layer="unread"), two_spots())
    run = explained(PooledFeatures(-2.0, -2.0), GradCAM(layer="features"), torch.zeros(3, 4, 4))
    assert not run.saliency.any()


@pytest.mark.parametrize("layer", ["never", "head"])
def test_a_layer_that_is_not_run_or_holds_no_places_is_named(explained, layer):
    with pytest.raises(InvalidParameter, match=f"the output of '{layer}' is not spatial; give one of features"):
        explained(Unread(), GradCAM(layer=layer), two_spots())


def test_an_unknown_layer_is_named(explained):
    with pytest.raises(InvalidParameter, match="no layer 'nowhere'"):
        explained(PooledFeatures(1.0, 1.0), GradCAM(layer="nowhere"), two_spots())


def test_a_model_without_a_spatial_layer_is_unsupported(explained):
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    with pytest.raises(Unsupported, match="no layer with a spatial output"):
        explained(module, GradCAM(), two_spots())


@pytest.mark.parametrize("evaluations", [0, 1])
def test_without_a_budget_the_heatmap_is_empty_and_says_so(explained, evaluations):
    run = explained(PooledFeatures(1.0, 1.0), GradCAM(), two_spots(), budget=Budget(evaluations=evaluations))
    assert run.of(Truncated) == [Truncated("evaluations")]
    assert float(run.saliency.abs().max()) == 0.0

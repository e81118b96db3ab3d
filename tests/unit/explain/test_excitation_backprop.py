"""Excitation backpropagation: probability is handed down whole, by hand-computed shares."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import VisionTransformer, densenet121, mobilenet_v2, resnet18, squeezenet1_1

from sagittal.explain import ExcitationBackprop, InvalidParameter, Unsupported
from sagittal.explain.attribution.excitation_backprop import winning_probability
from sagittal.explain.attribution.layers import spatial_layers


def winning(view, layer):
    return winning_probability(view, spatial_layers(view)[layer])


class TwoLayers(nn.Module):
    """Two places with one channel each -> two hidden neurons -> two classes, with weights to compute by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Identity()
        self.hidden = nn.Linear(4, 2)
        self.head = nn.Linear(2, 2)
        self.hidden.weight.data = torch.tensor([[1.0, 2.0, -3.0, 0.0], [0.0, 1.0, 1.0, 4.0]])
        self.head.weight.data = torch.tensor([[2.0, 1.0], [-1.0, 3.0]])
        self.hidden.bias.data = torch.tensor([5.0, -1.0])

    def forward(self, inputs):
        return self.head(F.relu(self.hidden(torch.flatten(self.places(inputs[:, :1]), 1))))


def test_two_layers_by_hand(view):
    picture = torch.zeros(3, 2, 2)
    picture[0] = torch.tensor([[1.0, 2.0], [1.0, 0.0]])
    # hidden = (1 + 4 - 3 + 5, 2 + 1 - 1) = (7, 2); class 0 takes 2 * 7 : 1 * 2 of it
    first, second = 14 / 16, 2 / 16
    # the first hidden neuron is won 1 : 4 by places 0 and 1 (its negative weight excites nothing), the second 2 : 1
    expected = [first * 1 / 5, first * 4 / 5 + second * 2 / 3, second * 1 / 3, 0.0]
    found = winning(view(TwoLayers(), picture), "places")
    assert found.flatten().tolist() == pytest.approx(expected)


def test_the_heatmap_is_that_probability_with_its_sum_as_the_peak(explained):
    picture = torch.zeros(3, 2, 2)
    picture[0] = torch.tensor([[1.0, 2.0], [1.0, 0.0]])
    run = explained(TwoLayers(), ExcitationBackprop(), picture)
    assert float(run.saliency.max()) == pytest.approx(1.0)
    assert float(run.saliency[0, 0] / run.saliency[0, 1]) == pytest.approx((14 / 80) / (14 / 20 + 1 / 12))


def test_what_only_a_bias_excites_comes_from_nowhere(view):
    module = TwoLayers()
    module.hidden.weight.data[0] = -1.0
    module.hidden.bias.data[0] = 100.0
    picture = torch.ones(3, 2, 2)
    found = winning(view(module, picture), "places")
    hidden = (100.0 - 4, 1 + 1 + 4 - 1)
    assert float(found.sum()) == pytest.approx(hidden[1] / (2 * hidden[0] + hidden[1]))


class Residual(nn.Module):
    """Features plus a branch of them: `relu(x + branch(x))`, in place, then the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Identity()
        self.branch = nn.Conv2d(1, 1, 1, bias=False)
        self.branch.weight.data.fill_(3.0)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, inputs):
        features = self.features(inputs[:, :1])
        branch = self.branch(features)
        branch += features
        score = self.relu(branch).mean((2, 3))
        return F.pad(score, (0, 1))


def test_a_residual_sum_is_split_in_proportion(view):
    found = winning(view(Residual(), torch.rand(3, 4, 4)), "branch")
    assert float(found.sum()) == pytest.approx(0.75)
    assert float(winning(view(Residual(), torch.rand(3, 4, 4)), "features").sum()) == pytest.approx(1.0)


def test_a_batch_norm_is_folded_into_its_convolution(view):
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    norm.weight.data = torch.tensor([1.0, -2.0, 0.5, -1.0])
    norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.5
    head = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    head[-1].weight.data.uniform_(0.1, 1.0)
    plain = nn.Sequential(nn.Identity(), convolution, norm, *head).eval()
    folded = torch.nn.utils.fusion.fuse_conv_bn_eval(convolution.eval(), norm.eval())
    picture = torch.rand(3, 8, 8)
    expected = winning(view(nn.Sequential(nn.Identity(), folded, *head), picture), "0")
    assert torch.allclose(winning(view(plain, picture), "0"), expected, atol=1e-6)
    assert float(expected.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (resnet18, ["bn1", "maxpool", "layer1", "layer2", "layer3.1.relu", "layer4"]),
        (squeezenet1_1, ["features.1", "features.2", "features.3", "features.9", "features.12", "classifier.2"]),
        (densenet121, ["features.norm0", "features.transition2.pool", "features"]),
        (mobilenet_v2, ["features.18.0", "features"]),
    ],
)
def test_probability_sums_to_one_wherever_everything_flows_through(view, make, layers):
    torch.manual_seed(0)
    seen = view(make(num_classes=5), torch.randn(3, 64, 64), target=3)
    found = spatial_layers(seen)
    for layer in layers:
        probability = winning_probability(seen, found[layer])
        assert float(probability.min()) >= 0.0
        assert float(probability.sum()) == pytest.approx(1.0, abs=1e-4), layer


def test_a_class_that_nothing_excites_gets_an_empty_heatmap(explained):
    module = TwoLayers()
    module.head.weight.data[0] = -1.0
    assert float(explained(module, ExcitationBackprop(), torch.ones(3, 2, 2)).saliency.abs().max()) == 0.0


def test_transformers_are_unsupported_by_name_of_the_operation(explained):
    torch.manual_seed(0)
    module = VisionTransformer(
        image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=4
    )
    nn.init.normal_(module.heads.head.weight)
    with pytest.raises(Unsupported, match=r"not defined for .*grad-cam"):
        explained(module, ExcitationBackprop(), torch.randn(3, 32, 32))


def test_a_model_that_cannot_be_traced_is_unsupported(explained):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Conv2d(3, 2, 1)

        def forward(self, inputs):
            features = self.features(inputs)
            return features.mean((2, 3)) if features.sum() > 0 else features.amax((2, 3))

    with pytest.raises(Unsupported, match=r"torch\.fx can trace"):
        explained(Branches(), ExcitationBackprop(), torch.randn(3, 8, 8))


def test_smooth_activations_below_the_layer_do_not_matter(explained):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.SiLU(),
        nn.Conv2d(4, 4, 3),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    assert explained(module, ExcitationBackprop(), torch.randn(3, 16, 16)).saliency.shape == (12, 12)
    with pytest.raises(Unsupported, match="SiLU"):
        explained(module, ExcitationBackprop(layer="1"), torch.randn(3, 16, 16))


def test_an_unknown_layer_is_named(explained):
    with pytest.raises(InvalidParameter, match="no layer 'nowhere'"):
        explained(TwoLayers(), ExcitationBackprop(layer="nowhere"), torch.ones(3, 2, 2))


def test_the_model_is_left_as_it_was(explained):
    torch.manual_seed(0)
    module = resnet18(num_classes=4).eval()
    picture = torch.randn(3, 64, 64)
    with torch.no_grad():
        before = module(picture.unsqueeze(0))
    explained(module, ExcitationBackprop(layer="layer2"), picture)
    with torch.no_grad():
        assert torch.equal(module(picture.unsqueeze(0)), before)

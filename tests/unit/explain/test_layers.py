"""Layers are found by the shape of what they give, whatever the order of their dimensions."""

import pytest
import torch
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer, resnet18

from sagittal.explain import InvalidParameter, Unsupported
from sagittal.explain.attribution.layers import Layout, layout_of, locate, spatial_layers

IMAGE = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))


def transformer():
    torch.manual_seed(0)
    module = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=4
    )
    nn.init.normal_(module.heads.head.weight)
    return module


@pytest.mark.parametrize(
    ("shape", "size", "layout"),
    [
        ((1, 512, 7, 7), (224, 224), Layout(7, 7, axis=1)),
        ((1, 7, 7, 768), (224, 224), Layout(7, 7, axis=3)),
        ((1, 7, 7, 8), (224, 224), Layout(7, 7, axis=3)),
        ((1, 197, 768), (224, 224), Layout(14, 14, axis=2, skipped=1)),
        ((1, 196, 768), (224, 224), Layout(14, 14, axis=2)),
        ((1, 64, 15, 20), (480, 640), Layout(15, 20, axis=1)),
        ((1, 301, 8), (480, 640), Layout(15, 20, axis=2, skipped=1)),
        ((1, 512, 1, 1), (224, 224), None),
        ((1, 100, 16), (224, 448), None),
        ((1, 1000), (224, 224), None),
    ],
)
def test_a_shape_tells_how_places_are_held(shape, size, layout):
    assert layout_of(shape, size) == layout


@pytest.mark.parametrize("shape", [(1, 5, 4, 4), (1, 4, 4, 5), (1, 17, 5), (1, 16, 5)])
def test_channels_on_a_grid_and_back_is_the_same(shape):
    output = torch.randn(shape)
    layout = layout_of(shape, (32, 32))
    channels = layout.to_channels(output)
    assert channels.shape == (1, 5, 4, 4)
    assert torch.equal(layout.from_channels(channels, output), output)


def test_rows_of_tokens_are_rows_of_the_grid():
    tokens = torch.arange(17.0).view(1, 17, 1)
    assert Layout(4, 4, axis=2, skipped=1).to_channels(tokens)[0, 0, 1, 2] == 1 + 4 + 2


def test_the_last_layer_of_a_convolutional_network_is_the_last_before_pooling(view):
    assert locate(view(resnet18(num_classes=4), IMAGE.repeat(1, 2, 2)), None).name == "layer4"


def test_where_the_class_token_alone_is_read_the_last_layer_is_before_the_last_attention(view):
    found = locate(view(transformer(), IMAGE), None)
    assert found.name == "encoder.layers.encoder_layer_1.ln_1"
    assert found.layout == Layout(4, 4, axis=2, skipped=1)


def test_a_layer_after_the_last_attention_is_refused_with_layers_that_work(view):
    with pytest.raises(InvalidParameter, match=r"does not affect.*encoder_layer_1\.ln_1") as failure:
        locate(view(transformer(), IMAGE), "encoder.ln")
    assert failure.value.name == "layer"


def test_channels_last_transformers_are_spatial(view):
    torch.manual_seed(0)
    module = SwinTransformer(
        patch_size=[4, 4], embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=[4, 4], num_classes=4
    )
    layers = spatial_layers(view(module, IMAGE))
    assert layers["norm"].layout == Layout(4, 4, axis=3)


def test_an_unknown_layer_names_those_that_are_there(view):
    with pytest.raises(InvalidParameter, match=r"no layer 'layer9'.*layer4") as failure:
        locate(view(resnet18(num_classes=4), IMAGE.repeat(1, 2, 2)), "layer9")
    assert failure.value.name == "layer"


def test_a_flat_layer_is_not_spatial(view):
    with pytest.raises(InvalidParameter, match="'fc' is not spatial"):
        locate(view(resnet18(num_classes=4), IMAGE.repeat(1, 2, 2)), "fc")


def test_a_model_without_a_spatial_layer_is_unsupported(view):
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    with pytest.raises(Unsupported, match=r"no layer with a spatial output.*igos"):
        locate(view(module, IMAGE), None)


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("compiled", ["script", "trace"])
def test_layers_of_a_compiled_model_cannot_be_seen(view, compiled):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    made = torch.jit.script(module) if compiled == "script" else torch.jit.trace(module, IMAGE.unsqueeze(0))
    with pytest.raises(Unsupported, match="no layer with a spatial output"):
        locate(view(made, IMAGE), None)


def test_an_oblong_image_has_an_oblong_grid(view):
    module = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert locate(view(module, torch.randn(3, 24, 32)), None).layout == Layout(12, 16, axis=1)


def test_a_model_without_gradients_is_unsupported(view):
    class Rounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Conv2d(3, 4, 3)

        def forward(self, inputs):
            return torch.from_numpy(self.features(inputs).detach().numpy().round()).mean((2, 3))

    with pytest.raises(Unsupported, match="returns no gradients"):
        locate(view(Rounded(), IMAGE), "features")


def test_looking_leaves_no_hooks_behind(view):
    module = resnet18(num_classes=4)
    locate(view(module, IMAGE), None)
    assert not any(layer._forward_hooks for layer in module.modules())

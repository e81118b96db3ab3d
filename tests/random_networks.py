"""Architectures of torchvision with random weights, for tests."""

import torch
import torchvision
from torch import nn

STAGES = {
    "resnet50": (("layer1", 1), ("layer2", 1), ("layer3", 1), ("layer4", 1)),
    "convnext_tiny": (("features.1", 1), ("features.3", 1), ("features.5", 1), ("features.7", 1)),
    "vit_b_16": (("encoder.layers", 2),),
    # Every other block has shifted windows.
    "swin_t": (
        ("features.1", 2),
        ("features.3", 2),
        ("features.5", 2),
        ("features.7", 2),
    ),
}
"""Where an architecture repeats its blocks, and how many of them hold each kind."""


def opinionated(architecture: str, *, side: int, classes: int, whole: bool = True, **arguments: object) -> nn.Module:
    """A torchvision network of random weights whose classes depend on the image: fresh heads say the same of all.

    Args:
        architecture: As torchvision names it.
        side: Of the images, in pixels.
        classes: Number of classes.
        whole: Whether to keep all blocks of each stage, and not only those that hold each kind of block.
        arguments: What else it is made with.
    """
    network: nn.Module = getattr(torchvision.models, architecture)(num_classes=classes, **arguments).eval()
    if not whole:
        _thin(network, architecture)
    head = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        nn.init.normal_(head.weight)
        head.bias.zero_()
        outputs = network(torch.randn(4, 3, side, side))
        scale = 3 / float((outputs - outputs.mean(0)).std())
        head.weight.mul_(scale)
        head.bias.sub_(outputs.mean(0) * scale)
    return network


def _thin(network: nn.Module, architecture: str) -> None:
    for path, kept in STAGES.get(architecture, ()):
        stage = network.get_submodule(path)
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, stage[:kept])

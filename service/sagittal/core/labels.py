"""Label sets: names of classes by index."""

from importlib import resources
from pathlib import Path

IMAGENET = "imagenet-1k"
"""The 1,000 classes of ImageNet, as torchvision names them."""


def read_labels(source: str) -> list[str]:
    """Returns the labels of `imagenet-1k`, or of a UTF-8 file with one label a line. Raises OSError."""
    if source == IMAGENET:
        return (resources.files(__package__) / "data" / "imagenet-1k.txt").read_text().splitlines()
    return Path(source).read_text().splitlines()

"""Model files of operators: read, or refused with a sentence that names the file."""

import tempfile
from pathlib import Path

from fuzzing.oracles import MEBI, bounded
from sagittal.core.models import InvalidModelFile, read_entries

#: Bytes of an input.
MAX_LENGTH = 4096

_FILE = Path(tempfile.gettempdir()) / "sagittal-fuzzed-models.toml"

_SEEDS = (
    """
[[models]]
name = "efficientnet-lite0"
version = "1"
source = { kind = "efficientnet-lite", variant = 0 }
labels = "imagenet-1k"
preprocessing = { input_size = 224, fit = "squash", mean = [0.498, 0.498, 0.498], std = [0.502, 0.502, 0.502] }
""",
    """
[[models]]
name = "a"
labels = ["on", "off"]
output = "probabilities"
latest = false
[models.source]
kind = "python"
factory = "a.b:c"
[models.source.arguments]
depth = 3
[[models]]
name = "a"
version = "2"
source = { kind = "torchvision", model = "resnet18", weights = "/models/a.pth", seed = 1 }
preprocessing = { resize = 256, interpolation = "bicubic", channel_order = "BGR" }
""",
)


def run(data: bytes) -> None:
    """Reads a model file, in bounded memory and time."""
    with bounded("a model file", memory=32 * MEBI, seconds=5.0):
        _read(data)


def _read(data: bytes) -> None:
    _FILE.write_bytes(data)
    try:
        entries = read_entries(_FILE)
    except InvalidModelFile as error:
        assert str(error).startswith(f"{_FILE}: "), f"the error does not name the file: {error}"
        return
    keys = [entry.key for entry in entries]
    assert keys
    assert len(set(keys)) == len(keys)


def seeds() -> list[bytes]:
    """Returns inputs to begin with."""
    return [text.encode() for text in _SEEDS]

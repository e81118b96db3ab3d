"""The parts of an explanation that every experiment tracker stores: metrics, tags, images and files."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import PIL.Image

from sagittal.client import Explanation
from sagittal.client.errors import FailedPrecondition

#: Figures of an explanation that are metrics, by the attribute of `Explanation` that has them.
METRICS = (
    "score", "baseline_score", "insertion", "deletion", "relative_insertion", "relative_deletion", "evaluations",
    "seconds",
)  # fmt: skip


def metrics_of(explanation: Explanation) -> Mapping[str, float]:
    """Returns the figures of an explanation that were measured, by name."""
    found = {name: getattr(explanation, name) for name in METRICS}
    found["sufficient_sets"] = len(explanation.sufficient_sets) or None
    found["smallest_set"] = min((len(each.patches.patches) for each in explanation.sufficient_sets), default=None)
    return {name: float(value) for name, value in found.items() if value is not None}


def tags_of(explanation: Explanation) -> Mapping[str, str]:
    """Returns the names and identifiers of an explanation: job, model, method and target."""
    target = explanation.target
    found = {
        "job_id": explanation.job_id,
        "model": explanation.model,
        "model_version": explanation.model_version,
        "model_digest": explanation.model_digest,
        "method": explanation.method,
        "target": (target.label or str(target.index)) if target else "",
    }
    return {name: value for name, value in found.items() if value}


def images_of(explanation: Explanation) -> Iterator[tuple[str, PIL.Image.Image]]:
    """Yields the overlays of an explanation by name: its masks, and its sufficient sets.

    Raises:
        FailedPrecondition: the explanation has no image: give it by `with_image`.
    """
    if explanation.image is None:
        raise FailedPrecondition("the explanation has no image to draw on: give it by with_image(...)", field="image")
    for number in range(len(explanation.masks)):
        yield f"overlay-{number + 1}" if number else "overlay", explanation.overlay(number)
    for number, each in enumerate(explanation.sufficient_sets, start=1):
        yield f"sufficient-set-{number}", explanation.overlay(each.patches)


def write_files(explanation: Explanation, directory: Path) -> Iterator[Path]:
    """Writes an explanation as JSON, as a file for `Explanation.load`, and as images; yields the files."""
    document = directory / "explanation.json"
    document.write_text(json.dumps(explanation.to_dict(), indent=2, ensure_ascii=False), encoding="utf-8")
    yield document
    yield explanation.save(directory / "explanation.zip")
    for name, image in images_of(explanation):
        path = directory / f"{name}.png"
        image.save(path)
        yield path

"""Explanations as labels of FiftyOne's samples: masks as heatmaps, sufficient sets as detections.

    sample = fiftyone.Sample("chelsea.png")
    add_labels(sample, explanation)

A label lies on the original image, whatever the preprocessing. `label_documents` gives the same without FiftyOne.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sagittal.client import Explanation, PatchSet
from sagittal.client.errors import FailedPrecondition
from sagittal.client.extras import import_extra
from sagittal.imaging.masks import patch_box


def add_labels(sample: Any, explanation: Explanation, *, prefix: str = "sagittal") -> None:
    """Sets the labels of an explanation as fields of a `fiftyone.Sample`.

    Raises:
        FailedPrecondition: the explanation has no image.
        MissingExtra: fiftyone is not installed.
    """
    fiftyone = import_extra("fiftyone", "fiftyone")
    for name, document in label_documents(explanation, prefix=prefix).items():
        sample[name] = _label(fiftyone, document)


def label_documents(explanation: Explanation, *, prefix: str = "sagittal") -> Mapping[str, Mapping[str, Any]]:
    """Returns the labels of an explanation by field, as FiftyOne documents them, each with its class as `_cls`.

    - `PREFIX_classification`: the class that is explained, with its probability.
    - `PREFIX_heatmap` (and `_2`, ...): a mask of the image's height and width; 0 where the model saw nothing.
    - `PREFIX_sets`: one detection for each patch of each sufficient set, with `set`, `score` and `certificate`.

    Raises:
        FailedPrecondition: the explanation has no image.
    """
    if explanation.image is None:
        raise FailedPrecondition("the explanation has no image to place labels on: give with_image(...)", field="image")
    found: dict[str, Mapping[str, Any]] = {}
    if explanation.target is not None:
        label = explanation.target.label or str(explanation.target.index)
        found[f"{prefix}_classification"] = {
            "_cls": "Classification", "label": label, "confidence": explanation.target.score,
        }  # fmt: skip
    for number, mask in enumerate(explanation.masks):
        name = f"{prefix}_heatmap" + (f"_{number + 1}" if number else "")
        placed = np.nan_to_num(explanation.saliency_on_image(number))
        found[name] = {"_cls": "Heatmap", "map": placed, "range": [-1.0 if mask.signed else 0.0, 1.0]}
    if explanation.sufficient_sets:
        found[f"{prefix}_sets"] = {"_cls": "Detections", "detections": _detections(explanation)}
    return found


def _detections(explanation: Explanation) -> list[Mapping[str, Any]]:
    return [
        {
            "_cls": "Detection",
            "label": f"set {number}",
            "bounding_box": box,
            "set": number,
            "score": each.score,
            "certificate": each.certificate.level,
        }
        for number, each in enumerate(explanation.sufficient_sets, start=1)
        for patch in each.patches.patches
        if all((box := _bounding_box(explanation, each.patches, patch))[2:])
    ]


def _bounding_box(explanation: Explanation, patches: PatchSet, patch: int) -> list[float]:
    """Returns left, top, width and height of a patch, as shares of the original image; without size in a padding."""
    image = explanation.image
    if image is None:
        raise FailedPrecondition("the explanation has no image", field="image")
    size = image.preprocessing.input_size if image.preprocessing else image.pixels.shape[0]
    left, top, right, bottom = (edge / size for edge in patch_box(patch, patches.grid, size))
    frame = image.frame
    width, height = frame.right - frame.left, frame.bottom - frame.top
    # patches of a padded input may reach beyond the image
    left, right = (min(max(frame.left + edge * width, 0.0), 1.0) for edge in (left, right))
    top, bottom = (min(max(frame.top + edge * height, 0.0), 1.0) for edge in (top, bottom))
    return [left, top, right - left, bottom - top]


def _label(fiftyone: Any, document: Mapping[str, Any]) -> Any:
    """Returns a document as a label of its class."""
    values = {key: value for key, value in document.items() if key != "_cls"}
    if document["_cls"] == "Detections":
        values["detections"] = [_label(fiftyone, each) for each in values["detections"]]
    return getattr(fiftyone, document["_cls"])(**values)

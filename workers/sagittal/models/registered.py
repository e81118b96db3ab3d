"""Whether what was registered is true of the model that was loaded: its weights, its layers, its labels."""

from collections.abc import Sequence

from torch import nn

from sagittal.core.entries import Layers, ModelEntry
from sagittal.core.labels import IMAGENET, read_labels
from sagittal.models.digests import weights_digest
from sagittal.models.probing import SeenLayers
from sagittal.models.sources import Access, ModelUnavailable
from sagittal.models.sources.files import find_inside

LISTED = 24
"""Most layers named in an error, the last ones."""


def check_weights(module: nn.Module, entry: ModelEntry) -> str:
    """Returns the digest of the weights. Raises ModelUnavailable where it is not the one that was registered."""
    found = weights_digest(module)
    if entry.weights_digest not in ("", found):
        raise ModelUnavailable(
            f"weights_digest: the weights have SHA-256 {found}, and {entry.weights_digest} was registered: they are "
            "others, or damaged"
        )
    return found


def check_layers(wanted: Layers, seen: SeenLayers) -> None:
    """Raises ModelUnavailable for a layer that was registered and is not there."""
    for field_name, name, known in (
        ("spatial", wanted.spatial, seen.spatial),
        ("features", wanted.features, (*seen.spatial, *seen.flat)),
    ):
        if name and name not in known:
            raise ModelUnavailable(
                f"layers.{field_name} is {name!r}, which is no such layer of this model; give one of "
                f"{', '.join(known[-LISTED:]) or 'none'}"
            )


def labels_of(entry: ModelEntry, classes: int, access: Access) -> Sequence[str]:
    """Returns the labels of a model, one for each class or none. Raises ModelUnavailable."""
    if isinstance(entry.labels, list):
        labels: Sequence[str] = entry.labels
    else:
        try:
            labels = read_labels(_labels_source(entry.labels, access))
        except OSError as error:
            raise ModelUnavailable(f"the labels {entry.labels} cannot be read: {error.strerror}") from error
    if labels and len(labels) != classes:
        raise ModelUnavailable(f"there are {len(labels)} labels for {classes} classes; give one for each, or none")
    return labels


def _labels_source(name: str, access: Access) -> str:
    """Returns what names the labels; files lie where weights may."""
    return name if name == IMAGENET else str(find_inside(name, access.directories, "SAGITTAL_SOURCES__DIRECTORIES"))

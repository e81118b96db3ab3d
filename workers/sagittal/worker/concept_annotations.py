"""Annotated parts of the images of a fit: those that were sent, and those that lie with a dataset."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sagittal.core.annotations import attachment_of, check_parts
from sagittal.core.errors import FailedPrecondition, InvalidRequest
from sagittal.v1 import concept_service_pb2
from sagittal.worker.concept_images import Annotations

#: The file of a dataset with its annotations: `{"bird.jpg": {"beak": [left, top, right, bottom]}}`, edges relative to
#: the image's size.
FILE = "parts.json"

Part = concept_service_pb2.AnnotatedPart

_EDGES = 4


def sent_annotations(attachment: Callable[[str, str], bytes | None], job_id: str) -> Annotations:
    """Returns the annotations that were attached to a job."""

    def of(index: int) -> Sequence[Part]:
        stored = attachment(job_id, attachment_of(index))
        return () if stored is None else concept_service_pb2.FitConceptsRequest.FromString(stored).annotated_parts

    return of


def annotations_of(directory: Path, files: Sequence[str]) -> Annotations:
    """Returns the annotations of a dataset's files. Raises FailedPrecondition where they make no sense."""
    path = directory / FILE
    listed = _read(path) if path.is_file() else {}
    unknown = sorted(set(listed) - set(files))
    if unknown:
        raise _wrong(f"it names {unknown[0]!r}, which is no picture of the dataset")
    found = {name: _parts(name, parts) for name, parts in listed.items()}

    def of(index: int) -> Sequence[Part]:
        return found.get(files[index], ())

    return of


def _read(path: Path) -> Mapping[str, object]:
    try:
        listed = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise _wrong(str(error)) from error
    if not isinstance(listed, dict):
        raise _wrong("it must hold an object with the parts of each picture by its file")
    return listed


def _parts(name: str, parts: object) -> Sequence[Part]:
    if not isinstance(parts, dict) or not all(map(_is_box, parts.values())):
        raise _wrong(f"{name!r} must have an object of parts by name, each [left, top, right, bottom] from 0 to 1")
    found = [
        Part(name=part, left=left, top=top, right=right, bottom=bottom)
        for part, (left, top, right, bottom) in parts.items()
    ]
    try:
        check_parts(found, repr(name))
    except InvalidRequest as error:
        raise _wrong(error.message) from error
    return found


def _is_box(box: object) -> bool:
    return isinstance(box, list) and len(box) == _EDGES and all(isinstance(edge, int | float) for edge in box)


def _wrong(why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"the annotations of the dataset ({FILE}) cannot be used: {why}", field="settings.dataset"
    )

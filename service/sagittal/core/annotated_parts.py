"""Checks the annotated parts of a fit's images: named boxes, relative to the image's size."""

from collections.abc import Sequence

from sagittal.core.errors import InvalidRequest
from sagittal.v1 import concept_service_pb2

#: Most annotated parts of an image, and most characters of a part's name.
MAX_PARTS, MAX_NAME = 256, 80


def attachment_of(index: int) -> str:
    """Returns the attachment name for an image's annotated parts in a fit's job."""
    return f"{index}.parts"


def check_parts(parts: Sequence[concept_service_pb2.AnnotatedPart], image: str) -> None:
    """Raises InvalidRequest, naming the field, if a part is not within the image or its name is invalid.

    Args:
        parts: Annotated parts of one image.
        image: How errors name the image.
    """
    if len(parts) > MAX_PARTS:
        text = f"{image} has {len(parts)} annotated parts; give at most {MAX_PARTS}"
        raise InvalidRequest(text, field="annotated_parts")
    seen: set[str] = set()
    for number, part in enumerate(parts):
        field = f"annotated_parts[{number}]"
        if not 0 < len(part.name) <= MAX_NAME or not part.name.isprintable():
            text = f"{field}.name of {image} is {part.name[:MAX_NAME]!r}; give 1 to {MAX_NAME} printable characters"
            raise InvalidRequest(text, field=f"{field}.name")
        if part.name in seen:
            text = f"{field}.name of {image} is {part.name!r} twice; give each part of an image once"
            raise InvalidRequest(text, field=f"{field}.name")
        seen.add(part.name)
        _check_edges(part.left, part.right, ("left", "right"), field, image)
        _check_edges(part.top, part.bottom, ("top", "bottom"), field, image)


def _check_edges(low: float, high: float, names: tuple[str, str], field: str, image: str) -> None:
    # this form also rejects NaN
    if not 0 <= low < high <= 1:
        text = (
            f"{field} of {image} has {names[0]} {low:g} and {names[1]} {high:g}; give 0 to 1, relative to the "
            f"image's size, and {names[0]} less than {names[1]}"
        )
        raise InvalidRequest(text, field=f"{field}.{names[0]}")

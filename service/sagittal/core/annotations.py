"""Parts that are annotated on the images of a fit: checked in one way, whether they were sent or lie with a dataset."""

from collections.abc import Sequence

from sagittal.core.errors import InvalidRequest
from sagittal.v1 import concept_service_pb2

#: Most parts of an image, and characters of a part's name.
MAX_PARTS, MAX_NAME = 256, 80


def attachment_of(index: int) -> str:
    """Returns the name under which the parts of an image are attached to the job of a fit."""
    return f"{index}.parts"


def check_parts(parts: Sequence[concept_service_pb2.AnnotatedPart], image: str) -> None:
    """Raises InvalidRequest, naming the field, where a part is not within the image or has a name that is none.

    Args:
        parts: Of one image.
        image: Which image it is, for the message.
    """
    if len(parts) > MAX_PARTS:
        text = f"{image} has {len(parts)} annotated parts; give at most {MAX_PARTS}"
        raise InvalidRequest(text, field="annotated_parts")
    seen: set[str] = set()
    for number, part in enumerate(parts):
        field = f"annotated_parts[{number}]"
        if not 0 < len(part.name) <= MAX_NAME or not part.name.isprintable():
            text = f"{field}.name of {image} must be 1 to {MAX_NAME} printable characters"
            raise InvalidRequest(text, field=f"{field}.name")
        if part.name in seen:
            text = f"{field}.name of {image} is {part.name!r} for the second time; give each part of an image once"
            raise InvalidRequest(text, field=f"{field}.name")
        seen.add(part.name)
        _check_edges(part.left, part.right, ("left", "right"), field, image)
        _check_edges(part.top, part.bottom, ("top", "bottom"), field, image)


def _check_edges(low: float, high: float, names: tuple[str, str], field: str, image: str) -> None:
    # written so that what is not a number is refused too
    if not 0 <= low < high <= 1:
        text = (
            f"{field} of {image} reaches from {names[0]} {low:g} to {names[1]} {high:g}; give 0 to 1, relative to the "
            f"image's size, and {names[0]} less than {names[1]}"
        )
        raise InvalidRequest(text, field=f"{field}.{names[0]}")

"""Interactive naming: applies a person's changes to the x-features of a concept set."""

from collections.abc import Callable, Iterable, Mapping

from sagittal.core.errors import InvalidRequest
from sagittal.v1 import concept_pb2, concept_service_pb2

#: Largest number of characters of a name.
MAX_NAME = 80


def apply_changes(
    described: concept_pb2.ConceptSet, changes: Iterable[concept_service_pb2.ConceptChange]
) -> concept_pb2.ConceptSet:
    """Applies changes in order and returns the set. Raises InvalidRequest, naming the wrong change."""
    for number, change in enumerate(changes):
        field = f"changes[{number}]"
        _check_index(described, change.index, f"{field}.index")
        kind = change.WhichOneof("change")
        if kind is None:
            raise InvalidRequest(f"{field} changes nothing; give rename, merge_into or mixed", field=field)
        _CHANGES[kind](described, change, f"{field}.{kind}")
    return described


def _rename(described: concept_pb2.ConceptSet, change: concept_service_pb2.ConceptChange, field: str) -> None:
    if len(change.rename) > MAX_NAME or not change.rename.isprintable():
        raise InvalidRequest(f"{field} is not a valid name; give at most {MAX_NAME} printable characters", field=field)
    described.concepts[change.index].name = change.rename


def _merge(described: concept_pb2.ConceptSet, change: concept_service_pb2.ConceptChange, field: str) -> None:
    _check_index(described, change.merge_into, field)
    concept = described.concepts[change.index]
    concept.ClearField("merged_into")
    seen, head = {change.index}, change.merge_into
    while described.concepts[head].HasField("merged_into") and head not in seen:
        seen.add(head)
        head = described.concepts[head].merged_into
    if head != change.index:
        concept.merged_into = head
    for other in described.concepts:
        # x-features that were shown with this one move along
        if other.HasField("merged_into") and other.merged_into == change.index and head != other.index:
            other.merged_into = head


def _mark(described: concept_pb2.ConceptSet, change: concept_service_pb2.ConceptChange, _field: str) -> None:
    described.concepts[change.index].mixed = change.mixed


def _check_index(described: concept_pb2.ConceptSet, index: int, field: str) -> None:
    if index >= len(described.concepts):
        last = len(described.concepts) - 1
        text = (
            f"{field} is {index}; {described.name!r} has x-features 0 to {last} (x1 to x{last + 1}): give one of these"
        )
        raise InvalidRequest(text, field=field)


_CHANGES: Mapping[str, Callable[[concept_pb2.ConceptSet, concept_service_pb2.ConceptChange, str], None]] = {
    "rename": _rename,
    "merge_into": _merge,
    "mixed": _mark,
}

"""Interactive naming: changes to the x-features of a set, in order, and those that make no sense."""

import pytest

from sagittal.core.errors import InvalidRequest
from sagittal.registry.concept_changes import apply_changes
from sagittal.v1 import concept_pb2, concept_service_pb2

Change = concept_service_pb2.ConceptChange


def a_set() -> concept_pb2.ConceptSet:
    return concept_pb2.ConceptSet(name="set", concepts=[concept_pb2.Concept(index=index) for index in range(3)])


def test_x_features_are_renamed_merged_and_marked():
    found = a_set()
    apply_changes(found, [Change(index=0, rename="head"), Change(index=2, merge_into=1), Change(index=1, mixed=True)])
    assert [each.name for each in found.concepts] == ["head", "", ""]
    assert found.concepts[2].merged_into == 1
    assert found.concepts[1].mixed
    apply_changes(found, [Change(index=2, merge_into=2), Change(index=0, rename="")])
    assert not found.concepts[2].HasField("merged_into")
    assert found.concepts[0].name == ""


def test_what_is_merged_goes_along_when_its_head_is_merged():
    found = apply_changes(a_set(), [Change(index=2, merge_into=1), Change(index=1, merge_into=0)])
    assert [found.concepts[index].merged_into for index in (1, 2)] == [0, 0]
    again = apply_changes(found, [Change(index=0, merge_into=2)])
    heads = {each.merged_into if each.HasField("merged_into") else each.index for each in again.concepts}
    assert len(heads) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Change(index=3, rename="x"), r"changes\[0\].index is 3; 'set' has x-features 0 to 2"),
        (Change(index=0, merge_into=9), r"changes\[0\].merge_into is 9"),
        (Change(index=0, rename="x" * 81), "at most 80 printable"),
        (Change(index=0, rename="a\nb"), "printable"),
        (Change(index=0), "changes nothing"),
    ],
)
def test_changes_that_make_no_sense_are_refused(change: Change, message: str):
    with pytest.raises(InvalidRequest, match=message):
        apply_changes(a_set(), [change])

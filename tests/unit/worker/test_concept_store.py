"""Concept sets in their directory: whole or not at all, of one model and tenant, and changed under their names."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from sagittal.core.errors import AlreadyExists, FailedPrecondition, InvalidRequest, NotFound
from sagittal.explain.concepts import SRAE
from sagittal.registry.concept_changes import apply_changes
from sagittal.v1 import concept_pb2, concept_service_pb2
from sagittal.worker.concepts.store import ConceptStore, StoredFeatures

Change = concept_service_pb2.ConceptChange


def a_set(name: str = "set", model: str = "model", digest: str = "d" * 64, count: int = 3) -> concept_pb2.ConceptSet:
    concepts = [concept_pb2.Concept(index=index) for index in range(count)]
    concepts[0].examples.add(value=1.0)
    return concept_pb2.ConceptSet(name=name, model=model, model_digest=digest, concepts=concepts)


def network() -> SRAE:
    srae = SRAE(4, 3, 1, 2)
    with torch.no_grad():
        for number, parameter in enumerate(srae.parameters()):
            parameter.fill_(number + 1)
    return srae


@pytest.fixture
def store(tmp_path: Path) -> ConceptStore:
    found = ConceptStore(tmp_path)
    found.save("mine", a_set(), network())
    return found


def test_a_set_comes_back_with_its_weights(store: ConceptStore):
    described, srae = store.load("mine", "model", "set", "d" * 64)
    assert described == a_set()
    features = torch.rand(2, 4)
    assert torch.equal(srae(features), network()(features))


def test_its_file_says_what_it_is_of_and_holds_only_tensors(store: ConceptStore, tmp_path: Path):
    (path,) = tmp_path.rglob("*.safetensors")
    assert path.relative_to(tmp_path) == Path("mine/model/set.safetensors")
    with safe_open(path, framework="pt") as opened:
        assert opened.metadata()["model_digest"] == "d" * 64
    assert not list(tmp_path.rglob("*.part"))


def test_a_set_of_another_digest_is_refused(store: ConceptStore):
    refusal = r"fitted on another model \(digest dddddddddddd\).*fit it again"
    with pytest.raises(FailedPrecondition, match=refusal) as caught:
        store.load("mine", "model", "set", "e" * 64)
    assert caught.value.field == "spec.method.concepts.concept_set"


def test_another_tenant_sees_nothing_of_it(store: ConceptStore):
    assert store.list("theirs", "") == []
    with pytest.raises(NotFound, match="there is none"):
        store.describe("theirs", "model", "set")


def test_a_list_has_all_models_and_no_examples(store: ConceptStore):
    store.save("mine", a_set("b", "other"), network())
    store.save("mine", a_set("a", "other"), network())
    assert [(each.model, each.name) for each in store.list("mine", "")] == [
        ("model", "set"), ("other", "a"), ("other", "b"),
    ]  # fmt: skip
    assert [each.name for each in store.list("mine", "other")] == ["a", "b"]
    assert not store.list("mine", "model")[0].concepts[0].examples


def test_a_name_that_is_taken_is_refused_unless_it_is_replaced(store: ConceptStore):
    with pytest.raises(AlreadyExists, match="has a concept set 'set' already"):
        store.check_free("mine", "model", "set", replace=False)
    store.check_free("mine", "model", "set", replace=True)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 65])
def test_names_that_are_no_file_names_are_refused(store: ConceptStore, name: str):
    with pytest.raises(InvalidRequest, match="letters, digits"):
        store.describe("mine", "model", name)


@pytest.mark.parametrize("model", ["../other", "..", "a/b"])
def test_models_that_would_leave_the_directory_are_refused(store: ConceptStore, model: str):
    with pytest.raises(InvalidRequest, match="cannot name a directory"):
        store.describe("mine", model, "set")


def test_a_damaged_file_is_refused(store: ConceptStore, tmp_path: Path):
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FailedPrecondition, match="is damaged: fit it again"):
        store.describe("mine", "model", "set")


def test_without_a_directory_the_setting_is_named():
    with pytest.raises(FailedPrecondition, match="SAGITTAL_CONCEPTS__DIRECTORY"):
        ConceptStore(None).list("mine", "")


def test_changes_are_kept_with_the_weights(store: ConceptStore):
    changed = apply_changes(store.describe("mine", "model", "set"), [Change(index=1, rename="wing")])
    store.change("mine", "model", "set", changed)
    described, srae = store.load("mine", "model", "set", "d" * 64)
    assert described.concepts[1].name == "wing"
    assert torch.equal(srae.readout, network().readout)


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
        (Change(index=0, rename="x" * 81), "up to 80 printable"),
        (Change(index=0, rename="a\nb"), "printable"),
        (Change(index=0), "changes nothing"),
    ],
)
def test_changes_that_make_no_sense_are_refused(change: Change, message: str):
    with pytest.raises(InvalidRequest, match=message):
        apply_changes(a_set(), [change])


def test_features_are_kept_up_to_a_bound_the_oldest_going_first(tmp_path: Path):
    cache = StoredFeatures(tmp_path, "scope", max_bytes=9_000, device=torch.device("cpu"))
    for key in ("first", "second", "third"):
        cache.put(key, {"features": torch.ones(1000)})
    assert cache.get("first") is None
    assert torch.equal(cache.get("third")["features"], torch.ones(1000))
    assert StoredFeatures(tmp_path, "other", max_bytes=9_000, device=torch.device("cpu")).get("third") is None
    cache.put("huge", {"features": torch.ones(10_000)})
    assert cache.get("huge") is None

"""Concept sets on Valkey and Redis: bounded for each tenant, changed by revision, deleted with their files."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from concept_support import Concepts, a_set
from embedded_queue import own_settings

from sagittal.core.errors import FailedPrecondition, NotFound
from sagittal.registry.concept_sets import ConceptSets
from sagittal.v1 import concept_pb2

MINE = "mine"
MOST = 2**20


@pytest.fixture
async def concepts(server_url: str, tmp_path: Path) -> AsyncIterator[Concepts]:
    made = Concepts(own_settings(url=server_url), tmp_path, most=MOST)
    yield made
    made.worker.close()


@pytest.fixture
async def sets(concepts: Concepts) -> AsyncIterator[ConceptSets]:
    found = ConceptSets(concepts.settings, max_tenant_bytes=MOST)
    yield found
    await found.close()


def large(name: str, size: int) -> concept_pb2.ConceptSet:
    described = a_set(name)
    described.concepts[0].examples[0].image.encoded = bytes(size)
    return described


async def test_one_tenants_sets_are_bounded_files_included_and_anothers_are_not(concepts, sets) -> None:
    concepts.seed(MINE, large("first", MOST // 2))
    with pytest.raises(FailedPrecondition, match="SAGITTAL_CONCEPTS__MAX_TENANT_BYTES allows 1,048,576: delete one"):
        concepts.seed(MINE, large("second", MOST // 2))
    concepts.seed("another", large("second", MOST // 2))
    with pytest.raises(NotFound):
        await sets.get(MINE, "model", "second")
    await sets.delete(MINE, "model", "first")
    concepts.seed(MINE, large("second", MOST // 2))


async def test_names_take_room_too(concepts, sets) -> None:
    concepts.seed(MINE, a_set())

    def lengthen(described: concept_pb2.ConceptSet) -> concept_pb2.ConceptSet:
        described.concepts[0].name = "x" * MOST
        return described

    with pytest.raises(FailedPrecondition, match="would take"):
        await sets.update(MINE, "model", "set", lengthen)
    assert (await sets.get(MINE, "model", "set")).description.concepts[0].name == ""


async def test_a_change_is_made_again_to_what_another_made_meanwhile(concepts, sets) -> None:
    concepts.seed(MINE, a_set())
    seen = []

    def name(described: concept_pb2.ConceptSet) -> concept_pb2.ConceptSet:
        seen.append(described.concepts[1].name)
        described.concepts[0].name = "head"
        return described

    def name_other(described: concept_pb2.ConceptSet) -> concept_pb2.ConceptSet:
        described.concepts[1].name = "wing"
        return described

    read = sets.get

    async def read_and_be_overtaken(*which: str) -> object:
        found = await read(*which)
        if not seen:
            await concepts.ask(lambda other: other.update(*which, name_other))
        return found

    sets.get = read_and_be_overtaken
    changed = await sets.update(MINE, "model", "set", name)
    assert seen == ["", "wing"]
    assert [each.name for each in changed.description.concepts] == ["head", "wing", ""]


async def test_a_set_that_is_fitted_again_is_another_to_a_change_that_was_read_before(concepts, sets) -> None:
    concepts.seed(MINE, a_set())
    before = await sets.get(MINE, "model", "set")
    await sets.delete(MINE, "model", "set")
    concepts.seed(MINE, a_set(count=5))
    after = await sets.get(MINE, "model", "set")
    assert before.revision != after.revision
    assert before.weights != after.weights, "files are never shared, so that each set can delete its own"
    assert await sets.sweep(concepts.files) == 2
    assert concepts.names() == sorted((after.weights, after.examples))


async def test_a_sweep_goes_on_where_one_failed(concepts, sets) -> None:
    for name in ("first", "second"):
        concepts.seed(MINE, a_set(name))
        await sets.delete(MINE, "model", name)

    def fail(_name: str) -> None:
        raise OSError("away")

    delete, concepts.files.delete = concepts.files.delete, fail
    with pytest.raises(OSError, match="away"):
        await sets.sweep(concepts.files)
    concepts.files.delete = delete
    assert await sets.sweep(concepts.files) == 4
    assert await sets.sweep(concepts.files) == 0
    assert concepts.names() == []


async def test_models_whose_names_begin_alike_are_told_apart(concepts, sets) -> None:
    for model in ("resnet", "resnet-50", "resnet.v2"):
        concepts.seed(MINE, a_set("set", model))
    found, token = await sets.list(MINE, "resnet", limit=10, page_token="")
    assert [each.model for each in found] == ["resnet"]
    found, token = await sets.list(MINE, "", limit=2, page_token="")
    rest, end = await sets.list(MINE, "", limit=2, page_token=token)
    assert sorted(each.model for each in [*found, *rest]) == ["resnet", "resnet-50", "resnet.v2"]
    assert end == ""

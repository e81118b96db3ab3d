"""Concept sets over the API with no worker at all: listed, returned, named and deleted by the service itself."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import redis
import structlog.testing
from concept_support import Concepts, a_set
from embedded_queue import Queue, depth
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from sagittal.queue.scripts import root_key
from sagittal.server.settings import Token
from sagittal.v1 import concept_service_pb2 as pb
from sagittal.v1 import concept_service_pb2_grpc, explanation_pb2

from .support import Stack, eventually, quick_settings, running

TENANT = "default"
Change = pb.ConceptChange


class Site:
    """A service whose models have no worker, and sets in its store."""

    def __init__(self, stack: Stack, concepts: Concepts) -> None:
        self.stack = stack
        self.concepts = concepts
        self.stub = concept_service_pb2_grpc.ConceptServiceStub(stack.channel)

    async def update(self, *changes: Change, name: str = "set") -> pb.UpdateConceptSetResponse:
        return await self.stub.UpdateConceptSet(pb.UpdateConceptSetRequest(model="lamp", name=name, changes=changes))

    async def get(self, name: str = "set") -> pb.GetConceptSetResponse:
        return await self.stub.GetConceptSet(pb.GetConceptSetRequest(model="lamp", name=name))

    async def names(self, **request: object) -> list[str]:
        answer = await self.stub.ListConceptSets(pb.ListConceptSetsRequest(**request))
        return [each.name for each in answer.concept_sets]


@asynccontextmanager
async def serving(directory: Path, *names: str, kept: bool = True, **settings: object) -> AsyncIterator[Site]:
    """A service with sets of the model `lamp`; `kept` is whether it has the directory of their files."""
    queue = Queue()
    concepts = Concepts(queue.settings, directory)
    for name in names:
        concepts.seed(TENANT, a_set(name, "lamp"))
    found = quick_settings(concepts={"directory": directory} if kept else {}, **settings)
    async with running(found, queue) as stack:
        stack.registry.workers.withdraw("scripted")
        yield Site(stack, concepts)


def reason(error: grpc.aio.AioRpcError) -> str:
    """Returns the stable reason of an error."""
    found = error_details_pb2.ErrorInfo()
    for detail in rpc_status.from_call(error).details:
        if detail.Unpack(found):
            return found.reason
    return ""


async def test_with_no_worker_sets_are_listed_returned_named_and_deleted(tmp_path: Path) -> None:
    async with serving(tmp_path, "set", "other") as site:
        assert await site.names() == ["other", "set"]
        assert (await site.get()).concept_set.concepts[0].examples[0].value == 1.0
        changed = await site.update(Change(index=1, rename="wing"), Change(index=2, mixed=True))
        assert changed.concept_set.concepts[1].name == "wing"
        assert changed.concept_set.concepts[0].examples, "the set is returned whole"
        assert (await site.get()).concept_set == changed.concept_set
        await site.stub.DeleteConceptSet(pb.DeleteConceptSetRequest(model="lamp", name="set"))
        assert await site.names() == ["other"]
        with pytest.raises(grpc.aio.AioRpcError, match="lamp has no concept set 'set'; it has: other") as caught:
            await site.get()
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert await depth(site.stack.queue.jobs) == {}, "nothing was asked of a worker"


async def test_a_deleted_sets_files_are_deleted_after_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sagittal.registry.concept_sets.SWEEP_SECONDS", 0.05)
    async with serving(tmp_path, "set", "other") as site:
        assert len(site.concepts.names()) == 4
        await site.stub.DeleteConceptSet(pb.DeleteConceptSetRequest(model="lamp", name="set"))
        await eventually(lambda: len(site.concepts.names()) == 2)
        assert (await site.get("other")).concept_set.concepts[0].examples


async def test_updates_at_once_lose_none(tmp_path: Path) -> None:
    async with serving(tmp_path) as site:
        site.concepts.seed(TENANT, a_set("set", "lamp", count=24))
        await asyncio.gather(*(site.update(Change(index=index, rename=f"n{index}")) for index in range(24)))
        assert [each.name for each in (await site.get()).concept_set.concepts] == [f"n{index}" for index in range(24)]


async def test_changes_are_made_together_or_not_at_all(tmp_path: Path) -> None:
    async with serving(tmp_path, "set") as site:
        with pytest.raises(grpc.aio.AioRpcError, match="x-features 0 to 2") as caught:
            await site.update(Change(index=0, rename="head"), Change(index=3, rename="tail"))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (await site.get()).concept_set.concepts[0].name == ""


async def test_a_tenant_sees_changes_and_deletes_nothing_of_anothers(tmp_path: Path) -> None:
    tokens = {hashlib.sha256(who.encode()).hexdigest(): Token(tenant=who) for who in (TENANT, "others")}
    async with serving(tmp_path, "set", tokens=tokens) as site:
        theirs = (("authorization", "Bearer others"),)
        answer = await site.stub.ListConceptSets(pb.ListConceptSetsRequest(), metadata=theirs)
        assert not answer.concept_sets
        calls = (
            (site.stub.GetConceptSet, pb.GetConceptSetRequest(model="lamp", name="set")),
            (
                site.stub.UpdateConceptSet,
                pb.UpdateConceptSetRequest(model="lamp", name="set", changes=[Change(index=0, rename="x")]),
            ),
            (site.stub.DeleteConceptSet, pb.DeleteConceptSetRequest(model="lamp", name="set")),
        )
        for call, request in calls:
            with pytest.raises(grpc.aio.AioRpcError, match="it has: none") as caught:
                await call(request, metadata=theirs)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        mine = (("authorization", f"Bearer {TENANT}"),)
        request = pb.GetConceptSetRequest(model="lamp", name="set")
        assert (await site.stub.GetConceptSet(request, metadata=mine)).concept_set.concepts[0].name == ""


async def test_a_page_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    async with serving(tmp_path, *(f"set{number}" for number in range(5))) as site:
        site.concepts.seed(TENANT, a_set("other", "lamps"))
        found, token = [], ""
        for _ in range(3):
            request = pb.ListConceptSetsRequest(model="lamp", page_size=2, page_token=token)
            answer = await site.stub.ListConceptSets(request)
            found += [each.name for each in answer.concept_sets]
            token = answer.next_page_token
        assert (found, token) == ([f"set{number}" for number in range(5)], "")
        assert not answer.concept_sets[0].concepts[0].examples
        assert await site.names() == [*found, "other"]


@pytest.mark.parametrize("how", ["garbage", "another set", "another type"])
async def test_a_damaged_document_is_set_aside_and_the_others_are_served(tmp_path: Path, how: str) -> None:
    async with serving(tmp_path, "set", "other") as site:
        settings = site.stack.queue.settings
        key = f"{root_key(settings)}concept:{TENANT}:lamp/set"
        with redis.Redis.from_url(settings.url) as client:
            if how == "another type":
                client.set(key, "garbage")
            else:
                wrong = b"\xffgarbage" if how == "garbage" else a_set("x", "lamp").SerializeToString()
                client.hset(key, "document", wrong)
            with structlog.testing.capture_logs() as logs:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await site.get()
                assert await site.names() == ["other"]
            expected = grpc.StatusCode.NOT_FOUND if how == "another type" else grpc.StatusCode.FAILED_PRECONDITION
            assert caught.value.code() is expected
            if how != "another type":
                assert "was moved aside: fit it again" in str(caught.value.details())
                assert reason(caught.value) == "CONCEPT_SET_DAMAGED"
                assert [log["concept_set"] for log in logs if log["event"] == "concept-set-damaged"] == ["set"]
            assert client.exists(f"{root_key(settings)}quarantine:concept:{TENANT}:lamp/set")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await site.get()
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        site.concepts.seed(TENANT, a_set("set", "lamp"))
        assert (await site.get()).concept_set.name == "set"


async def test_examples_that_were_changed_are_refused_and_a_store_that_is_away_can_be_asked_again(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, "set") as site:
        name = next(name for name in site.concepts.names() if name.endswith(".examples"))
        examples = tmp_path / "files" / name
        content = examples.read_bytes()
        examples.write_bytes(b"changed")
        with pytest.raises(grpc.aio.AioRpcError, match="is damaged: fit the set again") as caught:
            await site.update(Change(index=0, rename="head"))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        examples.unlink()
        examples.mkdir()
        with pytest.raises(grpc.aio.AioRpcError, match="store of concept sets cannot be used") as caught:
            await site.get()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        examples.rmdir()
        examples.write_bytes(content)
        assert (await site.get()).concept_set.concepts[0].name == "", "what could not be returned was not changed"


async def test_a_service_without_their_files_lists_and_deletes_and_names_the_setting(tmp_path: Path) -> None:
    async with serving(tmp_path, "set", kept=False) as site:
        assert await site.names() == ["set"]
        with pytest.raises(grpc.aio.AioRpcError, match=r"this service has no storage .*SAGITTAL_CONCEPTS__DIRECTORY"):
            await site.get()
        fit = pb.FitConceptsSettings(name="new", model="lamp", targets=[explanation_pb2.Target(index=0)])
        with pytest.raises(grpc.aio.AioRpcError, match="this service has no storage"):
            async for _ in site.stub.FitConcepts(iter([pb.FitConceptsRequest(settings=fit)])):
                pass
        await site.stub.DeleteConceptSet(pb.DeleteConceptSetRequest(model="lamp", name="set"))
        assert await site.names() == []


async def test_a_model_that_does_not_exist_is_named(tmp_path: Path) -> None:
    async with serving(tmp_path, "set") as site:
        for call, request in (
            (site.stub.ListConceptSets, pb.ListConceptSetsRequest(model="none")),
            (site.stub.GetConceptSet, pb.GetConceptSetRequest(model="none", name="set")),
            (site.stub.DeleteConceptSet, pb.DeleteConceptSetRequest(model="none", name="set")),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match="no model 'none'") as caught:
                await call(request)
            assert reason(caught.value) == "UNKNOWN_MODEL"


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 65, "a\n"])
async def test_names_that_no_set_can_have_are_refused(tmp_path: Path, name: str) -> None:
    async with serving(tmp_path) as site:
        with pytest.raises(grpc.aio.AioRpcError, match="letters, digits") as caught:
            await site.get(name)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

"""A worker's side of concept sets: stored whole or not at all, of one model and tenant, and taken over from before."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from concept_support import Concepts, a_set, network
from embedded_queue import Queue
from safetensors.torch import save_file

from sagittal.core.errors import AlreadyExists, FailedPrecondition, JobFailed, NotFound
from sagittal.core.jobs import JobKind, Lease
from sagittal.queue.protocol import LeaseLost
from sagittal.registry.concept_files import ConceptFiles, ConceptStorage
from sagittal.v1 import concept_pb2
from sagittal.worker.concepts.store import StoredFeatures

MINE = "mine"


class Site:
    """A queue with fits on it, and the store of their sets."""

    def __init__(self, queue: Queue, directory: Path, new_job) -> None:
        self.queue = queue
        self.concepts = Concepts(queue.settings, directory)
        self.store = self.concepts.worker
        self._new_job = new_job

    async def fit(self, *, worker: str = "worker", tenant: str = MINE) -> Lease:
        """Returns the lease of a fit that has begun."""
        await self.queue.jobs.submit(self._new_job(kind=JobKind.FIT, tenant=tenant), b"accepted")
        return self.queue.lease(worker)

    async def store_a_set(self, name: str = "set", model: str = "model") -> None:
        self.store.save(await self.fit(), a_set(name, model), network(), replace=False)


@pytest.fixture
async def site(tmp_path: Path, new_job) -> Iterator[Site]:
    async with Queue() as queue:
        yield Site(queue, tmp_path, new_job)


async def test_a_set_comes_back_with_its_weights(site: Site):
    await site.store_a_set()
    described, srae = site.store.load(MINE, "model", "set", "d" * 64)
    assert [concept.index for concept in described.concepts] == [0, 1, 2]
    assert not described.concepts[0].examples, "they are a file of their own"
    features = torch.rand(2, 4)
    assert torch.equal(srae(features), network()(features))


async def test_a_set_of_another_digest_is_refused(site: Site):
    await site.store_a_set()
    refusal = r"fitted to another model \(digest dddddddddddd\).*fit it again"
    with pytest.raises(FailedPrecondition, match=refusal) as caught:
        site.store.load(MINE, "model", "set", "e" * 64)
    assert caught.value.field == "spec.method.concepts.concept_set"


async def test_another_tenant_sees_nothing_of_it(site: Site):
    await site.store_a_set()
    with pytest.raises(NotFound, match="it has: none"):
        site.store.load("theirs", "model", "set", "d" * 64)


async def test_weights_that_were_changed_are_refused(site: Site):
    await site.store_a_set()
    (path,) = site.concepts.directory.glob("files/*.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(FailedPrecondition, match="is damaged: fit the set again"):
        site.store.load(MINE, "model", "set", "d" * 64)


async def test_a_name_that_is_taken_is_refused_unless_it_is_replaced(site: Site):
    await site.store_a_set()
    lease = await site.fit()
    with pytest.raises(AlreadyExists, match="has a concept set 'set' already"):
        site.store.check_free(lease, "model", "set", replace=False)
    with pytest.raises(AlreadyExists, match="has a concept set 'set' already"):
        site.store.save(lease, a_set(), network(), replace=False)
    site.store.check_free(lease, "model", "set", replace=True)
    site.store.save(lease, a_set(count=5), network(), replace=True)
    assert len(site.store.load(MINE, "model", "set", "d" * 64)[0].concepts) == 5


async def test_a_worker_that_dies_between_weights_and_document_leaves_nothing_half(site: Site, monkeypatch):
    lease = await site.fit(worker="dies")

    def die(*_arguments: object, **_named: object) -> bool:
        raise SystemExit

    with monkeypatch.context() as dying:
        dying.setattr(site.store._sets, "save", die)
        with pytest.raises(SystemExit):
            site.store.save(lease, a_set(), network(), replace=False)
    assert len(site.concepts.names()) == 2, "its files are written"
    with pytest.raises(NotFound, match="it has: none"):
        site.store.load(MINE, "model", "set", "d" * 64)
    site.queue.worker("dies").release(lease)
    again = site.queue.lease("next")
    site.store.check_free(again, "model", "set", replace=False)
    site.store.save(again, a_set(), network(), replace=False)
    site.store.load(MINE, "model", "set", "d" * 64)


async def test_files_that_became_nobodys_are_deleted_and_others_are_not(site: Site, monkeypatch):
    monkeypatch.setattr("sagittal.registry.concept_sets.WRITING_SECONDS", 0.0)
    lease = await site.fit()
    site.store._sets.write_files({"a" * 64 + ".safetensors": b"left"})
    monkeypatch.undo()
    site.store.save(lease, a_set(), network(), replace=False)
    sets = site.concepts
    assert await sets.ask(lambda each: each.sweep(sets.files)) == 1
    assert len(sets.names()) == 2
    site.store.load(MINE, "model", "set", "d" * 64)


async def test_files_that_took_too_long_to_write_become_no_set(site: Site, monkeypatch):
    monkeypatch.setattr("sagittal.registry.concept_sets.WRITING_SECONDS", 0.0)
    lease, write = await site.fit(), site.store._sets.write_files
    sets = site.concepts

    def write_slowly(files: dict[str, bytes]) -> None:
        write(files)
        slow.append(files)

    slow: list[dict[str, bytes]] = []
    monkeypatch.setattr(site.store._sets, "write_files", write_slowly)
    stored, size = site.store._write(a_set(), network().state_dict())
    await sets.ask(lambda each: each.sweep(sets.files))
    with pytest.raises(JobFailed, match="fit the set again"):
        site.store._sets.save(lease, stored, size, replace=False)
    assert slow
    assert sets.names() == []


async def test_a_worker_whose_lease_is_lost_stores_nothing(site: Site):
    lease = await site.fit(worker="slow")
    site.queue.worker("slow").release(lease)
    newer = site.queue.lease("quick")
    with pytest.raises(LeaseLost):
        site.store.save(lease, a_set(count=9), network(), replace=True)
    site.store.save(newer, a_set(), network(), replace=False)
    assert len(site.store.load(MINE, "model", "set", "d" * 64)[0].concepts) == 3


async def test_a_later_attempt_at_a_fit_replaces_what_an_earlier_one_stored(site: Site):
    lease = await site.fit(worker="dies")
    site.store.save(lease, a_set(), network(), replace=False)
    site.queue.worker("dies").release(lease)  # before it could say so
    again = site.queue.lease("next")
    site.store.check_free(again, "model", "set", replace=False)
    site.store.save(again, a_set(count=4), network(), replace=False)
    assert len(site.store.load(MINE, "model", "set", "d" * 64)[0].concepts) == 4


async def test_a_store_that_cannot_be_written_fails_the_fit(site: Site):
    (site.concepts.directory / "files").write_text("no directory")
    with pytest.raises(JobFailed, match="'set' cannot be stored: the store of concept sets cannot be used"):
        site.store.save(await site.fit(), a_set(), network(), replace=False)


async def test_without_a_place_the_setting_is_named(new_job):
    async with Queue() as queue:
        site = Site(queue, Path("unused"), new_job)
        site.store._sets.files = ConceptFiles(ConceptStorage())
        with pytest.raises(FailedPrecondition, match="SAGITTAL_CONCEPTS__DIRECTORY"):
            site.store.check_free(await site.fit(), "model", "set", replace=False)


def older_file(directory: Path, tenant: str, name: str) -> Path:
    """Writes a set as release 0.1 kept it."""
    described = torch.frombuffer(bytearray(a_set(name).SerializeToString()), dtype=torch.uint8)
    weights = {f"srae.{key}": value.contiguous() for key, value in network().state_dict().items()}
    path = directory / tenant / "model" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights | {"description": described}, path, {"format": "sagittal concept set 1"})
    return path


async def test_sets_of_an_older_release_are_taken_over_once(site: Site):
    path = older_file(site.concepts.directory, MINE, "older")
    (site.concepts.directory / MINE / "model" / "broken.safetensors").write_bytes(b"garbage")
    assert site.store.import_older()
    assert not path.exists()
    assert (path.parent / "broken.safetensors").exists()
    described, srae = site.store.load(MINE, "model", "older", "d" * 64)
    assert described.name == "older"
    assert torch.equal(srae.readout, network().readout)
    whole = await site.concepts.ask(lambda sets: sets.get(MINE, "model", "older"))
    examples = concept_pb2.ConceptSet.FromString(site.concepts.files.read(whole.examples))
    assert examples.concepts[0].examples[0].value == 1.0
    await site.concepts.ask(lambda sets: sets.delete(MINE, "model", "older"))
    assert site.store.import_older()
    with pytest.raises(NotFound):
        site.store.load(MINE, "model", "older", "d" * 64)


async def test_a_newer_set_of_the_name_stays(site: Site):
    await site.store_a_set("older")
    path = older_file(site.concepts.directory, MINE, "older")
    changed = json.dumps(site.concepts.names())
    assert site.store.import_older()
    assert not path.exists()
    assert set(json.loads(changed)) < set(site.concepts.names()), "the files it wrote wait for the sweep"
    site.store.load(MINE, "model", "older", "d" * 64)


def test_features_are_kept_up_to_a_bound_the_oldest_going_first(tmp_path: Path):
    cache = StoredFeatures(tmp_path, "scope", max_bytes=9_000, device=torch.device("cpu"))
    for key in ("first", "second", "third"):
        cache.put(key, {"features": torch.ones(1000)})
    assert cache.get("first") is None
    assert torch.equal(cache.get("third")["features"], torch.ones(1000))
    assert StoredFeatures(tmp_path, "other", max_bytes=9_000, device=torch.device("cpu")).get("third") is None
    cache.put("huge", {"features": torch.ones(10_000)})
    assert cache.get("huge") is None

"""Damaged records in Redis are set aside and reported, and every other job goes on: each kind of key, each damage."""

import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest
import redis
import structlog.testing
from embedded_queue import stored_events
from prometheus_client import CollectorRegistry

from sagittal.core.errors import QueueFailed, SagittalError, UnknownJob
from sagittal.core.jobs import JobFilter, JobState, Lease, NewJob
from sagittal.queue.batches import BatchState, ItemState
from sagittal.queue.jobs import RedisJobQueue
from sagittal.queue.leases import RedisWorkerQueue
from sagittal.queue.metrics import QueueMetrics
from sagittal.queue.protocol import LeaseLost
from sagittal.queue.settings import QueueSettings
from sagittal.registry.concept_files import ConceptFiles, ConceptStorage
from sagittal.registry.concept_sets import ConceptSets, StoredConceptSet, WorkerConceptSets
from sagittal.registry.redis import RedisModelRegistry, RedisWorkerRegistry
from sagittal.v1 import concept_pb2, explanation_pb2, model_pb2

MODEL = [("model", "1")]
GARBAGE = b"\xffgarbage"

#: What stands before the first colon of every key that the queue and the registry keep.
KINDS = [
    "age", "alone", "answer", "attaching", "batch", "batchchanges", "batchcount", "batches", "batchfailures",
    "batchitems", "batchlive", "bell", "bytes", "changes", "concept", "concept_bytes", "concept_files",
    "concept_revision", "concept_trash", "concepts", "cost", "created", "damaged", "deadlines",
    "declared", "deleted", "ended", "flight", "held", "holds", "job", "jobs", "lanes", "latest", "leases", "load",
    "log", "models", "origins", "pace", "parts", "quarantine", "quarantined", "readers", "ready", "request", "revision",
    "revisions", "run", "served", "settled", "share", "spent", "stored", "sweeper", "take", "tenants", "turn",
    "waiting", "wishes", "worker", "workers",
]  # fmt: skip
#: Kinds that stand only for a moment, or after other damage: made by hand.
MADE: dict[str, Callable[[redis.Redis, str], object]] = {
    "damaged": lambda client, root: client.zadd(f"{root}damaged", {"nobody": 1}),
    "holds": lambda client, root: client.set(f"{root}holds:nobody", "worker"),
    "load": lambda client, root: client.hset(f"{root}load", "jobs:interactive", 7),
    "quarantine": lambda client, root: client.zadd(f"{root}quarantine", {f"{root}quarantine:job:nobody": 1}),
    "quarantined": lambda client, root: client.rpush(f"{root}quarantined", b"job\x00job:nobody\x00is damaged"),
}


#: Seconds until a lease or a deadline of these jobs passes: longer than the longest test.
HOUR = 3600


@dataclass(frozen=True)
class Saved:
    """The records of a site with the milliseconds that each still lives, and its files."""

    records: list[tuple[bytes, int, bytes]]
    files: dict[str, bytes]


@dataclass
class Site:
    """A queue in full use, on which everything can be asked."""

    settings: QueueSettings
    new_job: Callable[..., NewJob]
    metrics: CollectorRegistry = field(default_factory=CollectorRegistry)
    ids: list[str] = field(default_factory=list)
    written: dict[str, bytes] = field(default_factory=dict)
    lease: Lease | None = None

    async def open(self) -> None:
        self.observer = QueueMetrics(self.metrics)
        self.client = redis.Redis.from_url(self.settings.url)
        self.root = f"{{{self.settings.prefix}}}:"
        self.jobs = RedisJobQueue(self.settings, self.observer)
        self.worker = self.new_worker()
        self.models = RedisModelRegistry(self.settings)
        self.registry = RedisWorkerRegistry(self.settings)
        self.files = ConceptFiles(ConceptStorage(url=f"memory://{self.settings.prefix}"))
        self.sets = ConceptSets(self.settings, max_tenant_bytes=2**30)
        self.sets_of_worker = WorkerConceptSets(self.settings, self.files, max_tenant_bytes=2**30)
        await self.fill()

    def new_worker(self) -> RedisWorkerQueue:
        return RedisWorkerQueue(self.settings, worker="worker", observer=self.observer)

    def stored_keys(self) -> list[bytes]:
        return self.client.keys(f"{self.root}*")

    def save(self) -> Saved:
        """Returns all that it keeps, for `restore`."""
        keys = self.stored_keys()
        with self.client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.pttl(key)
                pipeline.dump(key)
            answers = pipeline.execute()
        return Saved(list(zip(keys, answers[::2], answers[1::2], strict=True)), dict(self.written))

    def restore(self, saved: Saved) -> None:
        """Makes it as it was, for the next damage; the worker is a new one, because workers number what they write."""
        self.worker.close()
        self.worker = self.new_worker()
        self.worker.sweep_when_due()  # what the first lease of a worker does, which is not to meet the damage first
        with self.client.pipeline(transaction=False) as pipeline:
            pipeline.delete(*self.stored_keys())
            for key, milliseconds, value in saved.records:
                pipeline.restore(key, max(milliseconds, 0), value)
            pipeline.execute()
        for name, content in saved.files.items():
            self.files.write(name, content)

    async def close(self) -> None:
        self.worker.close()
        self.registry.close()
        self.sets_of_worker.close()
        await self.sets.close()
        await self.models.close()
        await self.jobs.close()
        if keys := self.stored_keys():
            self.client.delete(*keys)
        self.client.close()

    async def submit(self, **changes: object) -> str:
        plain = {"deadline": time.time() + HOUR, "setting": "{}", "request_id": f"key-{secrets.token_hex(4)}"}
        job = self.new_job(**(plain | changes))
        self.ids.append(job.job_id)
        return (await self.jobs.submit(job, b"accepted"))[0].job_id

    async def fill(self) -> None:
        self.registry.declare(model_pb2.Model(name="model", version="1"))
        self.registry.publish(model_pb2.Model(name="model", version="1", revision=1, digest="d"))
        self.registry.announce("worker", [("model", "1", READY)], ttl=HOUR)
        await self.models.wish("model", "1", "load")
        await self.submit(content_key="ended")
        self.settle(self.take())
        deleted = await self.submit(content_key="deleted")
        self.settle(self.take())
        await self.jobs.delete(deleted)
        suspect = await self.submit()
        lost = self.take()
        self.client.zadd(f"{self.root}leases", {suspect: 1})
        await self.jobs.sweep()
        assert lost.job.job_id == suspect
        await self.submit(content_key="running")
        self.lease = self.worker.lease(MODEL, block_seconds=0, busy=True)
        await self.submit(content_key="shared")
        await self.submit(content_key="shared")
        await self.jobs.batches.create("default", "batch", b"spec", 5)
        await self.submit(batch="batch", item="live", content_key="live")
        await self.jobs.batches.fail("default", "batch", "bad", b"event")
        await self.jobs.attach("f" * 32, "part", b"bytes", tenant="default")
        for number, name in enumerate(("kept", "deleted")):
            self.store_a_set(name, number)
        await self.sets.delete("default", "model", "deleted")
        self.write_files({f"{2:064d}.safetensors": b"of a fit that goes on"})
        for make in MADE.values():
            make(self.client, self.root)

    def store_a_set(self, name: str, number: int) -> None:
        files = {f"{number:064d}.safetensors": b"weights", f"{number:064d}.examples": b""}
        self.write_files(files)
        described = concept_pb2.ConceptSet(name=name, model="model", concepts=[concept_pb2.Concept(index=0)])
        weights, examples = files
        stored = StoredConceptSet(description=described, weights=weights, examples=examples)
        assert self.sets_of_worker.import_set("default", stored, 7)

    def write_files(self, files: dict[str, bytes]) -> None:
        self.sets_of_worker.write_files(files)
        self.written |= files

    def take(self) -> Lease:
        lease = self.worker.lease(MODEL, block_seconds=0)
        assert lease is not None
        return lease

    def settle(self, lease: Lease) -> None:
        done = explanation_pb2.Completed(evaluations=10)
        done.run_time.FromNanoseconds(10**9)
        event = explanation_pb2.ExplanationEvent(completed=done).SerializeToString()
        self.worker.settle(lease, event, JobState.COMPLETED)

    async def ask_everything(self) -> None:
        """Asks all that a service and a worker ask; only errors that are not INTERNAL may come of it."""
        lease = self.lease
        assert lease is not None
        await self.expect(self.jobs.backlog())
        await self.expect(self.jobs.costs("model", "1", "igos++"))
        await self.expect(self.jobs.list(JobFilter(tenant="default"), limit=100, page_token=""))
        await self.expect(self.models.models())
        await self.expect(self.models.model("model"))
        for job_id in self.ids:
            await self.expect(self.jobs.get(job_id))
            await self.expect(stored_events(self.jobs, job_id))
            await self.expect(self.jobs.request_of(job_id))
        for call in (
            self.registry.registrations,
            self.registry.changes,
            lambda: self.registry.announce("worker", [("model", "1", READY)], ttl=HOUR),
            lambda: self.worker.attachment("f" * 32, "part"),
            lambda: self.worker.heartbeat([lease]),
            lambda: self.worker.append(lease, [b"event"]),
            lambda: self.worker.checkpoint(lease, b"state"),
            lambda: self.sets_of_worker.get("default", "model", "kept"),
        ):
            with tolerated():
                call()
        await self.expect(self.sets.list("default", "", limit=10, page_token=""))
        await self.expect(self.sets.get("default", "model", "kept"))
        await self.expect(self.sets.update("default", "model", "kept", rename))
        await self.expect(self.sets.delete("default", "model", "kept"))
        await self.expect(self.sets.sweep(self.files))
        self.store_a_set("kept", secrets.randbelow(10**60))
        assert (await self.sets.get("default", "model", "kept")).description.name == "kept"
        await self.expect(self.jobs.sweep())

    async def ask_about_batches(self) -> None:
        batches = self.jobs.batches
        await self.expect(batches.list("default", limit=10, page_token=""))
        await self.expect(batches.get("default", "batch"))
        await self.expect(batches.change("default", "batch", BatchState.PAUSED))
        await self.expect(batches.items("default", "batch", [ItemState.FAILED], limit=10, page_token=""))
        await self.expect(batches.items("default", "batch", [], limit=10, page_token=""))
        await self.expect(batches.fail("default", "batch", "worse", b"event"))
        await self.expect(collected(batches.live_jobs("default", "batch")))
        await self.expect(batches.retry("default", "batch", []))
        await self.expect(batches.delete("default", "batch"))
        await batches.create("default", "new", b"spec", 1)
        assert (await batches.get("default", "new")).name == "new"

    async def expect(self, call: object) -> None:
        with tolerated():
            await call

    async def use_as_a_neighbour(self) -> None:
        """Takes a new job of another tenant through its whole life, after whatever comes first."""
        job = self.new_job(tenant="neighbour", content_key=secrets.token_hex(4), deadline=time.time() + HOUR)
        submitted, new = await self.jobs.submit(replace(job, setting="{}"), b"accepted")
        assert new
        for _ in range(10):
            lease = self.worker.lease(MODEL, block_seconds=0)
            assert lease is not None, "the neighbour's job is not handed out"
            assert self.worker.heartbeat([lease]) == ([], [])
            self.worker.append(lease, [b"event"])
            self.settle(lease)
            if lease.job.job_id == job.job_id:
                break
        assert (await self.jobs.get(submitted.job_id)).state is JobState.COMPLETED
        assert len(await stored_events(self.jobs, submitted.job_id)) == 3

    async def all_jobs_end(self) -> None:
        """Every job that is still known ends: by its worker, or since its run was damaged."""
        for _ in range(3):
            await self.jobs.sweep()
            while lease := self.worker.lease(MODEL, block_seconds=0):
                self.settle(lease)
        with contextlib.suppress(LeaseLost, AssertionError):
            self.settle(self.lease)
        await self.jobs.sweep()
        for job_id in self.ids:
            with contextlib.suppress(UnknownJob):
                assert (await self.jobs.get(job_id)).state.ended, "a job never ends"

    def quarantined(self) -> float:
        samples = [sample for metric in self.metrics.collect() for sample in metric.samples]
        return sum(sample.value for sample in samples if sample.name == "sagittal_quarantined_records_total")


def rename(described: concept_pb2.ConceptSet) -> concept_pb2.ConceptSet:
    described.concepts[0].name = "wing"
    return described


READY = model_pb2.WorkerModel(state=model_pb2.MODEL_STATE_READY)


async def collected(found: AsyncIterator[str]) -> list[str]:
    return [each async for each in found]


@contextlib.contextmanager
def tolerated() -> Iterator[None]:
    """Admits what callers may be told of a damaged job: everything but INTERNAL."""
    try:
        yield
    except (QueueFailed, AssertionError):
        raise
    except (SagittalError, LeaseLost):
        pass


@pytest.fixture(params=["valkey", "redis"])
async def make_site(request, new_job) -> AsyncIterator[Callable]:
    sites: list[Site] = []
    url = request.getfixturevalue(f"{request.param}_url")

    async def make() -> Site:
        prefix = f"test-{secrets.token_hex(6)}"
        # None of these times is what the tests are about: a busy machine may stand still for seconds.
        slow = {"sweep_seconds": HOUR, "lease_seconds": HOUR, "operation_timeout": 60}
        site = Site(QueueSettings(url=url, prefix=prefix, **slow), new_job)
        await site.open()
        sites.append(site)
        return site

    yield make
    for site in sites:
        await site.close()


def kind_of(key: bytes, root: str) -> str:
    return key.decode(errors="replace").removeprefix(root).split(":")[0]


Damage = Callable[[redis.Redis, bytes], object]


def damages(client: redis.Redis, key: bytes) -> dict[str, Damage]:
    """Returns what can be done to a key, by name."""
    kind = client.type(key).decode()
    found: dict[str, Damage] = {"deleted": lambda c, k: c.delete(k), "of another type": another_type(kind)}
    if kind == "string":
        found["garbage"] = lambda c, k: c.set(k, GARBAGE)
        found["a number out of range"] = lambda c, k: c.set(k, "9" * 30)
    elif kind == "hash":
        for name in client.hkeys(key):
            found[f"garbage in {name!r}"] = lambda c, k, name=name: c.hset(k, name, GARBAGE)
            if client.hget(key, name).replace(b".", b"").isdigit():
                found[f"a huge number in {name!r}"] = lambda c, k, name=name: c.hset(k, name, "9" * 30)
            found[f"{name!r} missing"] = lambda c, k, name=name: c.hdel(k, name)
        found["a field too many"] = lambda c, k: c.hset(k, GARBAGE, GARBAGE)
    elif kind == "zset":
        found["a ghost first"] = lambda c, k: c.zadd(k, {b"ghost": 0})
        found["a garbage ghost"] = lambda c, k: c.zadd(k, {GARBAGE: 0})
        found["infinite scores"] = lambda c, k: c.zadd(k, dict.fromkeys(c.zrange(k, 0, -1), float("inf")))
    elif kind == "set":
        found["a garbage member"] = lambda c, k: c.sadd(k, GARBAGE)
        found["a ghost"] = lambda c, k: c.sadd(k, "interactive:ghost")
    elif kind == "list":
        found["a garbage element"] = lambda c, k: c.rpush(k, GARBAGE)
    return found


def another_type(kind: str) -> Damage:
    def change(client: redis.Redis, key: bytes) -> None:
        client.delete(key)
        if kind == "string":
            client.rpush(key, GARBAGE)
        else:
            client.set(key, GARBAGE)

    return change


async def test_the_table_has_every_kind_of_key(make_site) -> None:
    site = await make_site()
    assert {kind_of(key, site.root) for key in site.stored_keys()} == set(KINDS)


#: Both servers run the same scripts: the whole table on Valkey, and a third of it on Redis.
DAMAGED = [("valkey", kind) for kind in KINDS] + [("redis", kind) for kind in KINDS[::3]]


@pytest.mark.parametrize(("make_site", "kind"), DAMAGED, indirect=["make_site"])
async def test_neighbours_go_on_whatever_is_damaged(make_site, kind) -> None:
    site = await make_site()
    saved = site.save()
    for key, found in [(key, damages(site.client, key)) for key in keys_of(site, kind)]:
        for name, damage in found.items():
            site.restore(saved)
            damage(site.client, key)
            try:
                await site.use_as_a_neighbour()
                await site.ask_everything()
                if kind.startswith(("batch", "job")):
                    await site.ask_about_batches()
                await site.all_jobs_end()
                await site.use_as_a_neighbour()
            except Exception as error:
                raise AssertionError(f"{key!r}: {name}: {error!r}") from error


async def test_a_time_of_end_that_is_no_number_is_damage_before_the_end_too(make_site) -> None:
    site = await make_site()
    site.client.hset(f"{site.root}job:{site.ids[4]}", "ended", GARBAGE)
    await site.ask_everything()
    assert site.quarantined() > 0


def keys_of(site: Site, kind: str) -> list[bytes]:
    """Returns at most two keys of a kind; of jobs those that differ most."""
    if kind in ("job", "run", "log", "readers"):
        ended, running, shared = site.ids[0], site.ids[3], site.ids[4]
        ids = (ended, shared) if kind == "job" else (running, shared) if kind == "run" else (ended, running)
        return [f"{site.root}{kind}:{job_id}".encode() for job_id in ids]
    return sorted(key for key in site.stored_keys() if kind_of(key, site.root) == kind)[:2]


@pytest.mark.parametrize("damaged", ["attempt", "deadline"])
async def test_damage_is_counted_logged_and_kept_aside_without_what_the_caller_sent(make_site, damaged) -> None:
    site = await make_site()
    sharers = site.ids[4:6]
    job_id = sharers[0]
    site.client.hset(f"{site.root}run:{job_id}", damaged, GARBAGE)
    with structlog.testing.capture_logs() as logs:
        while lease := site.worker.lease(MODEL, block_seconds=0):
            site.settle(lease)
        await site.jobs.sweep()
        await site.jobs.sweep()
    lines = [line for line in logs if line["event"] == "record-quarantined" and line["kind"] == "run"]
    assert [(line["key"], line["reason"]) for line in lines] == [(f"run:{job_id}", f"{damaged} is not a number")]
    assert site.metrics.get_sample_value("sagittal_quarantined_records_total", {"kind": "run"}) == 1
    aside = f"{site.root}quarantine:run:{job_id}"
    assert site.client.hget(aside, damaged) == GARBAGE
    assert not {b"request", b"image:image"} & set(site.client.hkeys(aside))
    assert 0 < site.client.ttl(aside) <= 7 * 86400
    for sharer in sharers:
        job = await site.jobs.get(sharer)
        assert (job.state, job.reason) == (JobState.FAILED, "JOB_FAILED")
        last = (await stored_events(site.jobs, sharer))[-1]
        assert "damaged" in explanation_pb2.ExplanationEvent.FromString(last.payload).failed.message
        assert last.terminal


@pytest.mark.parametrize("note", [GARBAGE, b"", b"\xff\x00key\x00reason", b"a kind\x00key\x00reason"])
async def test_a_damaged_note_of_damage_becomes_no_label(make_site, note) -> None:
    site = await make_site()
    site.client.delete(f"{site.root}quarantined")
    site.client.rpush(f"{site.root}quarantined", note)
    await site.jobs.sweep()
    labels = {
        sample.labels["kind"]
        for metric in site.metrics.collect()
        for sample in metric.samples
        if sample.name == "sagittal_quarantined_records_total"
    }
    assert "quarantined" in labels
    assert all(kind in KINDS for kind in labels)


async def test_the_quarantine_is_bounded(make_site) -> None:
    site = await make_site()
    for number in range(130):
        key = f"{site.root}job:{number:032d}"
        site.client.set(key, GARBAGE)
        with pytest.raises(UnknownJob):
            await site.jobs.get(f"{number:032d}")
    kept = list(site.client.scan_iter(match=f"{site.root}quarantine:*", count=1000))
    assert len(kept) == 100
    assert f"{site.root}quarantine:job:{129:032d}".encode() in kept


async def test_an_audit_of_a_sound_queue_finds_and_changes_nothing(make_site) -> None:
    site = await make_site()
    site.client.delete(
        *(f"{site.root}{kind}" for kind in ("load", "quarantine", "quarantined", "damaged", "holds:nobody"))
    )
    await site.jobs.sweep()
    before = snapshot(site)
    found = site.quarantined()
    site.client.set(f"{site.root}audit", 1)
    await site.jobs.sweep()
    assert snapshot(site) == before
    assert site.quarantined() == found


@pytest.mark.parametrize(
    ("key", "name"),
    [("bytes", ""), ("held", "interactive:model"), ("waiting", "jobs:interactive:model@1"),
     ("waiting", "evaluations:interactive:model@1"), ("tenants", "jobs:interactive:model@1:default")],
)  # fmt: skip
async def test_counters_are_rebuilt_from_the_truth(make_site, key, name) -> None:
    site = await make_site()
    await site.jobs.sweep()
    before = snapshot(site)
    if name:
        site.client.hset(site.root + key, name, GARBAGE)
    else:
        site.client.set(site.root + key, GARBAGE)
    passing = await site.submit(content_key="passing")  # it meets the damage
    await site.jobs.cancel(passing, "requested")
    await site.jobs.delete(passing)
    await site.jobs.sweep()
    await site.jobs.sweep()
    counters = ("bytes", "held", "stored", "waiting", "tenants")
    assert {each: snapshot(site).get(each) for each in counters} == {each: before.get(each) for each in counters}
    assert site.metrics.get_sample_value("sagittal_quarantined_records_total", {"kind": key}) >= 1


def snapshot(site: Site) -> dict[str, object]:
    """Returns every key without its root, with its value."""
    reads = {
        b"string": site.client.get,
        b"hash": site.client.hgetall,
        b"list": lambda key: site.client.lrange(key, 0, -1),
        b"set": site.client.smembers,
        b"zset": lambda key: site.client.zrange(key, 0, -1, withscores=True),
    }
    return {key.decode().removeprefix(site.root): reads[site.client.type(key)](key) for key in site.stored_keys()}

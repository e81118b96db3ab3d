"""Several servers are one queue: jobs are spread by content, and a server that is away stops its own jobs only."""

import asyncio
import contextlib
import math
import secrets
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import pytest
from embedded_queue import MODEL, stored_events, valkey_url

from sagittal.core.errors import Overloaded, Unavailable, UnknownJob
from sagittal.core.jobs import JobFilter, JobKind, JobState, Lane, NewJob
from sagittal.process.embedded import EmbeddedValkey
from sagittal.process.supervision import Supervisor
from sagittal.queue import shards
from sagittal.queue.jobs import RedisJobQueue
from sagittal.queue.leases import RedisWorkerQueue
from sagittal.queue.notifications import wait_for_bells
from sagittal.queue.protocol import JobQueue
from sagittal.queue.settings import QueueSettings
from sagittal.queue.shards import ShardedWorkerQueue, choose_shard, open_jobs, open_worker, shard_of
from sagittal.registry.redis import RedisWorkerRegistry
from sagittal.v1 import model_pb2

#: Longest wait for anything here, in seconds.
PATIENCE = 60.0


@pytest.fixture(scope="module")
def second_server() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey() as server:
        yield server


@dataclass
class Fleet:
    """A queue on two servers."""

    settings: QueueSettings
    new_job: Callable[..., NewJob]
    jobs: JobQueue = field(init=False)
    worker: ShardedWorkerQueue = field(init=False)

    def __post_init__(self) -> None:
        self.jobs, self.worker = open_jobs(self.settings), open_worker(self.settings, worker="worker")

    async def submit(self, shard: int | None = None, **about: object) -> str:
        """Submits a job with a new content, or one that belongs to a shard; returns its identifier."""
        while True:
            job = self.jobs.place(self.new_job(content_key=secrets.token_hex(32), **about))
            if shard is None or shard_of(job.job_id, 2) == shard:
                return (await self.jobs.submit(job, b"accepted"))[0].job_id

    async def work(self) -> str:
        """Completes the next job; returns its identifier."""
        lease = await asyncio.to_thread(self.worker.lease, MODEL, block_seconds=PATIENCE)
        assert lease is not None
        await asyncio.to_thread(self.worker.settle, lease, b"done", JobState.COMPLETED, [b"mask"])
        return lease.job.job_id

    async def close(self) -> None:
        await self.jobs.close()
        self.worker.close()


@pytest.fixture
async def make_fleet(second_server: EmbeddedValkey, new_job) -> AsyncIterator[Callable[..., Fleet]]:
    made: list[Fleet] = []

    def make(*, urls: str = f"{valkey_url()},{second_server.url}", **settings: object) -> Fleet:
        prefix = f"test-{secrets.token_hex(6)}"
        patient = {"operation_timeout": PATIENCE}  # however busy the machine is; a server that is away refuses at once
        made.append(Fleet(QueueSettings(**{"url": urls, "prefix": prefix} | patient | settings), new_job))
        return made[-1]

    yield make
    for fleet in made:
        await fleet.close()


async def test_jobs_are_spread_and_found_by_their_identifiers(make_fleet) -> None:
    fleet = make_fleet()
    ids = [await fleet.submit(shard) for shard in (0, 1, 1, 0)]
    assert [shard_of(job_id, 2) for job_id in ids] == [0, 1, 1, 0]
    assert [len(job_id) for job_id in ids] == [32, 34, 34, 32]
    assert sorted([await fleet.work() for _ in ids]) == sorted(ids)
    for job_id in ids:
        assert (await fleet.jobs.get(job_id)).state is JobState.COMPLETED
        assert [event.payload for event in await stored_events(fleet.jobs, job_id)][1:] == [b"mask", b"done"]
        assert [event.sequence async for event in fleet.jobs.events(job_id)] == [1, 2, 3]
        assert (await fleet.jobs.request_of(job_id)).images == {"image": b"\x00image\xff"}
    await fleet.jobs.delete(ids[1])
    assert {job.job_id for job in (await fleet.jobs.list(limit=9, page_token=""))[0]} == set(ids) - {ids[1]}


async def test_an_identifier_with_a_forged_shard_is_an_unknown_job(make_fleet) -> None:
    fleet = make_fleet()
    ids = [await fleet.submit(shard) for shard in (0, 1)]
    for forged in ("00", "02", "ff", "-1", "+1", "0x1", " 1", "01\n", "_", "\u0661", "\x00", "1" * 9999):
        for job_id in ids:
            with pytest.raises(UnknownJob):
                await fleet.jobs.get(job_id[:32] + forged)
            with pytest.raises(UnknownJob):
                await fleet.jobs.cancel(job_id[:32] + forged, "requested")
    assert [(await fleet.jobs.get(job_id)).state for job_id in ids] == [JobState.QUEUED] * 2


async def test_equal_jobs_meet_on_their_shard_and_share_their_answer(make_fleet, new_job) -> None:
    fleet = make_fleet()
    for key in (secrets.token_hex(32) for _ in range(6)):
        first, second, third = (fleet.jobs.place(new_job(content_key=key)) for _ in range(3))
        await fleet.jobs.submit(first, b"accepted")
        await fleet.jobs.submit(second, b"accepted")
        assert await fleet.work() == first.job_id
        cached, _ = await fleet.jobs.submit(third, b"accepted")
        assert {(await fleet.jobs.get(job.job_id)).state for job in (first, second)} == {JobState.COMPLETED}
        assert cached.state is JobState.COMPLETED


async def test_work_on_any_shard_wakes_a_worker_and_a_cancellation_reaches_it(make_fleet) -> None:
    fleet = make_fleet(sweep_seconds=600)
    for shard in (0, 1):
        waiting = asyncio.create_task(asyncio.to_thread(fleet.worker.lease, MODEL, block_seconds=PATIENCE))
        await asyncio.sleep(0.1)
        job_id = await fleet.submit(shard)
        lease = await waiting
        assert lease is not None
        assert lease.job.job_id == job_id
        assert fleet.worker.heartbeat([lease]) == ([], [])
        fleet.worker.checkpoint(lease, b"state")
        while await asyncio.to_thread(fleet.worker.listen, block_seconds=0.1):
            pass
        await fleet.jobs.cancel(job_id, "requested")
        while not await asyncio.to_thread(fleet.worker.listen, block_seconds=PATIENCE):
            pass
        _, [cancellation] = fleet.worker.heartbeat([lease])
        assert cancellation.reason == "requested"
        fleet.worker.release(lease)
        assert (await fleet.jobs.get(job_id)).state is JobState.CANCELLED


async def test_interactive_work_goes_first_wherever_it_is_and_batch_work_is_not_starved(make_fleet) -> None:
    fleet = make_fleet(batch_every=5)
    batch = {await fleet.submit(0, lane=Lane.BATCH) for _ in range(3)}
    for _ in range(12):
        await fleet.submit(1)
    done = [await fleet.work() for _ in range(15)]
    places = [place for place, job_id in enumerate(done) if job_id in batch]
    assert places[:2] == [4, 9]  # every fifth


async def test_a_list_goes_through_all_shards_from_new_to_old(make_fleet) -> None:
    fleet = make_fleet()
    ids = [await fleet.submit(number % 3 // 2) for number in range(11)]
    found: list[str] = []
    token, pages = "", 0
    while token or not pages:
        page, token = await fleet.jobs.list(JobFilter(kind=JobKind.EXPLANATION), limit=3, page_token=token)
        found += [job.job_id for job in page]
        pages += 1
    assert found == sorted(found, key=ids.index, reverse=True)
    assert set(found) == set(ids)
    counts: Counter[JobState] = Counter()
    token, pages = "", 0
    while token or not pages:
        some, token = await fleet.jobs.count(JobFilter(), page_token=token)
        counts.update(some)
        pages += 1
    assert counts == {JobState.QUEUED: 11}
    assert (await fleet.jobs.backlog())["model", "interactive"].queued == 11


async def test_changes_of_all_shards_reach_one_reader(make_fleet) -> None:
    fleet = make_fleet()
    with fleet.jobs.changes("default") as changes:
        while not changes.listening:
            await asyncio.wait_for(changes.wait(), PATIENCE)
        ids = {await fleet.submit(shard) for shard in (0, 1)}
        seen: set[str] = set()
        while seen != ids:
            await asyncio.wait_for(changes.wait(), PATIENCE)
            seen |= set(changes.take())
        assert not changes.missed


async def fill(fleet: Fleet, shard: int | None = None) -> tuple[int, str]:
    """Submits jobs until one is refused; returns how many were not, and what the refusal says."""
    for admitted in range(100):
        try:
            await fleet.submit(shard)
        except Overloaded as full:
            return admitted, full.message
    raise AssertionError("there is no limit")


async def test_limits_are_divided_so_that_they_hold_for_all_shards_together(make_fleet) -> None:
    fleet = make_fleet(max_queued={"interactive": 40}, max_queued_per_tenant={"interactive": 40})
    admitted, text = await fill(fleet)
    assert 20 <= admitted <= 40  # all on one shard, at the worst
    assert "20 queued jobs" in text
    assert admitted + sum([(await fill(fleet, shard))[0] for shard in (0, 1)]) == 40


async def test_batches_and_fits_are_on_the_first_shard(make_fleet, new_job) -> None:
    fleet = make_fleet()
    await fleet.jobs.batches.create("default", "batch", b"spec", 20)
    for number in range(20):
        item = fleet.jobs.place(new_job(batch="batch", item=str(number), lane=Lane.BATCH))
        await fleet.jobs.submit(item, b"accepted")
        assert shard_of(item.job_id, 2) == 0
    assert sum((await fleet.jobs.batches.get("default", "batch")).counts.values()) == 20
    assert len(fleet.jobs.place(new_job(kind=JobKind.FIT)).job_id) == 32


async def test_a_model_that_no_worker_serves_any_more_is_limited_on_each_shard(make_fleet, new_job) -> None:
    fleet = make_fleet(max_queued={"interactive": 40})
    registry = RedisWorkerRegistry(fleet.settings)
    registry.announce("worker", [("model", "1", model_pb2.WorkerModel())], ttl=0.001)
    await asyncio.sleep(0.01)
    for shard in (0, 1):
        admitted, text = await fill(fleet, shard)
        assert admitted == 5
        assert "no worker serves the model now" in text
    registry.close()


async def test_a_shard_that_is_away_stops_its_own_jobs_only_and_loses_nothing(tmp_path, make_fleet, new_job) -> None:
    def server() -> EmbeddedValkey:
        return EmbeddedValkey(tmp_path, persist=True)

    with server() as away:
        fleet = make_fleet(urls=f"{valkey_url()},{away.url}", lease_seconds=600.0)
        queued, running = await fleet.submit(1), None
        lease = fleet.worker.lease(MODEL, block_seconds=PATIENCE)
        assert lease is not None
        running, queued = lease.job.job_id, await fleet.submit(1)
    with pytest.raises(Unavailable) as refused:
        await fleet.submit(1)
    assert refused.value.retry_after
    other = await fleet.submit(0)
    assert await fleet.work() == other
    with pytest.raises(Unavailable, match="shard 2 of 2"):
        await fleet.jobs.list(limit=9, page_token="")
    with pytest.raises(Unavailable):
        fleet.worker.append(lease, [b"event"])
    with server():
        assert (await fleet.jobs.get(running)).state is JobState.RUNNING
        while True:
            try:
                fleet.worker.settle(lease, b"done", JobState.COMPLETED)
                break
            except Unavailable:  # it is left alone for a while
                await asyncio.sleep(0.05)
        assert await fleet.work() == queued
        assert {job.state for job in (await fleet.jobs.list(limit=9, page_token=""))[0]} == {JobState.COMPLETED}
        await fleet.close()


async def test_a_shard_that_hangs_delays_no_answer_of_the_others(make_fleet, monkeypatch) -> None:
    monkeypatch.setattr(shards, "LATE_SHARE", 1e-5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        urls = f"{valkey_url()},redis://127.0.0.1:{silent.getsockname()[1]}"
        fleet = make_fleet(urls=urls, operation_timeout=1e4)
        await fleet.submit(0)
        async with asyncio.timeout(PATIENCE):
            await fleet.jobs.ping()
            assert (await fleet.jobs.backlog())["model", "interactive"].queued == 1
            assert await fleet.jobs.stored_bytes()
            assert await fleet.jobs.costs("model", "1", "igos++") == {}
        await fleet.close()


def test_a_worker_that_waits_does_not_sweep_a_shard_that_is_left_alone(tmp_path, make_fleet, monkeypatch) -> None:
    monkeypatch.setattr(shards, "SHORTEST_REST", 1e6)
    monkeypatch.setattr(shards, "LONGEST_REST", 1e6)
    fleet = make_fleet(urls=f"{valkey_url()},unix://{tmp_path}/nobody.sock")
    assert fleet.worker.lease(MODEL, block_seconds=0) is None
    assert fleet.worker._shards[1].seconds_to_sweep > 1e5


async def test_an_answer_of_a_shard_that_is_left_alone_wakes_no_worker_before_it_is_read(make_fleet) -> None:
    fleet = make_fleet()
    shard = fleet.worker._shards[1]
    with contextlib.closing(shard.bell(["model@1"])) as bell:
        bell.ask(PATIENCE)
        await fleet.submit(1)
        shard._away_until = math.inf
        assert not bell.asked
        assert not wait_for_bells([bell], 0)
        shard._away_until = 0.0
        assert await asyncio.to_thread(wait_for_bells, [bell], PATIENCE)


async def test_a_second_server_joins_while_jobs_run_and_leaves_when_it_is_empty(second_server, new_job) -> None:
    prefix = f"test-{secrets.token_hex(6)}"
    one = QueueSettings(url=valkey_url(), prefix=prefix, operation_timeout=PATIENCE)
    two = one.model_copy(update={"url": f"{valkey_url()},{second_server.url}"})
    before, worker = RedisJobQueue(one), RedisWorkerQueue(one, worker="before")
    ids = [(await before.submit(before.place(new_job()), b"accepted"))[0].job_id for _ in range(3)]
    lease = worker.lease(MODEL, block_seconds=0)
    fleet = Fleet(two, new_job)
    ids += [await fleet.submit(shard) for shard in (1, 0)]
    worker.settle(lease, b"done", JobState.COMPLETED)
    assert sorted([lease.job.job_id] + [await fleet.work() for _ in range(4)]) == sorted(ids)
    assert {(await fleet.jobs.get(job_id)).state for job_id in ids} == {JobState.COMPLETED}

    draining = Fleet(two.model_copy(update={"url": f"{two.url}#draining"}), new_job)
    assert {shard_of(await draining.submit(), 2) for _ in range(12)} == {0}
    assert (await draining.jobs.get(ids[3])).state is JobState.COMPLETED
    for each in (fleet, draining):
        await each.close()
    worker.close()
    await before.close()


def test_a_new_shard_takes_keys_from_the_others_and_moves_no_other() -> None:
    keys = [secrets.token_hex(8) for _ in range(2000)]
    before = {key: choose_shard(key, range(3)) for key in keys}
    after = {key: choose_shard(key, range(4)) for key in keys}
    moved = [key for key in keys if before[key] != after[key]]
    assert {after[key] for key in moved} == {3}
    assert 350 < len(moved) < 650  # a quarter, by nine standard deviations
    assert set(before.values()) == {0, 1, 2}


@pytest.mark.parametrize(
    "url", ["", "redis://a,", "redis://a#draining", "redis://a#draining,redis://b", ",".join(["redis://a"] * 257)]
)
def test_wrong_lists_of_servers_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        QueueSettings(url=url)


def test_one_server_is_the_queue_that_it_always_was() -> None:
    settings = QueueSettings(url="redis://127.0.0.1:1/0")
    assert settings.shards() == [settings]
    assert type(open_worker(settings, worker="worker")) is RedisWorkerQueue
    assert type(open_jobs(settings, supervisor=Supervisor())) is RedisJobQueue

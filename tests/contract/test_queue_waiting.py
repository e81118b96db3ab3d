"""Workers wait at almost no cost, work wakes one of them, and one process sweeps for all."""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from embedded_queue import MODEL, Queue, Registry
from queue_scripts import Scripts

from sagittal.core.jobs import JobState, Lease
from sagittal.process.embedded import EmbeddedValkey
from sagittal.queue import leases
from sagittal.queue.settings import QueueSettings
from sagittal.queue.sweep import sweep_arguments
from sagittal.v1 import model_pb2

#: Longest wait for anything here, in seconds.
PATIENCE = 60.0


@pytest.fixture
def scripts(server_url: str) -> Scripts:
    """All scripts on the server."""
    return Scripts(redis.Redis.from_url(server_url))


def waiting(queue: Queue, name: str = "worker", **options: Callable[[], bool]) -> "asyncio.Task[Lease | None]":
    """Lets a worker wait for a job."""
    lease = queue.worker(name).lease
    return asyncio.create_task(asyncio.to_thread(lease, MODEL, block_seconds=PATIENCE, **options))


async def blocks(queue: Queue) -> None:
    """Returns when a client of the server blocks."""
    with redis.Redis.from_url(queue.settings.url) as client:
        until = time.monotonic() + PATIENCE
        while not client.info("clients")["blocked_clients"]:
            assert time.monotonic() < until, "nobody waits"
            await asyncio.sleep(0.01)


async def test_work_wakes_a_worker_that_waits(make_queue, new_job, monkeypatch) -> None:
    monkeypatch.setattr(leases, "LOOK_SECONDS", 1e6)
    queue = make_queue(sweep_seconds=600)
    lease = waiting(queue)
    await blocks(queue)
    job, _ = await queue.jobs.submit(new_job(), b"accepted")
    taken = await lease
    assert taken is not None
    assert taken.job.job_id == job.job_id


async def test_a_wake_up_that_is_lost_delays_a_job_only(make_queue, new_job, monkeypatch) -> None:
    monkeypatch.setattr(leases, "LOOK_SECONDS", 0.1)
    queue = make_queue(sweep_seconds=600)
    root = f"{{{queue.settings.prefix}}}:"
    assert queue.worker().lease(MODEL, block_seconds=0) is None  # its sweep would find what was put aside
    job, _ = await queue.jobs.submit(new_job(), b"accepted")
    with redis.Redis.from_url(queue.settings.url) as client:
        client.delete(f"{root}bell:model@1")
        client.rename(f"{root}ready:interactive:model@1", f"{root}aside")
        lease = waiting(queue)
        await blocks(queue)
        client.rename(f"{root}aside", f"{root}ready:interactive:model@1")  # wakes nobody
    taken = await lease
    assert taken is not None
    assert taken.job.job_id == job.job_id


async def test_a_wait_ends_when_the_worker_wants_it_to(queue) -> None:
    stop = threading.Event()
    lease = waiting(queue, stop=stop.is_set)
    await blocks(queue)
    stop.set()
    assert await lease is None


async def test_one_process_sweeps_and_another_follows_it(scripts) -> None:
    def sweep(candidate: str) -> int:
        return scripts.run("sweep", *sweep_arguments(scripts.settings, candidate=candidate))[0]

    sweeper = f"{scripts.root}sweeper"
    assert [sweep(each) for each in ("one", "two", "one", "")] == [0, -1, 0, 0]
    assert 0 < scripts.client.pttl(sweeper) <= 3000
    scripts.client.delete(sweeper)  # as when its time has passed
    assert [sweep(each) for each in ("two", "one")] == [0, -1]
    for seconds in (None, 600):  # a time that never passes, and one of a process that sweeps less often
        scripts.client.set(sweeper, "another", ex=seconds)
        assert sweep("one") == 0


async def test_a_worker_that_did_not_sweep_does_so_when_the_other_is_gone(make_queue, new_job) -> None:
    queue = make_queue(lease_seconds=0.5, heartbeat_seconds=0.05, sweep_seconds=0.02)
    job, _ = await queue.jobs.submit(new_job(), b"accepted")
    queue.lease("gone")
    with redis.Redis.from_url(queue.settings.url) as client:
        client.set(f"{{{queue.settings.prefix}}}:sweeper", "gone", px=300)
    taken = queue.lease("other", block_seconds=PATIENCE)  # blocks the event loop, so that no service sweeps
    assert (taken.job.job_id, taken.job.attempt) == (job.job_id, 2)
    queue.worker("other").settle(taken, b"done", JobState.COMPLETED)


async def test_waiting_and_announcing_write_nothing_to_the_append_only_file(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path, persist=True) as server:
        settings = QueueSettings(url=server.url, sweep_seconds=600)
        registry, worker = Registry(settings), Queue(settings).worker()
        states = [("model", "1", model_pb2.WorkerModel(state=model_pb2.MODEL_STATE_READY))]
        with redis.Redis.from_url(server.url) as client:

            def idle() -> int:
                registry.workers.announce("worker", states, ttl=600)
                assert worker.lease(MODEL, block_seconds=0.1) is None
                sweep = sweep_arguments(settings, candidate=worker._candidate)
                assert Scripts(client, settings).run("sweep", *sweep)[0] == 0  # it renews its election
                return int(client.info("persistence")["aof_current_size"])

            before = idle()
            assert [idle() for _ in range(5)] == [before] * 5
        worker.close()
        await registry.close()


async def test_a_change_of_a_model_notifies_the_workers(queue) -> None:
    registry, worker = Registry(queue.settings), queue.worker()
    assert await asyncio.to_thread(worker.listen, block_seconds=PATIENCE)  # a new subscription counts as a notification
    for change in (
        lambda: registry.models.register(model_pb2.Model(name="lite", version="1")),
        lambda: registry.models.wish("lite", "1", "load"),
        lambda: registry.models.unregister("lite", "1"),
    ):
        await change()
        assert await asyncio.to_thread(worker.listen, block_seconds=PATIENCE)
    await registry.close()

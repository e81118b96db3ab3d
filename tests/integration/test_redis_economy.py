"""What a job costs: round trips, connections, and what is left in Redis afterwards."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import redis
from embedded_queue import stored_events

from sagittal.core.jobs import JobState, StoredEvent
from sagittal.queue import watch
from sagittal.queue.jobs import RedisJobQueue
from sagittal.queue.leases import RedisWorkerQueue
from sagittal.queue.metrics import QueueObserver

MODEL = [("model", "1")]


def round_trips(client: redis.Redis) -> int:
    """Commands that clients sent for the queue so far."""
    stats = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval", "blpop", "ping"))


async def test_a_job_costs_one_round_trip_for_each_step(queue_settings, new_job) -> None:
    settings = queue_settings.model_copy(update={"sweep_seconds": 600.0})
    jobs, worker = RedisJobQueue(settings), RedisWorkerQueue(settings, worker="worker")
    with redis.Redis.from_url(settings.url) as client:
        await jobs.submit(new_job(), b"accepted")  # loads the scripts
        lease = worker.lease(MODEL, block_seconds=0)
        worker.append(lease, [b"x"])
        worker.settle(lease, b"done", JobState.COMPLETED)
        await stored_events(jobs, lease.job.job_id)

        before = round_trips(client)
        job, _ = await jobs.submit(new_job(), b"accepted")
        lease = worker.lease(MODEL, block_seconds=0)
        worker.append(lease, [b"started", b"prediction"])
        worker.settle(lease, b"done", JobState.COMPLETED, [b"mask", b"insertion", b"deletion"])
        assert round_trips(client) - before == 4
        events = await stored_events(jobs, job.job_id)
        assert round_trips(client) - before == 5
        assert [event.sequence for event in events] == list(range(1, 8))
    worker.close()
    await jobs.close()


async def test_many_watchers_share_a_fixed_number_of_connections(queue_settings, new_job) -> None:
    name = queue_settings.prefix
    separator = "&" if "?" in queue_settings.url else "?"
    settings = queue_settings.model_copy(
        update={"max_connections": 4, "url": f"{queue_settings.url}{separator}client_name={name}"}
    )
    jobs, worker = RedisJobQueue(settings), RedisWorkerQueue(queue_settings, worker="worker")
    ids = [(await jobs.submit(new_job(), b"accepted"))[0].job_id for _ in range(60)]

    async def watch(job_id: str) -> int:
        return [event.sequence async for event in jobs.events(job_id)][-1]

    watchers = [asyncio.create_task(watch(job_id)) for job_id in ids for _ in range(2)]
    while lease := await asyncio.to_thread(worker.lease, MODEL, block_seconds=0):
        await asyncio.to_thread(worker.append, lease, [b"event"])
        await asyncio.to_thread(worker.settle, lease, b"done", JobState.COMPLETED)
    with redis.Redis.from_url(queue_settings.url) as client:
        assert sum(each["name"] == name for each in client.client_list()) <= 5
    assert await asyncio.wait_for(asyncio.gather(*watchers), 30) == [3] * 120
    worker.close()
    await jobs.close()


async def test_a_watcher_hears_of_an_event_before_it_would_look_by_itself(queue_settings, new_job) -> None:
    """Looking by itself is every five seconds: ten events, each waited for, in less than that can only be news."""
    jobs, worker = RedisJobQueue(queue_settings), RedisWorkerQueue(queue_settings, worker="worker")
    job, _ = await jobs.submit(new_job(), b"accepted")
    lease = worker.lease(MODEL, block_seconds=0)
    events = jobs.events(job.job_id)
    await anext(events)
    for number in range(10):
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.05)
        worker.append(lease, [b"%d" % number])
        assert (await asyncio.wait_for(waiting, 4)).payload == b"%d" % number
    await events.aclose()
    worker.close()
    await jobs.close()


async def test_nothing_is_left_of_jobs_whose_retention_has_passed(queue_settings, new_job) -> None:
    settings = queue_settings.model_copy(update={"retention_seconds": 0.01, "image_retention_seconds": 0.01})
    jobs, worker = RedisJobQueue(settings), RedisWorkerQueue(settings, worker="worker")
    for number in range(12):
        key = "shared" if number % 3 == 0 else ""
        deadline = time.time() + 60
        await jobs.submit(new_job(content_key=key, request_id=f"r{number}", deadline=deadline), b"accepted")
    lease = worker.lease(MODEL, block_seconds=0)
    worker.release(lease)
    await jobs.cancel((await jobs.submit(new_job(), b"accepted"))[0].job_id, "requested")
    while lease := worker.lease(MODEL, block_seconds=0):
        worker.checkpoint(lease, bytes(1000))
        worker.checkpoint(lease, bytes(500))
        worker.append(lease, [b"event", bytes(2000)])
        worker.settle(lease, b"done", JobState.COMPLETED)
    with redis.Redis.from_url(settings.url) as client:
        while keys := _lasting(client, settings.prefix):
            await asyncio.sleep(0.02)
            await jobs.sweep()
        assert keys == set()
        assert client.get(f"{{{settings.prefix}}}:bytes") == b"0"
    worker.close()
    await jobs.close()


def _lasting(client: redis.Redis, prefix: str) -> set[bytes]:
    """Keys that neither go by themselves within a minute nor are one of two counters."""
    root = f"{{{prefix}}}:".encode()
    found = set()
    for key in client.scan_iter(match=root.replace(b"[", b"\\[") + b"*"):
        with contextlib.suppress(redis.ResponseError):
            if (client.ttl(key) == -1 or client.ttl(key) > 60) and key.removeprefix(root) not in (b"bytes", b"turn"):
                found.add(key)
    return found


class Reads(QueueObserver):
    """Counts the reads of logs."""

    def __init__(self) -> None:
        self.count = 0

    def answered(self, operation: str, seconds: float) -> None:
        self.count += operation == "read"


async def test_a_watcher_reads_once_for_each_change_and_not_for_its_subscription(
    queue_settings, new_job, monkeypatch
) -> None:
    monkeypatch.setattr(watch, "SUBSCRIBE_SECONDS", 60.0)
    monkeypatch.setattr("sagittal.queue.jobs.LOOK_SECONDS", 600.0)
    reads = Reads()
    jobs, worker = RedisJobQueue(queue_settings, reads), RedisWorkerQueue(queue_settings, worker="worker")
    job, _ = await jobs.submit(new_job(), b"accepted")
    events = jobs.events(job.job_id)
    assert (await anext(events)).payload == b"accepted"
    assert jobs._notifications._confirmed
    rest = asyncio.ensure_future(_payloads(events))
    lease = worker.lease(MODEL, block_seconds=0)
    worker.settle(lease, b"done", JobState.COMPLETED, [b"mask"])
    assert await rest == [b"mask", b"done"]
    assert reads.count == 2
    assert not jobs._notifications._confirmed
    worker.close()
    await jobs.close()


async def _payloads(events: AsyncIterator[StoredEvent]) -> list[bytes]:
    return [event.payload async for event in events]

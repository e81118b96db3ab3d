"""Many small jobs leave nothing behind in the service: the short form of the soak in the benchmarks."""

import asyncio
import gc

import redis
from embedded_queue import Queue

from sagittal.runtime.settings import QueueSettings
from sagittal.v1 import explanation_service_pb2 as api

from .support import Stack, eventually, explain_at_once, running, spec

#: Jobs before the count, and jobs that count: anything kept for each would show as at least one object more a job.
FIRST, COUNTED = 80, 240


async def explain(stack: Stack, seed: int) -> None:
    call = stack.explanations.Explain(api.ExplainRequest(spec=spec(seed=seed)))
    assert [response.event.sequence async for response in call][-1] == 7


async def objects(stack: Stack, seeds: range) -> int:
    """Runs jobs, eight at a time, and returns the objects that there are afterwards."""
    for start in range(seeds.start, seeds.stop, 8):
        await asyncio.gather(*(explain(stack, seed) for seed in range(start, start + 8)))
    await asyncio.sleep(0.2)
    gc.collect()
    return len(gc.get_objects())


async def test_jobs_leave_nothing_behind_in_the_service_and_in_redis(queue_settings: QueueSettings) -> None:
    changes = {"retention_seconds": 2.0, "image_retention_seconds": 2.0, "sweep_seconds": 0.05, "cache_seconds": 0.0}
    settings = queue_settings.model_copy(update=changes)
    async with running(queue=Queue(settings)) as stack:
        worker = stack.worker(explain_at_once)
        async with worker.at_work():
            before = await objects(stack, range(FIRST))
            worker.leases.clear()
            after = await objects(stack, range(FIRST, FIRST + COUNTED))
            worker.leases.clear()
            gc.collect()
            after = min(after, len(gc.get_objects()))
        assert after - before < COUNTED
        with redis.Redis.from_url(settings.url) as client:
            root = f"{{{settings.prefix}}}:"
            await eventually(lambda: client.get(f"{root}bytes") == b"0")
            assert not list(client.scan_iter(match=f"{root}job:*")) + list(client.scan_iter(match=f"{root}run:*"))

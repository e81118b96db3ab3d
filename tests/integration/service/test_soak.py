"""Many small jobs leave nothing behind in the service: the short form of the soak in the benchmarks."""

import asyncio
import gc

import redis
from embedded_queue import Queue, Registry

from sagittal.queue.settings import QueueSettings
from sagittal.v1 import explanation_service_pb2 as api

from .support import ScriptedWorker, Stack, eventually, explain_at_once, running, spec

#: Jobs before the count, and jobs that count: anything kept for each would show as at least one object more a job.
FIRST, COUNTED = 80, 240

#: Timers that make cancelled ones the majority, so that the event loop forgets them all.
CANCELLED = 2_000


async def explain(stack: Stack, seed: int) -> None:
    call = stack.explanations.Explain(api.ExplainRequest(spec=spec(seed=seed)))
    assert [response.event.sequence async for response in call][-1] == 7


async def run_jobs(stack: Stack, seeds: range) -> None:
    """Runs jobs, eight at a time."""
    for start in range(seeds.start, seeds.stop, 8):
        await asyncio.gather(*(explain(stack, seed) for seed in range(start, start + 8)))


async def objects(worker: ScriptedWorker) -> int:
    """Returns how many objects there are, less those that are garbage, cancelled timers and the worker's own notes."""
    worker.leases.clear()
    # The loop keeps timers that were cancelled, of every bounded operation one, until they are due or the majority.
    loop = asyncio.get_running_loop()
    for _ in range(CANCELLED):
        loop.call_later(60, gc.collect).cancel()
    await asyncio.sleep(0)
    gc.collect()
    return len(gc.get_objects())


async def test_jobs_leave_nothing_behind_in_the_service_and_in_redis(queue_settings: QueueSettings) -> None:
    changes = {"retention_seconds": 5.0, "image_retention_seconds": 5.0, "sweep_seconds": 0.05, "cache_seconds": 0.0}
    # A connection to Redis is a hundred objects: with few of them all are open before the count.
    # Calls wait for them, and for a busy machine, longer than they would elsewhere.
    settings = queue_settings.model_copy(update=changes | {"max_connections": 2, "operation_timeout": 60.0})
    async with running(queue=Queue(settings), registry=Registry(settings)) as stack:
        worker = stack.worker(explain_at_once)
        async with worker.at_work():
            await run_jobs(stack, range(FIRST))
            before = await objects(worker)
            await run_jobs(stack, range(FIRST, FIRST + COUNTED))

            async def nothing_is_kept() -> bool:
                return await objects(worker) - before < COUNTED / 2

            # The last jobs' own ends may take a while on a busy machine; what leaks never goes.
            await eventually(nothing_is_kept)
        with redis.Redis.from_url(settings.url) as client:
            root = f"{{{settings.prefix}}}:"
            await eventually(lambda: client.get(f"{root}bytes") == b"0")
            assert not list(client.scan_iter(match=f"{root}job:*")) + list(client.scan_iter(match=f"{root}run:*"))

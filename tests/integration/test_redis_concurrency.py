"""Many streams ask the queue at once. Each operation waits for Redis's disk, so few connections would be the limit."""

import asyncio

from integration.service.support import eventually

from sagittal.queue.connection import close_async, connect_async
from sagittal.queue.settings import QueueSettings
from sagittal.registry.redis import RedisModelRegistry


async def test_sixty_four_operations_wait_for_redis_at_the_same_time(queue_settings: QueueSettings) -> None:
    registry, watcher = RedisModelRegistry(queue_settings), connect_async(queue_settings)
    key = f"{registry._root}waiting"
    operations = [
        asyncio.create_task(registry._redis.run(lambda: registry._redis.client.blpop([key], timeout=30)))
        for _ in range(64)
    ]

    async def all_wait() -> bool:
        return int((await watcher.info("clients"))["blocked_clients"]) >= len(operations)

    await eventually(all_wait)
    await watcher.rpush(key, *range(len(operations)))
    assert len(await asyncio.gather(*operations)) == len(operations)
    await close_async(watcher)
    await registry.close()

"""Turns go round the tenants that wait, and large work leaves one process to others."""

import asyncio

from sagittal.server.images import Turns


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


class Crowd:
    """Tasks that wait for turns, and who has had one, in order."""

    def __init__(self, processes: int) -> None:
        self.turns = Turns(processes)
        self.served: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def come(self, tenant: str, count: int = 1, *, large: bool = False) -> None:
        async def wait() -> None:
            await self.turns.take(tenant, large=large)
            self.served.append(tenant)

        self.tasks += [asyncio.create_task(wait()) for _ in range(count)]
        await settle()

    async def end(self, *, large: bool = False) -> None:
        self.turns.release(large=large)
        await settle()


async def test_a_tenant_that_comes_late_is_next_whatever_another_has_sent() -> None:
    crowd = Crowd(2)
    await crowd.come("flood", 60)
    await crowd.come("late", 2)
    assert crowd.served == ["flood"] * 2
    for _ in range(4):
        await crowd.end()
    assert sorted(crowd.served[2:4]) == ["flood", "late"]
    assert sorted(crowd.served[4:]) == ["flood", "late"]


async def test_large_work_leaves_a_process_to_small_work_of_everybody() -> None:
    crowd = Crowd(2)
    await crowd.come("a", 30, large=True)
    await crowd.come("b", 30, large=True)
    assert crowd.served == ["a"]
    await crowd.come("c")
    assert crowd.served == ["a", "c"]
    await crowd.end()
    assert crowd.served == ["a", "c"], "the free process waits for small work"
    for _ in range(4):
        await crowd.end(large=True)
    assert crowd.served[2:] == ["a", "b", "a", "b"]


async def test_one_process_serves_large_work_too() -> None:
    crowd = Crowd(1)
    await crowd.come("a", 2, large=True)
    await crowd.come("b")
    await crowd.end(large=True)
    await crowd.end()
    assert crowd.served == ["a", "a", "b"]


async def test_a_turn_of_a_caller_that_went_away_goes_to_the_next() -> None:
    crowd = Crowd(1)
    await crowd.come("a", 3)
    crowd.tasks[1].cancel()
    await settle()
    await crowd.end()
    assert crowd.served == ["a", "a"]
    # cancelled in the moment in which its turn was granted
    await crowd.come("a")
    crowd.turns.release(large=False)
    crowd.tasks[3].cancel()
    await settle()
    await crowd.come("b")
    await crowd.end()
    assert crowd.served[-1] == "b"

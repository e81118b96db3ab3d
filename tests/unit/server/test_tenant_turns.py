"""Turns at Redis are shared by tenants, whoever asks how much."""

import asyncio

import pytest

from sagittal.queue.turns import ON_BEHALF_OF, TenantTurns

#: Far more than anything here takes, in seconds.
PATIENCE = 30.0


async def hold(turns: TenantTurns, tenant: str, order: list[str], go_on: asyncio.Event) -> None:
    ON_BEHALF_OF.set(tenant)
    async with turns.turn(PATIENCE):
        order.append(tenant)
        await go_on.wait()


async def start(
    turns: TenantTurns, tenant: str, order: list[str], go_on: asyncio.Event, count: int
) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(hold(turns, tenant, order, go_on)) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def test_a_tenant_holds_no_more_than_its_share_and_others_go_on_at_once() -> None:
    turns, order, go_on = TenantTurns(8, 3), [], asyncio.Event()
    others = await start(turns, "other", order, go_on, 1)
    flood = await start(turns, "hostile", order, go_on, 100)
    others += await start(turns, "other", order, go_on, 1)
    assert order == ["other"] + ["hostile"] * 3 + ["other"]
    go_on.set()
    await asyncio.wait_for(asyncio.gather(*flood, *others), PATIENCE)
    assert len(order) == 102


async def test_a_tenant_that_is_alone_may_take_every_turn() -> None:
    turns, order, go_on = TenantTurns(8, 3), [], asyncio.Event()
    tasks = await start(turns, "busy", order, go_on, 20)
    assert order == ["busy"] * 8
    go_on.set()
    await asyncio.gather(*tasks)


async def test_tenants_have_the_next_turn_in_rotation() -> None:
    turns, order, go_on = TenantTurns(1, 1), [], asyncio.Event()
    tasks = await start(turns, "hostile", order, go_on, 50)
    tasks += await start(turns, "other", order, go_on, 2)
    go_on.set()
    await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)
    assert order[1:5] == ["hostile", "other", "hostile", "other"]


async def test_the_services_own_work_may_take_every_turn() -> None:
    turns, order, go_on = TenantTurns(4, 1), [], asyncio.Event()
    tasks = await start(turns, "", order, go_on, 4)
    assert order == [""] * 4
    go_on.set()
    await asyncio.gather(*tasks)


async def test_who_stops_waiting_takes_no_turn() -> None:
    turns, order, go_on = TenantTurns(1, 1), [], asyncio.Event()
    (held, waits, left) = await start(turns, "a", order, go_on, 3)
    waits.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait_for(asyncio.gather(held, left), PATIENCE)
    assert len(order) == 2
    await asyncio.wait_for(asyncio.gather(*await start(turns, "b", order, go_on, 1)), PATIENCE)


async def test_a_turn_that_does_not_come_in_time_is_no_turn() -> None:
    turns, order, go_on = TenantTurns(1, 1), [], asyncio.Event()
    (held,) = await start(turns, "a", order, go_on, 1)
    with pytest.raises(TimeoutError):
        async with turns.turn(0.01):
            pass
    go_on.set()
    await held
    async with turns.turn(PATIENCE):
        pass

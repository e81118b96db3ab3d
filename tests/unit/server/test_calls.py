"""Calls that arrive together start one after the other, so that those of other tenants start in between."""

import asyncio
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from sagittal.server.rpc import access
from sagittal.server.rpc.access import Caller
from sagittal.server.rpc.calls import Calls
from sagittal.server.rpc.layers import Call
from sagittal.server.settings import CallSettings

CONTEXT: Any = None


async def test_a_crowd_of_calls_of_one_tenant_lets_others_start_in_between() -> None:
    calls = Calls(CallSettings(), Counter("refused", "Refused.", ["reason"], registry=CollectorRegistry()))
    started: list[str] = []

    async def call(tenant: str) -> None:
        access._CALLER.set(Caller(tenant))

        async def proceed() -> None:
            started.append(tenant)

        await calls(Call("/sagittal.v1.ExplanationService/GetExplanation", False, CONTEXT), proceed)

    crowd = [asyncio.create_task(call("crowd")) for _ in range(100)]
    await asyncio.gather(*(asyncio.create_task(call("other")) for _ in range(2)))
    assert started.count("crowd") <= 10
    await asyncio.gather(*crowd)
    assert started.count("crowd") == 100

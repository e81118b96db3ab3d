"""Limits the open calls of each tenant; calls beyond the limit are refused, and other tenants are not affected."""

import asyncio
from collections import Counter as Counts
from collections import defaultdict
from typing import Any

from prometheus_client import Counter

from sagittal.core.errors import Overloaded
from sagittal.server.rpc.access import OPEN_SERVICES, current_caller
from sagittal.server.rpc.layers import Call, Proceed
from sagittal.server.settings import CallSettings

#: Limits that refuse calls, as labels of the metric.
TENANT, OPEN = ("max_per_tenant", "max_open_watches")


class Calls:
    """Layer that refuses a tenant's calls beyond the limit before their messages are read.

    Refusals are delayed, up to the same number of calls at a time. So a client that retries immediately takes little
    processor time from others. Calls of one tenant that arrive together start one after the other, and calls of others
    start in between.
    """

    def __init__(self, settings: CallSettings, refused: Counter) -> None:
        self._settings = settings
        self._refused = refused
        self._open: Counts[str] = Counts()
        self._held: Counts[str] = Counts()
        self._starting: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        for bound in (TENANT, OPEN):
            refused.labels(bound)  # starts at 0

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Counts a call while it is open."""
        if not call.method.startswith(OPEN_SERVICES):
            tenant, bound, most = current_caller().tenant, TENANT, self._settings.max_per_tenant
        elif call.streams:
            tenant, bound, most = "", OPEN, self._settings.max_open_watches
        else:
            return await proceed()  # probes end immediately and are always answered
        if self._open[tenant] >= most:
            await self._refuse(tenant, bound, most)
        self._open[tenant] += 1
        try:
            async with self._starting[tenant]:
                await asyncio.sleep(0)  # other tasks have their turn before the tenant's next call starts
            return await proceed()
        finally:
            _take_one(self._open, tenant)

    async def _refuse(self, tenant: str, bound: str, most: int) -> None:
        self._refused.labels(bound).inc()
        delay = self._settings.refusal_delay
        if self._held[tenant] < most:
            self._held[tenant] += 1
            try:
                await asyncio.sleep(delay)
            finally:
                _take_one(self._held, tenant)
        whose = "without a token" if bound == OPEN else "of this tenant"
        text = f"{most:,} calls {whose} are open (SAGITTAL_CALLS__{bound.upper()}): end some, or try again later"
        raise Overloaded(text, retry_after=max(1.0, delay))


def _take_one(counts: "Counts[str]", tenant: str) -> None:
    counts[tenant] -= 1
    if not counts[tenant]:
        del counts[tenant]

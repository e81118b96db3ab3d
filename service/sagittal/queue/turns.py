"""Fair sharing of connections to Redis: no tenant waits for all operations of another."""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

#: Tenant on whose behalf the present task runs; empty for the service's own work.
ON_BEHALF_OF: ContextVar[str] = ContextVar("on_behalf_of", default="")


#: Time for which a tenant counts as active after it requested a turn, in seconds.
ACTIVE_SECONDS = 1.0


class TenantTurns:
    """Grants `count` turns to waiting tenants in rotation; to one tenant at most `per_tenant` while others are active.

    The second limit also shares the event loop, because a tenant uses it between two turns. A tenant that is alone may
    take all turns, and so may the service's own work.
    """

    def __init__(self, count: int, per_tenant: int) -> None:
        self._free = count
        self._per_tenant = per_tenant
        self._held: dict[str, int] = {}
        self._asked: OrderedDict[str, float] = OrderedDict()
        """Time of each active tenant's latest request, newest last."""
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """Waiting turns by tenant; the next tenant comes first."""

    @asynccontextmanager
    async def turn(self, seconds: float) -> AsyncIterator[None]:
        """Holds a turn for this task's tenant. Raises TimeoutError if it is not granted in time."""
        tenant = ON_BEHALF_OF.get()
        if tenant:
            self._asked[tenant] = time.monotonic()
            self._asked.move_to_end(tenant)
        await self._take(tenant, seconds)
        try:
            yield
        finally:
            self._release(tenant)

    async def _take(self, tenant: str, seconds: float) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        self._grant()
        if turn.done():
            return
        try:
            async with asyncio.timeout(seconds):
                await turn
        except (TimeoutError, asyncio.CancelledError):
            if turn.done() and not turn.cancelled():  # the turn was granted at the same moment
                self._release(tenant)
            raise

    def _release(self, tenant: str) -> None:
        self._free += 1
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]
        self._grant()

    def _grant(self) -> None:
        while self._free and (tenant := self._next()) is not None:
            waiting = self._waiting[tenant]
            turn = waiting.popleft()
            self._waiting.move_to_end(tenant)
            if not waiting:
                del self._waiting[tenant]
            if not turn.done():  # otherwise its caller disconnected
                self._free -= 1
                self._held[tenant] = self._held.get(tenant, 0) + 1
                turn.set_result(None)

    def _next(self) -> str | None:
        """Returns the next waiting tenant that may have another turn."""
        long_ago = time.monotonic() - ACTIVE_SECONDS
        while self._asked and next(iter(self._asked.values())) < long_ago:
            self._asked.popitem(last=False)
        alone = len(self._asked) < 2
        held = self._held
        return next((each for each in self._waiting if alone or not each or held.get(each, 0) < self._per_tenant), None)

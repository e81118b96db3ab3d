"""Turns at a few processes, shared fairly: no tenant waits for all that another has sent."""

import asyncio
from collections import OrderedDict, deque


class Turns:
    """Gives free processes to the tenants that wait, in rotation.

    Large work never takes the last process: it leaves one to work that is done in milliseconds, whoever sends how much.
    """

    def __init__(self, processes: int) -> None:
        self._free = processes
        self._free_for_large = max(1, processes - 1)
        self._waiting: OrderedDict[tuple[str, bool], deque[asyncio.Future[None]]] = OrderedDict()
        """By tenant and whether the work is large; the one whose turn it is comes first."""

    async def take(self, tenant: str, *, large: bool) -> None:
        """Waits for a turn, which `release` ends."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((tenant, large), deque()).append(turn)
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(large=large)  # it was granted at the same moment
            raise

    def release(self, *, large: bool) -> None:
        """Ends a turn."""
        self._free += 1
        self._free_for_large += large
        self._grant()

    def _grant(self) -> None:
        while self._free and (chosen := self._next()) is not None:
            turn, large = chosen
            if not turn.done():  # else its caller went away
                self._free -= 1
                self._free_for_large -= large
                turn.set_result(None)

    def _next(self) -> tuple[asyncio.Future[None], bool] | None:
        """Takes out who waits longest of the next tenant, who then comes last."""
        key = next((key for key in self._waiting if self._free_for_large or not key[1]), None)
        if key is None:
            return None
        waiting = self._waiting[key]
        turn = waiting.popleft()
        self._waiting.move_to_end(key)
        if not waiting:
            del self._waiting[key]
        return turn, key[1]

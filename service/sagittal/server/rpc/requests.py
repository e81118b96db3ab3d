"""Limits the bytes of each tenant's requests that wait in memory until their jobs are stored."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

from google.protobuf.message import Message

from sagittal.queue.turns import ON_BEHALF_OF

#: Time after which a message that still arrives no longer makes others of its tenant wait, in seconds.
SLOW_SECONDS = 0.5
#: Assumed bytes of a tenant's first message.
FIRST_BYTES = 128 * 1024
#: Share of the assumed bytes that is left after a smaller message.
LEFT = 0.9


class Place:
    """The memory of one message."""

    def __init__(self, tenant: "Tenant", size: int) -> None:
        """Takes `size` bytes."""
        self._tenant = tenant
        self._size = 0
        self.claimed = False
        """Whether the code that handles the message releases the place, and not the next read of the call."""
        self.resize(size)

    def resize(self, size: int) -> None:
        """Takes another number of bytes."""
        change, self._size = size - self._size, size
        self._tenant.add(change)

    def release(self) -> None:
        """Takes no more bytes; it may be called again."""
        self.resize(0)


_PLACE: ContextVar[Place | None] = ContextVar("place", default=None)


def claim_request() -> None:
    """Keeps the place of the present message when the call reads the next one; `release_request` releases it."""
    if (place := _PLACE.get()) is not None:
        place.claimed = True


def release_request() -> None:
    """Releases the place of the present message, because its content is stored or refused."""
    if (place := _PLACE.get()) is not None:
        place.release()


def _release_unclaimed(place: Place | None) -> None:
    if place is not None and not place.claimed:
        place.release()


class Tenant:
    """The messages of one tenant. A message is read when there is room for it; one alone always has room."""

    def __init__(self, most: int) -> None:
        """Stores the limit in bytes."""
        self._most = most
        self._waiting: deque[asyncio.Future[Place]] = deque()
        self._expected = FIRST_BYTES
        self.used = 0
        """Bytes of the messages in memory, and the assumed bytes of those that arrive."""

    async def read(self, receive: Callable[[], Awaitable[Any]]) -> Any:
        """Returns a received message, whose place becomes the present one of the task.

        The size of a message is known only when it has arrived. So the limit is exceeded by messages that are larger
        than those before them, and by those that arrive slowly.
        """
        place = await self._place()
        slow = asyncio.get_running_loop().call_later(SLOW_SECONDS, place.release)
        try:
            message = await receive()
        except BaseException:
            place.release()
            raise
        finally:
            slow.cancel()
        size = message.ByteSize() if isinstance(message, Message) else 0
        self._expected = max(size, int(LEFT * self._expected), 1)
        place.resize(size)
        _PLACE.set(place)
        return message

    async def read_each(self, messages: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        """Yields the messages of a stream. The place of one is released with the next read, unless it is claimed."""
        place: Place | None = None
        try:
            while True:
                try:
                    message = await self.read(partial(anext, messages))
                except StopAsyncIteration:
                    return
                place = _PLACE.get()
                yield message
                del message
                _release_unclaimed(place)
        finally:
            _release_unclaimed(place)

    def add(self, size: int) -> None:
        """Changes the bytes in memory, and admits those who wait."""
        self.used += size
        while self._waiting and self._has_room():
            turn = self._waiting.popleft()
            if not turn.done():  # otherwise its caller disconnected
                turn.set_result(Place(self, self._expected))

    async def _place(self) -> Place:
        if not self._waiting and self._has_room():
            return Place(self, self._expected)
        turn: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the turn was granted at the same moment
                turn.result().release()
            raise

    def _has_room(self) -> bool:
        return not self.used or self.used + self._expected <= self._most


class RequestBytes:
    """The tenants' limits for messages in memory."""

    def __init__(self, most: int) -> None:
        """Stores the limit for each tenant, in bytes."""
        self._most = most
        self._tenants: dict[str, Tenant] = {}

    def of_caller(self) -> Tenant:
        """Returns the limit for the present caller's tenant, of which there are as many as the operator has named."""
        return self._tenants.setdefault(ON_BEHALF_OF.get(), Tenant(self._most))

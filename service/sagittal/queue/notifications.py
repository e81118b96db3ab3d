"""Notifications to one worker: that an attempt may have to end, that a model changed, and that work arrived.

The first two come by publish and subscribe; each only says that there is something to read. Lost notifications do no
harm, because a worker also reads at intervals. A new subscription counts as a notification, because one may have been
published before the subscription took effect.

Work that arrives wakes one of the workers that block on a list of Redis, which costs Redis nothing while they wait.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait as wait_for_sockets
from typing import Any

import structlog
from redis.client import PubSub
from redis.exceptions import RedisError

from sagittal.core.errors import Unavailable
from sagittal.queue.connection import SyncRunner
from sagittal.queue.metrics import WAIT

log = structlog.get_logger(__name__)

#: Silence after which the server is pinged, and then the time it has to answer, in seconds.
SILENCE_SECONDS = 15.0

#: Longest time for which Redis blocks a connection, in seconds. A worker that disappeared may take wake-ups from others
#: for so long.
BLOCK_SECONDS = 20.0


class WorkerNotifications:
    """A subscription that connects on first use and reconnects as needed. Use it from one thread only."""

    def __init__(self, runner: SyncRunner, channels: Sequence[str]) -> None:
        self._runner = runner
        self._channels = channels
        self._pubsub: PubSub | None = None
        self._last_message = 0.0
        self._pinged = False

    def wait(self, seconds: float) -> bool:
        """Waits up to `seconds`; returns whether there was a notification. Raises Unavailable."""
        pubsub = self._pubsub or self._subscribe()
        try:
            message = pubsub.get_message(timeout=seconds)
            if message is None:
                self._ping_after_silence(pubsub)
                return False
        except (RedisError, OSError) as error:
            self.close()
            raise Unavailable(f"notifications from the queue are interrupted ({error}); heartbeats continue") from error
        self._last_message, self._pinged = time.monotonic(), False
        if message["type"] == "subscribe" and message["data"] < len(self._channels):
            return self.wait(seconds)  # of several channels, the last one counts
        return bool(message["type"] != "pong")

    @property
    def subscribed(self) -> bool:
        """Whether notifications can arrive."""
        return self._pubsub is not None

    def fileno(self) -> int:
        """Returns the socket on which notifications arrive, while subscribed."""
        pubsub: Any = self._pubsub
        return int(pubsub.connection._sock.fileno())

    def close(self) -> None:
        """Ends the subscription."""
        if self._pubsub is not None:
            self._pubsub.close()
            self._pubsub = None

    def _subscribe(self) -> PubSub:
        pubsub: PubSub = self._runner.client.pubsub()  # type: ignore[no-untyped-call]
        try:
            self._runner.run(lambda: pubsub.subscribe(*self._channels))
        except BaseException:
            pubsub.close()
            raise
        self._pubsub, self._last_message, self._pinged = pubsub, time.monotonic(), False
        return pubsub

    def _ping_after_silence(self, pubsub: PubSub) -> None:
        """Detects a connection that is dead without an error: its server does not answer a ping."""
        if time.monotonic() - self._last_message < SILENCE_SECONDS:
            return
        if self._pinged:
            raise ConnectionError("Redis did not answer a ping")
        self._last_message, self._pinged = time.monotonic(), True
        pubsub.ping()


class WorkBell:
    """A connection on which one server answers when work arrives for some models. Use it from one thread only."""

    def __init__(self, runner: SyncRunner, keys: Sequence[str]) -> None:
        """Constructs the bell for lists of Redis; `ask` begins to wait for an entry."""
        self.runner = runner
        self.keys = keys
        self._connection: Any = None
        """The connection that waits for the answer; redis-py's type for it is not public."""

    def ask(self, seconds: float) -> None:
        """Asks the server for an answer within `seconds`, unless it was asked before. Raises Unavailable."""
        if self._connection is None:
            self.runner.run(lambda: self._send(seconds), name=WAIT)

    @property
    def asked(self) -> bool:
        """Whether an answer is to come."""
        return self._connection is not None

    def fileno(self) -> int:
        """Returns the socket on which the answer arrives, after `ask`."""
        return int(self._connection._sock.fileno())

    def rang(self) -> bool:
        """Returns whether the server answered that work arrived. Raises Unavailable."""
        return self.runner.run(self._read, name=WAIT)

    def close(self) -> None:
        """Takes the question back, by closing the connection."""
        if self._connection is not None:
            self._connection.disconnect()
            self._release()

    def _send(self, seconds: float) -> None:
        connection: Any = self.runner.client.connection_pool.get_connection()
        self._connection = connection
        with self._closing_after_an_error():
            connection.send_command("BLPOP", *self.keys, f"{min(seconds, BLOCK_SECONDS):.3f}")

    def _read(self) -> bool:
        if self._connection is None:  # after an error
            return False
        with self._closing_after_an_error():
            if not self._connection.can_read():  # TLS sends data of its own
                return False
            answer = self._connection.read_response()
        self._release()
        return answer is not None

    @contextlib.contextmanager
    def _closing_after_an_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _release(self) -> None:
        self.runner.client.connection_pool.release(self._connection)
        self._connection = None


def wait_for_bells(bells: Sequence[WorkBell], seconds: float) -> bool:
    """Waits up to `seconds`, until one of the bells rings; returns whether one did. Raises Unavailable."""
    asked = {bell.fileno(): bell for bell in bells if bell.asked}
    ready = wait_for_sockets(asked, seconds)
    rang = [bell.rang() for socket, bell in asked.items() if socket in ready]  # each answer is read
    return any(rang)


def wait_for_notifications(listeners: Sequence[WorkerNotifications], seconds: float) -> None:
    """Waits up to `seconds`, until one of several subscriptions may have something to read."""
    if all(listener.subscribed for listener in listeners):
        wait_for_sockets([listener.fileno() for listener in listeners], seconds)

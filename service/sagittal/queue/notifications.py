"""Notifications to one worker by publish and subscribe: each only says that the next heartbeat has something to report.

Lost notifications do no harm, because a worker also sends heartbeats at intervals. A new subscription counts as a
notification, because one may have been published before the subscription took effect.
"""

import time

import structlog
from redis.client import PubSub
from redis.exceptions import RedisError

from sagittal.core.errors import Unavailable
from sagittal.queue.connection import SyncRunner

log = structlog.get_logger(__name__)

#: Silence after which the server is pinged, and then the time it has to answer, in seconds.
SILENCE_SECONDS = 5.0


class WorkerNotifications:
    """A subscription that connects on first use and reconnects as needed. Use it from one thread only."""

    def __init__(self, runner: SyncRunner, channel: str) -> None:
        self._runner = runner
        self._channel = channel
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
        return bool(message["type"] != "pong")

    def close(self) -> None:
        """Ends the subscription."""
        if self._pubsub is not None:
            self._pubsub.close()
            self._pubsub = None

    def _subscribe(self) -> PubSub:
        pubsub: PubSub = self._runner.client.pubsub()  # type: ignore[no-untyped-call]
        try:
            self._runner.run(lambda: pubsub.subscribe(self._channel))
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

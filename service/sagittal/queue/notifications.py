"""Word to one worker, by publish and subscribe: it only says that the next heartbeat has something to tell.

Word is lost without harm when the connection breaks, since a worker beats in its own time as well; a new subscription
counts as word, because something may have been said before it held.
"""

import time

import structlog
from redis.client import PubSub
from redis.exceptions import RedisError

from sagittal.core.errors import Unavailable
from sagittal.queue.connection import SyncRunner

log = structlog.get_logger(__name__)

#: Silence after which the server is asked whether it is still there, and then how long it has to answer, in seconds.
SILENCE_SECONDS = 5.0


class WorkerNews:
    """A subscription that is made when it is first needed, and again whenever it must. Belongs to one thread."""

    def __init__(self, runner: SyncRunner, channel: str) -> None:
        self._runner = runner
        self._channel = channel
        self._pubsub: PubSub | None = None
        self._heard = 0.0
        self._asked = False

    def wait(self, seconds: float) -> bool:
        """Waits up to `seconds`; returns whether there was word. Raises Unavailable."""
        pubsub = self._pubsub or self._subscribe()
        try:
            message = pubsub.get_message(timeout=seconds)
            if message is None:
                self._ask_after_silence(pubsub)
                return False
        except (RedisError, OSError) as error:
            self.close()
            raise Unavailable(f"word from the queue is cut off ({error}): heartbeats bring it meanwhile") from error
        self._heard, self._asked = time.monotonic(), False
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
        self._pubsub, self._heard, self._asked = pubsub, time.monotonic(), False
        return pubsub

    def _ask_after_silence(self, pubsub: PubSub) -> None:
        """A connection may be dead without a sign: then nobody answers."""
        if time.monotonic() - self._heard < SILENCE_SECONDS:
            return
        if self._asked:
            raise ConnectionError("no answer to a ping")
        self._heard, self._asked = time.monotonic(), True
        pubsub.ping()

"""Notifications of new events in logs, for any number of watchers over one connection.

Each append publishes on its log's channel. A notification carries no events; it only asks the watcher to read again. So
slow readers need no memory here, and lost notifications do no harm: watchers also read at intervals.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import structlog
from redis.asyncio.client import PubSub, Redis
from redis.exceptions import RedisError

from sagittal.process.supervision import Supervised, Supervisor
from sagittal.queue.connection import close_async

log = structlog.get_logger(__name__)

#: Longest time without a notification after which a watcher reads anyway, in seconds.
LOOK_SECONDS = 5.0
#: Longest time for which a watcher's first read waits for its subscription, in seconds. An earlier read must be
#: repeated when the subscription takes effect.
SUBSCRIBE_SECONDS = 0.25
#: First and longest pause before a reconnect, in seconds; it doubles each time.
FIRST_PAUSE, LAST_PAUSE = 0.1, 2.0
#: Channel that keeps the subscription open while nothing is watched.
IDLE_CHANNEL = "idle"


#: Largest number of changed jobs that wait for a slow reader; beyond it, the reader must list again.
MOST_CHANGES = 10_000


class JobChanges:
    """The jobs of a tenant that changed, for one reader. They are named once, however often they change meanwhile."""

    def __init__(self, sources: int = 1) -> None:
        """Constructs the changes that come from so many servers."""
        self._sources = sources
        self._confirmed: set[object] = set()
        """Servers whose messages come."""
        self.listening = False
        """Whether every change from now on is seen."""
        self.missed = False
        """Whether a change may have been missed: the reader must list again."""
        self._ids: dict[str, None] = {}
        self._grown = asyncio.Event()

    async def wait(self) -> None:
        """Waits until there is something to take, or `listening` or `missed` was set."""
        await self._grown.wait()
        self._grown.clear()

    def take(self) -> Sequence[str]:
        """Returns the jobs that changed since the last call, in order."""
        taken, self._ids = tuple(self._ids), {}
        return taken

    def set(self) -> None:
        """Notes that the connection was lost, so that changes may have been missed."""
        self.missed = self.missed or self.listening
        self._grown.set()

    def note(self, kind: str, data: object, source: object) -> None:
        """Takes in a message of the channel of a server."""
        if kind == "subscribe":
            self.missed = self.missed or self.listening
            self._confirmed.add(source)
            self.listening = len(self._confirmed) >= self._sources
        elif isinstance(data, bytes):
            self._ids[data.decode(errors="replace")] = None
            self.missed = self.missed or len(self._ids) > MOST_CHANGES
        self._grown.set()


class LogNotifications:
    """Notifies those who watch a log when something was appended to it."""

    def __init__(self, client: "Redis", root: str, supervisor: Supervisor, suffix: str = "") -> None:
        """Stores how to connect; `suffix` ends the name of its task."""
        self._suffix = suffix
        self._supervisor = supervisor
        self._client = client
        self._root = root
        self._watchers: dict[bytes, set[asyncio.Event | JobChanges]] = {}
        self._listening: Supervised | None = None
        self._confirmed: set[bytes] = set()
        """Channels whose messages come."""
        self._changed = asyncio.Event()

    @contextlib.contextmanager
    def watch(self, job_id: str) -> Iterator[asyncio.Event]:
        """Yields an event that is set whenever the job's log may have grown."""
        grown = asyncio.Event()
        with self._watching(self._log_channel(job_id), grown):
            yield grown

    async def subscribed(self, job_id: str, grown: asyncio.Event) -> None:
        """Waits for the subscription of a watched log, but at most `SUBSCRIBE_SECONDS`."""
        if self._log_channel(job_id) in self._confirmed:
            return
        # Not wait_for: before Python 3.12 it may swallow the cancellation of a stream.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SUBSCRIBE_SECONDS):
                await grown.wait()

    @contextlib.contextmanager
    def changes(self, tenant: str, changes: JobChanges) -> Iterator[JobChanges]:
        """Adds the changes of a tenant's explanations to `changes`, and yields it."""
        channel = f"{self._root}changes:{tenant}".encode()
        if channel in self._confirmed:
            changes.note("subscribe", None, self)
        with self._watching(channel, changes):
            yield changes

    def _log_channel(self, job_id: str) -> bytes:
        return f"{self._root}log:{job_id}".encode()

    @contextlib.contextmanager
    def _watching(self, channel: bytes, watcher: asyncio.Event | JobChanges) -> Iterator[None]:
        self._watchers.setdefault(channel, set()).add(watcher)
        self._changed.set()
        self._start()
        try:
            yield
        finally:
            watchers = self._watchers[channel]
            watchers.discard(watcher)
            if not watchers:
                del self._watchers[channel]
                self._changed.set()

    async def close(self) -> None:
        """Ends the subscription."""
        if self._listening is not None:
            await self._supervisor.stop_task(self._listening)
        await close_async(self._client)

    def _start(self) -> None:
        if self._listening is None:
            self._listening = self._supervisor.start_task(f"log-notifications{self._suffix}", self._run)

    async def _run(self) -> None:
        """Listens until cancelled. After each lost connection it reconnects and wakes all watchers."""
        pause = FIRST_PAUSE
        while True:
            try:
                async with self._client.pubsub() as pubsub:
                    await pubsub.subscribe(self._root + IDLE_CHANNEL)
                    pause = FIRST_PAUSE
                    await self._relay(pubsub)
            except (RedisError, OSError) as error:
                log.warning("log-notifications-lost", error=str(error), retry_seconds=pause)
            self._confirmed.clear()
            self._wake_all()
            await asyncio.sleep(pause)
            pause = min(pause * 2, LAST_PAUSE)

    async def _relay(self, pubsub: PubSub) -> None:
        """Reads notifications and updates the subscriptions concurrently, until the connection breaks."""
        reader = asyncio.get_running_loop().create_task(self._read(pubsub), name="sagittal-log-notifications-reader")
        reader.add_done_callback(lambda _: self._changed.set())
        current: set[bytes] = set()
        try:
            while not reader.done():
                self._changed.clear()
                wanted = set(self._watchers)
                if fresh := wanted - current:
                    await pubsub.subscribe(*fresh)
                if stale := current - wanted:
                    self._confirmed -= stale
                    await pubsub.unsubscribe(*stale)
                current = wanted
                await self._changed.wait()
            reader.result()
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, pubsub: PubSub) -> None:
        silent = False
        while True:
            message = await pubsub.get_message(timeout=LOOK_SECONDS)
            if message is None:
                if silent:
                    raise ConnectionError("Redis did not answer a ping")
                silent = True
                await pubsub.ping()
                continue
            silent = False
            if message["type"] in ("message", "subscribe"):
                # A new subscription counts too: something may have been appended before it took effect.
                self._tell(message)

    def _tell(self, message: Mapping[str, Any]) -> None:
        """Passes a message on to those who watch its channel."""
        channel = message["channel"]
        if message["type"] == "subscribe" and channel in self._watchers:
            self._confirmed.add(channel)
        for watcher in self._watchers.get(channel, ()):
            if isinstance(watcher, JobChanges):
                watcher.note(message["type"], message["data"], self)
            else:
                watcher.set()

    def _wake(self, channel: bytes) -> None:
        for watcher in self._watchers.get(channel, ()):
            watcher.set()

    def _wake_all(self) -> None:
        for channel in self._watchers:
            self._wake(channel)

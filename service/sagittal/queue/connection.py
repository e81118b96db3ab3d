"""Connections to Redis that fail in bounded time, retry idempotent operations, and raise errors of `core.errors`."""

import asyncio
import inspect
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import redis
import redis.asyncio
import structlog
from redis import exceptions as faults
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel

from sagittal.core.errors import QueueFailed, Unavailable
from sagittal.queue.failures import FAILURES, Meaning, classify, translate
from sagittal.queue.metrics import UNOBSERVED, QueueObserver, timed
from sagittal.queue.scripts import Script, root_key
from sagittal.queue.settings import QueueSettings
from sagittal.queue.turns import TenantTurns

Result = TypeVar("Result")

log = structlog.get_logger(__name__)

#: Share of the operation timeout that one read, write or connect may take.
SOCKET_SHARE = 0.25
#: Attempts of one operation; all operations are idempotent. The service gives up early, so that callers learn soon that
#: Redis is unreachable. A worker retries until the operation timeout.
SERVICE_ATTEMPTS, WORKER_ATTEMPTS = 4, 1000
#: First and longest pause between two attempts, in seconds. It doubles; the actual pause is 50 to 100 % of it, at
#: random.
FIRST_PAUSE, LAST_PAUSE = 0.05, 0.8

#: Suppresses CLIENT SETINFO, because redis-py discards its answer, which may be an authentication error.
_UNNAMED: dict[str, Any] = (
    {"driver_info": None}
    if "driver_info" in inspect.signature(AbstractConnection.__init__).parameters
    else {"lib_name": None, "lib_version": None}
)


def connection_options(settings: QueueSettings) -> dict[str, Any]:
    """Returns the keyword arguments of every connection. `Attempts` retries, so redis-py must not."""
    share = settings.operation_timeout * SOCKET_SHARE
    options: dict[str, Any] = {
        "socket_timeout": share,
        "socket_connect_timeout": share,
        "protocol": 2,
        "decode_responses": False,
    } | _UNNAMED
    if settings.username is not None:
        options["username"] = settings.username
    if settings.password is not None:
        options["password"] = settings.password.get_secret_value()
    return options


def connect_sync(settings: QueueSettings) -> "redis.Redis":
    """Returns a client for threads; it connects on first use."""
    options = connection_options(settings) | {"retry": Retry(NoBackoff(), 0), "retry_on_error": []}
    if settings.sentinels:
        target = _target(settings, options)
        sentinel = Sentinel(_sentinels(settings), sentinel_kwargs=_sentinel_options(target), **target)  # type: ignore[no-untyped-call]
        client = sentinel.master_for(settings.sentinel_service, max_connections=settings.max_connections)  # type: ignore[no-untyped-call]
        _leave_demoted(client.connection_pool, _LeavesDemoted)
        return cast("redis.Redis", client)
    pool_class = redis.BlockingConnectionPool
    pool = pool_class.from_url(
        settings.url, max_connections=settings.max_connections, timeout=settings.operation_timeout, **options
    )
    _leave_demoted(pool, _LeavesDemoted)
    return redis.Redis(connection_pool=pool)


def connect_async(settings: QueueSettings) -> "redis.asyncio.Redis":
    """Returns a client for asyncio; it connects on first use."""
    # No socket timeout: redis-py implements it with asyncio.wait_for, which before Python 3.12 may swallow a
    # cancellation. AsyncRunner limits each attempt instead.
    options = connection_options(settings) | {"retry": AsyncRetry(NoBackoff(), 0), "retry_on_error": []}
    options["socket_timeout"] = None
    if settings.sentinels:
        target = _target(settings, options)
        sentinel = AsyncSentinel(_sentinels(settings), sentinel_kwargs=_sentinel_options(target), **target)  # type: ignore[no-untyped-call]
        client = sentinel.master_for(settings.sentinel_service, max_connections=settings.max_connections)
        _leave_demoted(client.connection_pool, _LeavesDemotedAsync)
        return cast("redis.asyncio.Redis", client)
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        settings.url, max_connections=settings.max_connections, timeout=settings.operation_timeout, **options
    )
    _leave_demoted(pool, _LeavesDemotedAsync)
    return redis.asyncio.Redis(connection_pool=pool)


class _LeavesDemoted:
    """A connection that closes if its server is no longer the primary, so that the address is resolved again.

    It raises ConnectionError then, so that redis-py reads no further replies from it, as those of a pipeline.
    """

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        connection: Any = super()
        try:
            return connection.read_response(*arguments, **options)
        except faults.RedisError as error:
            if not (reply := classify(error)).reconnects:
                raise
            connection.disconnect()
            raise faults.ConnectionError(f"{reply.name} {error}") from error


class _LeavesDemotedAsync:
    """The same as `_LeavesDemoted`, for asyncio."""

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        connection: Any = super()
        try:
            return await connection.read_response(*arguments, **options)
        except faults.RedisError as error:
            if not (reply := classify(error)).reconnects:
                raise
            await connection.disconnect()
            raise faults.ConnectionError(f"{reply.name} {error}") from error


def _leave_demoted(pool: Any, how: type) -> None:
    pool.connection_class = type(how.__name__, (how, pool.connection_class), {})


def close_sync(client: "redis.Redis") -> None:
    """Closes all connections, including those to Sentinels."""
    manager = getattr(client.connection_pool, "sentinel_manager", None)
    for each in (client, *(manager.sentinels if manager else ())):
        each.close()
        each.connection_pool.disconnect()


async def close_async(client: "redis.asyncio.Redis") -> None:
    """Closes all connections, including those to Sentinels."""
    manager = getattr(client.connection_pool, "sentinel_manager", None)
    for each in (client, *(manager.sentinels if manager else ())):
        await each.aclose()
        await each.connection_pool.disconnect()


def _sentinels(settings: QueueSettings) -> list[tuple[str, int]]:
    pairs = (address.rpartition(":") for address in settings.sentinels)
    return [(host, int(port)) for host, _, port in pairs]


def _sentinel_options(target: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of connections to the Sentinels: they use TLS if those to the primary do."""
    common = ("socket_timeout", "socket_connect_timeout", "retry")
    return {name: value for name, value in target.items() if name in common or name.startswith("ssl")}


def _target(settings: QueueSettings, options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of connections to the primary that Sentinel names: those of the URL except its address."""
    given = {name: value for name, value in parse_url(settings.url).items() if name not in _ADDRESS}  # type: ignore[no-untyped-call]
    if urlsplit(settings.url).scheme == "rediss":
        given["ssl"] = True
    return given | options


#: Parts of a URL that the Sentinels replace.
_ADDRESS = ("host", "port", "path", "connection_class")


class Attempts:
    """Attempts of one operation: how many are left, until when, and what each failure means."""

    def __init__(
        self, settings: QueueSettings, observer: QueueObserver, name: str, *, most: int, accepted: bool
    ) -> None:
        """Starts the clock.

        Args:
            settings: Settings of the queue.
            observer: Is notified of each failure.
            name: Name of the operation in metrics and logs.
            most: Largest number of attempts.
            accepted: Whether the operation is for work that is already accepted.
        """
        self._settings = settings
        self._observer = observer
        self._name = name
        self._accepted = accepted
        self._ends = time.monotonic() + settings.operation_timeout
        self._pause = FIRST_PAUSE
        self._left = most

    def next_pause(self, error: Exception) -> float:
        """Returns the seconds to wait before the next attempt; raises one of our errors if there is none."""
        reply = classify(error)
        self._observer.failed(self._name, reply.name, reply.meaning.value)
        self._left -= 1
        self._pause = min(self._pause * 2, LAST_PAUSE)
        pause = random.uniform(self._pause / 2, self._pause)  # noqa: S311 - spreads load; not for security
        # An attempt may take two shares: one to connect and one to read.
        room = self._ends - time.monotonic() - pause - 2 * SOCKET_SHARE * self._settings.operation_timeout
        if reply.meaning is Meaning.WAIT and self._left > 0 and room > 0:
            return pause
        failure = translate(error, self._settings, accepted=self._accepted)
        if isinstance(failure, QueueFailed):
            log.error("redis-failed", operation=self._name, reply=reply.name, error=str(error))
        raise failure from error


def wait_command(settings: QueueSettings) -> tuple[str | int, ...]:
    """Returns the command that waits, within one read, until replicas have received the connection's last change."""
    patience = settings.operation_timeout * SOCKET_SHARE / 2
    return "WAIT", settings.synchronous_replicas, max(1, round(1000 * patience))


def replicated(replies: list[Any], settings: QueueSettings) -> Any:
    """Returns the reply of a command that WAIT followed; raises its error, or one if too few replicas received it."""
    reply, received = replies
    for each in (reply, received):
        if isinstance(each, Exception):
            raise each
    if received < settings.synchronous_replicas:
        raise faults.ResponseError(f"NOREPLICAS {received} of {settings.synchronous_replicas} have received the change")
    return reply


class SyncRunner:
    """Runs operations on Redis for threads."""

    def __init__(
        self,
        client: "redis.Redis",
        settings: QueueSettings,
        root: str,
        observer: QueueObserver = UNOBSERVED,
        attempts: int = WORKER_ATTEMPTS,
    ) -> None:
        self.client = client
        self._attempts = attempts
        self._observer = observer
        self._settings = settings
        self._root = root

    def run(self, operation: Callable[[], Result], *, name: str = "command") -> Result:
        """Runs an idempotent operation, and repeats it if its answer is lost; `name` is its name in metrics."""
        attempts = Attempts(self._settings, self._observer, name, most=self._attempts, accepted=True)
        while True:
            try:
                with timed(self._observer, name):
                    return operation()
            except FAILURES as error:
                time.sleep(attempts.next_pause(error))

    def script(self, script: Script, *arguments: bytes | str | int | float) -> Any:
        """Runs a script; sends its text if Redis does not know it, as after a restart."""
        client: Any = self.client

        def evaluate(command: str, text: str) -> Any:
            call = (command, text, 1, self._root, *arguments)
            if not self._settings.synchronous_replicas:
                return client.execute_command(*call)
            with client.pipeline(transaction=False) as pipeline:
                pipeline.execute_command(*call)
                pipeline.execute_command(*wait_command(self._settings))
                return replicated(pipeline.execute(raise_on_error=False), self._settings)

        def operation() -> Any:
            try:
                return evaluate("EVALSHA", script.digest)
            except faults.NoScriptError:
                return evaluate("EVAL", script.text)

        return self.run(operation, name=script.name)


class AsyncRunner:
    """Runs operations on Redis for asyncio."""

    def __init__(
        self, client: "redis.asyncio.Redis", settings: QueueSettings, root: str, observer: QueueObserver = UNOBSERVED
    ) -> None:
        self.client = client
        self._observer = observer
        self._settings = settings
        self._root = root
        self._turns = TenantTurns(settings.max_connections, settings.max_connections_per_tenant)

    async def run(self, operation: Callable[[], Awaitable[Result]], *, name: str = "command") -> Result:
        """Runs an idempotent operation, and repeats it if its answer is lost; `name` is its name in metrics.

        Tenants take turns. Waiting for a turn does not count as time of the operation, because it does not mean that
        Redis is unreachable. A call that waits longer than `operation_timeout` for its turn is refused.
        """
        async with AsyncExitStack() as turn:
            try:
                await turn.enter_async_context(self._turns.turn(self._settings.operation_timeout))
            except TimeoutError as error:
                raise Unavailable(
                    f"all connections to the queue were busy for {self._settings.operation_timeout:g} s: try again, or "
                    "run more replicas",
                    retry_after=self._settings.retry_after,
                ) from error
            return await self._run(operation, name)

    async def _run(self, operation: Callable[[], Awaitable[Result]], name: str) -> Result:
        attempts = Attempts(self._settings, self._observer, name, most=SERVICE_ATTEMPTS, accepted=False)
        try:
            async with asyncio.timeout(self._settings.operation_timeout):
                while True:
                    try:
                        with timed(self._observer, name):
                            async with asyncio.timeout(2 * SOCKET_SHARE * self._settings.operation_timeout):
                                return await operation()
                    except FAILURES as error:  # a TimeoutError is an OSError
                        await asyncio.sleep(attempts.next_pause(error))
        except TimeoutError as error:
            raise Unavailable(
                f"the queue did not answer within {self._settings.operation_timeout:g} s: try again",
                retry_after=self._settings.retry_after,
            ) from error

    async def script(self, script: Script, *arguments: bytes | str | int | float) -> Any:
        """Runs a script; sends its text if Redis does not know it, as after a restart."""
        client: Any = self.client

        async def evaluate(command: str, text: str) -> Any:
            call = (command, text, 1, self._root, *arguments)
            if not self._settings.synchronous_replicas:
                return await client.execute_command(*call)
            async with client.pipeline(transaction=False) as pipeline:
                pipeline.execute_command(*call)
                pipeline.execute_command(*wait_command(self._settings))
                return replicated(await pipeline.execute(raise_on_error=False), self._settings)

        async def operation() -> Any:
            try:
                return await evaluate("EVALSHA", script.digest)
            except faults.NoScriptError:
                return await evaluate("EVAL", script.text)

        return await self.run(operation, name=script.name)


#: Oldest supported version of Redis; Valkey reports the Redis version with which it is compatible.
OLDEST = (7, 0)


def check_server(settings: QueueSettings) -> list[str]:
    """Returns warnings for the operator about the servers, one sentence each; empty if there are none.

    Raises:
        Unavailable: a server does not answer.
    """
    shards = settings.shards()
    if len(shards) == 1:
        return _check_one(settings)
    return [f"shard {number}: {text}" for number, each in enumerate(shards, 1) for text in _check_one(each)]


def _check_one(settings: QueueSettings) -> list[str]:
    client = connect_sync(settings)
    try:
        info = SyncRunner(client, settings, root_key(settings)).run(client.info)
    finally:
        close_sync(client)
    return judge(info)


def judge(info: dict[str, object]) -> list[str]:
    """Returns the warnings for a server with this INFO."""
    warnings = []
    version = tuple(int(part) for part in str(info.get("redis_version", "0")).split(".")[:2])
    if version < OLDEST:
        warnings.append(f"Redis {info.get('redis_version')} is too old: use Redis 7.0 or Valkey 8 or later")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        warnings.append(f"maxmemory-policy is {policy}: Redis may delete accepted jobs; set it to noeviction")
    if not info.get("aof_enabled"):
        warnings.append("appendonly is off: accepted jobs are lost if Redis stops; set appendonly yes")
    return warnings

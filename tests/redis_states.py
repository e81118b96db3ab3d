"""States of a real server in which it refuses the queue, and that pass; each is put back at the end of its context."""

import contextlib
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import redis
from e2e_stack import PATIENCE, free_port, wait_until

#: Options of a server whose state may be changed so.
OPTIONS = ("--enable-protected-configs", "yes")


@contextlib.contextmanager
def configured(operator: redis.Redis, **changes: object) -> Iterator[None]:
    """Changes settings of the server, and puts them back."""
    before = {name: operator.config_get(name)[name] for name in changes}
    try:
        for name, value in changes.items():
            operator.config_set(name, value)
        yield
    finally:
        for name, value in before.items():
            operator.config_set(name, value)


def lacking_replicas(operator: redis.Redis) -> AbstractContextManager[None]:
    return configured(operator, **{"min-replicas-to-write": 1})


def full(operator: redis.Redis) -> AbstractContextManager[None]:
    return configured(operator, maxmemory=1)


@contextlib.contextmanager
def demoted(operator: redis.Redis) -> Iterator[None]:
    """A replica of a primary that is not there, as in the midst of a failover."""
    operator.replicaof("127.0.0.1", str(free_port()))
    try:
        yield
    finally:
        operator.replicaof("NO", "ONE")


@contextlib.contextmanager
def unable_to_save(operator: redis.Redis) -> Iterator[None]:
    """Its directory is gone, so that a snapshot fails, after which it takes no writes."""
    with tempfile.TemporaryDirectory() as parent:
        gone = Path(parent, "gone")
        gone.mkdir()
        with configured(operator, dir=str(gone), save="3600 1"):
            gone.rmdir()
            operator.bgsave()
            wait_until(lambda: operator.info()["rdb_last_bgsave_status"] == "err", "the snapshot fails")
            yield
            gone.mkdir()
        operator.bgsave()
        wait_until(lambda: operator.info()["rdb_last_bgsave_status"] == "ok", "a snapshot succeeds")


@contextlib.contextmanager
def busy(operator: redis.Redis) -> Iterator[None]:
    """A script of somebody else runs until it is killed."""
    other = redis.Redis(**address_of(operator))
    with configured(operator, **{"busy-reply-threshold": 20}):
        running = threading.Thread(target=run_until_killed, args=(other,))
        running.start()
        try:
            wait_until(lambda: says_busy(operator), "the server is busy")
            yield
        finally:
            operator.script_kill()
            running.join(PATIENCE)
            other.close()


def address_of(client: redis.Redis) -> dict[str, Any]:
    found = client.connection_pool.connection_kwargs
    return {name: found[name] for name in ("host", "port")}


def run_until_killed(client: redis.Redis) -> None:
    with contextlib.suppress(redis.ResponseError):
        client.eval("while true do end", 0)


def says_busy(client: redis.Redis) -> bool:
    try:
        client.ping()
    except redis.ResponseError as error:
        return "BUSY" in str(error)
    return False


@contextlib.contextmanager
def crowded(operator: redis.Redis) -> Iterator[None]:
    """Everybody is cut off, and nobody new is let in."""
    with configured(operator, maxclients=1):
        operator.client_kill_filter(_type="normal", skipme=True)
        yield


#: What is done to the server, by the reply that follows from it.
STATES: Mapping[str, Callable[[redis.Redis], AbstractContextManager[None]]] = {
    "NOREPLICAS": lacking_replicas,
    "READONLY": demoted,
    "MISCONF": unable_to_save,
    "BUSY": busy,
    "OOM": full,
    "MAXCLIENTS": crowded,
}

"""A Redis that refuses a program says why to its operator and its callers, with the remedy, and no secret."""

import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import redis

from sagittal.core.errors import Unavailable
from sagittal.process.embedded import EmbeddedValkey
from sagittal.queue.failures import translate
from sagittal.queue.jobs import RedisJobQueue
from sagittal.queue.leases import RedisWorkerQueue
from sagittal.queue.settings import QueueSettings

SECRET, WRONG = "correct-horse", "battery-staple"

#: What Valkey says, and then hangs up, where it is in protected mode and the caller is on another machine.
DENIED = b"-DENIED Valkey is running in protected mode because protected mode is enabled and no password is set.\r\n"


class Protected(socketserver.BaseRequestHandler):
    """Answers as Valkey does: at once, whatever it is asked."""

    def handle(self) -> None:
        self.request.sendall(DENIED)


@contextmanager
def protected(password: str | None) -> Iterator[QueueSettings]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Protected) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield settings(f"redis://127.0.0.1:{server.server_address[1]}/0", password=password)
        server.shutdown()
        thread.join()


def settings(url: str, **changes: object) -> QueueSettings:
    return QueueSettings(url=url, operation_timeout=2, **changes)  # type: ignore[arg-type]


@contextmanager
def serving(
    configure: Callable[[redis.Redis], object], *, binary: str | None = None, **changes: object
) -> Iterator[QueueSettings]:
    """Settings for a real server, Valkey where no other is named, that an operator has configured."""
    with EmbeddedValkey(binary=binary) as server:
        with redis.Redis.from_url(server.url) as operator:
            configure(operator)
        yield settings(server.url, **changes)


def with_password(operator: redis.Redis) -> None:
    operator.config_set("requirepass", SECRET)


def with_user(rights: str, operator: redis.Redis) -> None:
    operator.execute_command("ACL", "SETUSER", "ann", "on", f">{SECRET}", "~*", "&*", "-@all", *rights.split())


ANN = {"username": "ann", "password": SECRET}
REFUSALS = {
    "protected": (partial(protected, None), "protected mode.*SAGITTAL_QUEUE__PASSWORD"),
    "protected, with a password": (partial(protected, WRONG), "protected mode.*SAGITTAL_QUEUE__PASSWORD"),
    "none given": (partial(serving, with_password), "received none; set SAGITTAL_QUEUE__PASSWORD"),
    "wrong": (partial(serving, with_password, password=WRONG), "does not accept these credentials"),
    "unknown user": (partial(serving, with_password, username="bob", password=WRONG), "does not accept these"),
    "none wanted": (partial(serving, lambda _: None, password=WRONG), "received a password but has none"),
    "no right": (
        partial(serving, partial(with_user, "+@connection"), **ANN),
        "user to run '.+'; give the user the rights",
    ),
    "no right in a script": (
        partial(serving, partial(with_user, "+@connection +@scripting"), **ANN),
        "user to run .+; give the user the rights at the end of docs/guarantees.md",
    ),
}


@pytest.mark.parametrize(("refusing", "says"), REFUSALS.values(), ids=REFUSALS)
async def test_a_refusal_names_its_cause_and_remedy(refusing: Callable, says: str) -> None:
    with refusing() as given:
        jobs, worker = RedisJobQueue(given), RedisWorkerQueue(given, worker="worker")
        with pytest.raises(Unavailable, match=says) as service:
            await jobs.backlog()
        with pytest.raises(Unavailable, match=says) as working:
            worker.lease([("model", "1")], block_seconds=0)
        worker.close()
        await jobs.close()
    for caught in (service, working):
        said = caught.value.message + str(caught.value.__cause__)
        assert not any(secret in said for secret in (SECRET, WRONG))
        assert "ann" not in caught.value.message.split()


@pytest.mark.parametrize("name", [name for name, (refusing, _) in REFUSALS.items() if refusing.func is serving])
async def test_the_oldest_redis_is_understood_too(name: str, redis_binary: str) -> None:
    refusing, says = REFUSALS[name]
    with refusing(binary=redis_binary) as given:
        jobs = RedisJobQueue(given)
        with pytest.raises(Unavailable, match=says):
            await jobs.backlog()
        await jobs.close()


def test_a_redis_with_too_many_clients_is_said_to_have_them() -> None:
    lost = redis.exceptions.ConnectionError("max number of clients reached")
    translated = translate(lost, QueueSettings())
    assert isinstance(translated, Unavailable)
    assert "Redis has reached maxclients" in translated.message

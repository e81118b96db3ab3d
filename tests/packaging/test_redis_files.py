"""The files of deploy/redis, as they are, on a real server: TLS, one user with few rights, and a queue that works."""

import hashlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import trustme
from e2e_stack import free_port
from packaging_support import ROOT

from sagittal.core.jobs import JobState, NewJob
from sagittal.queue.connection import check_server
from sagittal.queue.jobs import RedisJobQueue
from sagittal.queue.leases import RedisWorkerQueue
from sagittal.queue.settings import QueueSettings
from sagittal.registry.redis import RedisModelRegistry, RedisWorkerRegistry
from sagittal.v1 import model_pb2

FILES = ROOT / "deploy" / "redis"
PASSWORD = "correct horse battery staple"  # noqa: S105 - of this test's own server


@pytest.fixture
def settings(tls_binary: str, tmp_path: Path) -> Iterator[QueueSettings]:
    """Settings of a queue on a server that runs with these files, its paths and port put in."""
    port, authority = free_port(), trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(str(tmp_path / "tls.key"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "tls.crt"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    users = (FILES / "users.acl").read_text()
    digest = hashlib.sha256(PASSWORD.encode()).hexdigest()
    (tmp_path / "users.acl").write_text(users.replace("REPLACE_BY_THE_SHA256_OF_THE_PASSWORD", digest))
    text = (FILES / "redis.conf").read_text().replace("/etc/redis/tls", str(tmp_path))
    text = text.replace("/etc/redis", str(tmp_path)).replace("6380", str(port))
    (tmp_path / "redis.conf").write_text(f"{text}\nbind 127.0.0.1\ndir {tmp_path}\n")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([tls_binary, tmp_path / "redis.conf"], stdout=log, stderr=log)
    try:
        wait_for_port(port, tmp_path / "log")
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={tmp_path}/ca.crt"
        yield QueueSettings(url=url, username="sagittal", password=PASSWORD)
    finally:
        process.terminate()
        process.wait(30)


def wait_for_port(port: int, log: Path) -> None:
    until = time.monotonic() + 30
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)


async def test_a_job_goes_its_whole_way_with_no_more_rights_than_the_file_gives(
    settings: QueueSettings, new_job: Callable[..., NewJob]
) -> None:
    jobs, models = RedisJobQueue(settings), RedisModelRegistry(settings)
    workers, catalogue = RedisWorkerQueue(settings, worker="w"), RedisWorkerRegistry(settings)
    catalogue.publish(model_pb2.Model(name="model", version="1"))
    assert (await models.model("model")).version == "1"
    await jobs.ping()
    job, _ = await jobs.submit(new_job(), b"accepted")
    lease = workers.lease([("model", "1")], block_seconds=5)
    assert lease is not None
    workers.append(lease, [b"event"])
    workers.checkpoint(lease, b"state")
    assert workers.heartbeat([lease]) == ([], [])
    assert workers.listen(block_seconds=5)  # the subscription itself counts as word
    workers.settle(lease, b"done", JobState.COMPLETED)
    assert [event.payload async for event in jobs.events(job.job_id)] == [b"accepted", b"event", b"done"]
    other, _ = await jobs.submit(new_job(), b"accepted")
    await jobs.cancel(other.job_id, "not wanted")
    await jobs.backlog()
    await jobs.sweep()
    await jobs.delete(job.job_id)
    assert check_server(settings) == []
    await jobs.close()
    await models.close()


def test_that_user_can_do_nothing_else(settings: QueueSettings) -> None:
    client = redis.Redis.from_url(settings.url, username="sagittal", password=PASSWORD)
    for command in (["SET", "other", "1"], ["CONFIG", "GET", "*"], ["FLUSHALL"], ["KEYS", "*"], ["ACL", "LIST"]):
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command(*command)
    client.close()


def test_nobody_else_is_let_in(settings: QueueSettings) -> None:
    client = redis.Redis.from_url(settings.url)
    with pytest.raises((redis.exceptions.AuthenticationError, redis.exceptions.ResponseError)):
        client.ping()
    client.close()


def test_the_guarantees_name_the_same_rights() -> None:
    rights = (FILES / "users.acl").read_text().partition("-@all")[2].strip()
    assert rights in (ROOT / "docs" / "guarantees.md").read_text()

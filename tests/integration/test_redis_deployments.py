"""The ways in which people run Redis: with an access control list, with TLS, behind Sentinels that fail over."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import redis
import trustme
from embedded_queue import stored_events

from sagittal.core.errors import Unavailable
from sagittal.core.jobs import JobState
from sagittal.process.embedded import EmbeddedValkey, find_binary
from sagittal.queue.connection import check_server
from sagittal.queue.jobs import RedisJobQueue
from sagittal.queue.leases import RedisWorkerQueue
from sagittal.queue.settings import QueueSettings
from sagittal.registry.redis import RedisModelRegistry, RedisWorkerRegistry
from sagittal.v1 import model_pb2

MODEL = [("model", "1")]
GUARANTEES = Path(__file__).parents[2] / "docs" / "guarantees.md"


async def run_a_job(settings: QueueSettings, new_job) -> None:
    """Takes a job through every operation."""
    jobs, worker = RedisJobQueue(settings), RedisWorkerQueue(settings, worker="worker")
    try:
        job, _ = await jobs.submit(new_job(request_id="mine", content_key="k", deadline=time.time() + 60), b"accepted")
        watching = asyncio.create_task(anext(jobs.events(job.job_id, 1)))
        lease = await asyncio.to_thread(worker.lease, MODEL, block_seconds=5)
        worker.append(lease, [b"event"])
        assert (await watching).payload == b"event"
        worker.checkpoint(lease, b"state")
        assert worker.heartbeat([lease]) == ([], [])
        assert worker.listen(block_seconds=5)  # the subscription itself counts as word
        worker.release(lease)
        lease = worker.lease(MODEL, block_seconds=0)
        worker.settle(lease, b"done", JobState.COMPLETED)
        await jobs.list(limit=5, page_token="")
        await jobs.backlog()
        await jobs.sweep()
        await jobs.cancel(job.job_id, "late")
        await jobs.delete(job.job_id)
        assert worker.lease(MODEL, block_seconds=0.1) is None
    finally:
        worker.close()
        await jobs.close()


async def test_the_rights_that_the_documentation_names_are_enough(tmp_path, redis_binary, valkey_url, new_job) -> None:
    [line] = re.findall(r"user sagittal on (.*)", GUARANTEES.read_text())
    for binary in (None, redis_binary):
        with EmbeddedValkey(binary=binary) as server:
            with redis.Redis.from_url(server.url) as client:
                rights = line.replace("PASSWORD", "secret").split()
                client.execute_command("ACL", "SETUSER", "sagittal", "on", *rights)
                client.execute_command("ACL", "SETUSER", "default", "off")
            settings = QueueSettings(url=server.url, username="sagittal", password="secret")  # noqa: S106
            await run_a_job(settings, new_job)
            check_server(settings)
            models, workers = RedisModelRegistry(settings), RedisWorkerRegistry(settings)
            workers.publish(model_pb2.Model(name="model", version="1"))
            workers.announce("worker", [("model", "1", model_pb2.WorkerModel())], ttl=5)
            assert len((await models.model("model")).workers) == 1
            workers.withdraw("worker")
            workers.close()
            await models.close()
            wrong = RedisJobQueue(settings.model_copy(update={"password": None, "username": None}))
            with pytest.raises(Unavailable, match="credentials"):
                await wrong.ping()
            await wrong.close()


async def test_installations_with_different_prefixes_do_not_see_each_other(queue_settings, new_job) -> None:
    other = queue_settings.model_copy(update={"prefix": queue_settings.prefix + "-other"})
    jobs, worker = RedisJobQueue(queue_settings), RedisWorkerQueue(other, worker="worker")
    await jobs.submit(new_job(), b"accepted")
    assert worker.lease(MODEL, block_seconds=0) is None
    worker.close()
    await jobs.close()


async def test_the_queue_works_over_tls(tmp_path, tls_binary, new_job) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed: apt-get install openssl")
    subprocess.run(  # noqa: ASYNC221 - nothing else runs yet
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    port, cert = free_port(), tmp_path / "cert.pem"
    tls = ("--tls-port", str(port), "--tls-cert-file", str(cert), "--tls-key-file", str(tmp_path / "key.pem"),
           "--tls-ca-cert-file", str(cert), "--tls-auth-clients", "no")  # fmt: skip
    with EmbeddedValkey(binary=tls_binary, options=tls):
        await run_a_job(QueueSettings(url=f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={cert}"), new_job)
        untrusting = RedisJobQueue(QueueSettings(url=f"rediss://127.0.0.1:{port}/0", operation_timeout=2.0))
        with pytest.raises(Unavailable):
            await untrusting.ping()
        await untrusting.close()


@pytest.fixture(params=["redis", "valkey"])
def server_binary(request) -> str:
    """Each server that must be ridden with, as a path."""
    return request.getfixturevalue("redis_binary") if request.param == "redis" else str(find_binary())


async def test_a_failover_under_load_loses_nothing_that_was_acknowledged(tmp_path, server_binary, new_job) -> None:
    first, second, third, watch = (free_port() for _ in range(4))
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"port {watch}\nbind 127.0.0.1\ndir {tmp_path}\nsentinel monitor sagittal 127.0.0.1 {first} 1\n"
        "sentinel down-after-milliseconds sagittal 500\nsentinel failover-timeout sagittal 2000\n"
    )
    follow = ("--replicaof", f"127.0.0.1 {first}", "--repl-diskless-sync-delay", "0")
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(EmbeddedValkey(port=first, binary=server_binary))
        replicas = [
            stack.enter_context(EmbeddedValkey(port=port, binary=server_binary, options=follow))
            for port in (second, third)
        ]
        boss = stack.enter_context(redis.Redis(port=first))
        wait_until(lambda: boss.info("replication")["connected_slaves"] == 2 and boss.wait(2, 100) == 2)
        sentinel = subprocess.Popen([server_binary, str(config), "--sentinel"], stdout=subprocess.DEVNULL)  # noqa: ASYNC220
        stack.callback(sentinel.wait)
        stack.callback(sentinel.kill)
        eye = stack.enter_context(redis.Redis(port=watch, decode_responses=True))
        wait_until(lambda: len(eye.execute_command("SENTINEL", "REPLICAS", "sagittal")) == 2)

        room = {"interactive": 100_000}
        settings = QueueSettings(
            sentinels=(f"127.0.0.1:{watch}",),
            operation_timeout=2.0,
            synchronous_replicas=1,
            max_queued=room,
            max_queued_per_tenant=room,
            max_queued_evaluations={"interactive": 10**9},
            max_queued_evaluations_per_tenant={"interactive": 10**9},
        )
        jobs, worker = RedisJobQueue(settings), RedisWorkerQueue(settings, worker="worker")
        job, _ = await jobs.submit(new_job(), b"accepted")
        lease = worker.lease(MODEL, block_seconds=0)
        for replica in replicas:
            os.kill(replica.pid, signal.SIGSTOP)
        with pytest.raises(Unavailable, match="NOREPLICAS"):
            await jobs.submit(new_job(), b"not replicated")
        for replica in replicas:
            os.kill(replica.pid, signal.SIGCONT)
        wait_until(lambda: boss.wait(2, 100) == 2)

        acknowledged: list[str] = []
        load = [asyncio.create_task(keep_submitting(jobs, new_job, acknowledged)) for _ in range(3)]
        await grown_by(acknowledged, 30)
        os.kill(primary.pid, signal.SIGKILL)

        async def append() -> None:
            while True:
                with contextlib.suppress(Unavailable):
                    return await asyncio.to_thread(worker.append, lease, [b"event"])

        await asyncio.wait_for(append(), 120)
        await grown_by(acknowledged, 30)
        for task in load:
            task.cancel()
        await asyncio.gather(*load, return_exceptions=True)
        worker.settle(lease, b"done", JobState.COMPLETED)
        events = await stored_events(jobs, job.job_id)
        assert [event.payload for event in events] == [b"accepted", b"event", b"done"]
        for job_id in acknowledged:
            assert (await jobs.get(job_id)).state is JobState.QUEUED
        worker.close()
        await jobs.close()


async def keep_submitting(jobs: RedisJobQueue, new_job, acknowledged: list[str]) -> None:
    """Submits jobs one after the other, and notes each that is accepted."""
    while True:
        with contextlib.suppress(Unavailable):
            job, _ = await jobs.submit(new_job(), b"accepted")
            acknowledged.append(job.job_id)
        await asyncio.sleep(0.02)


async def grown_by(acknowledged: list[str], number: int) -> None:
    """Waits until so many more jobs are accepted."""
    until = len(acknowledged) + number
    await asyncio.to_thread(wait_until, lambda: len(acknowledged) >= until)


async def test_sentinels_and_their_primary_may_speak_tls_with_an_authority_of_ones_own(
    tmp_path, tls_binary, new_job
) -> None:
    authority, port, watch = trustme.CA(), free_port(), free_port()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    files = {"cert": "cert.pem", "key": "key.pem", "ca-cert": "ca.pem"}
    tls = [f"tls-{name}-file {tmp_path / file}" for name, file in files.items()]
    tls += ["tls-auth-clients no", "tls-replication yes", "port 0", "bind 127.0.0.1", f"dir {tmp_path}"]
    primary, sentinel = tmp_path / "redis.conf", tmp_path / "sentinel.conf"
    primary.write_text("\n".join([*tls, f"tls-port {port}"]))
    sentinel.write_text("\n".join([*tls, f"tls-port {watch}", f"sentinel monitor sagittal 127.0.0.1 {port} 1", ""]))
    settings = QueueSettings(
        url=f"rediss://ignored:1/2?ssl_ca_certs={tmp_path}/ca.pem", sentinels=(f"127.0.0.1:{watch}",)
    )
    with contextlib.ExitStack() as stack:
        for command in ([str(primary)], [str(sentinel), "--sentinel"]):
            process = subprocess.Popen([tls_binary, *command], stdout=subprocess.DEVNULL)  # noqa: ASYNC220
            stack.callback(process.wait)
            stack.callback(process.kill)
        wait_until(lambda: all(_listens(each) for each in (port, watch)))
        await run_a_job(settings, new_job)
        with redis.Redis("127.0.0.1", port, db=2, ssl=True, ssl_ca_certs=str(tmp_path / "ca.pem")) as client:
            assert client.exists("{sagittal}:turn"), "the URL's database was used"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition) -> None:
    ends = time.monotonic() + 120
    while True:
        with contextlib.suppress(redis.ConnectionError):
            if condition():
                return
        assert time.monotonic() < ends
        time.sleep(0.05)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])

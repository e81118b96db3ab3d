"""What the queue promises while Redis is killed, silent, full or emptied of scripts; nothing here is simulated."""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

import pytest
import redis
from embedded_queue import depth, stored_events

from sagittal.core.errors import Overloaded, Unavailable
from sagittal.core.jobs import JobState
from sagittal.process.embedded import EmbeddedValkey
from sagittal.queue.connection import check_server
from sagittal.queue.jobs import RedisJobQueue
from sagittal.queue.leases import RedisWorkerQueue
from sagittal.queue.protocol import LeaseLost
from sagittal.queue.settings import QueueSettings

MODEL = [("model", "1")]


@contextlib.asynccontextmanager
async def connected(settings: QueueSettings):
    jobs, worker = RedisJobQueue(settings), RedisWorkerQueue(settings, worker="worker")
    try:
        yield jobs, worker
    finally:
        worker.close()
        await jobs.close()


@pytest.fixture(params=["valkey", "redis"])
def server(request) -> Iterator[EmbeddedValkey]:
    """A server with an append-only file, on a socket of its own."""
    binary = request.getfixturevalue("redis_binary") if request.param == "redis" else None
    with (
        tempfile.TemporaryDirectory(prefix="sg-") as directory,  # tmp_path is too long for a unix socket
        EmbeddedValkey(directory, persist=True, binary=binary) as running,
    ):
        yield running


def kill(server: EmbeddedValkey) -> None:
    """Kills the server as a crash would."""
    os.kill(server.pid, signal.SIGKILL)
    server.stop()


async def test_a_killed_redis_loses_nothing_and_everyone_goes_on(server, new_job) -> None:
    settings = QueueSettings(url=server.url, operation_timeout=4.0)
    async with connected(settings) as (jobs, worker):
        ids = [(await jobs.submit(new_job(), b"accepted"))[0].job_id for _ in range(20)]
        lease = worker.lease(MODEL, block_seconds=0)
        worker.append(lease, [b"before"])
        kill(server)
        with pytest.raises(Unavailable):
            await jobs.ping()
        server.start()
        worker.append(lease, [b"after"])  # the lease and its token survived, and so did its connection's owner
        worker.settle(lease, b"done", JobState.COMPLETED)
        events = await stored_events(jobs, lease.job.job_id)
        assert [event.payload for event in events] == [b"accepted", b"before", b"after", b"done"]
        seen = [lease.job.job_id]
        while following := worker.lease(MODEL, block_seconds=0):
            worker.settle(following, b"done", JobState.COMPLETED)
            seen.append(following.job.job_id)
        assert seen == ids
        assert await depth(jobs) == {}


async def test_a_watcher_resumes_after_a_restart_and_misses_and_repeats_nothing(server, new_job) -> None:
    settings = QueueSettings(url=server.url, operation_timeout=4.0)
    async with connected(settings) as (jobs, worker):
        job, _ = await jobs.submit(new_job(), b"accepted")
        lease = worker.lease(MODEL, block_seconds=0)
        seen: list[int] = []

        async def watch() -> None:
            while True:
                with contextlib.suppress(Unavailable):
                    async for event in jobs.events(job.job_id, len(seen)):
                        seen.append(event.sequence)  # noqa: PERF401 - what came before a failure counts
                    return

        watching = asyncio.create_task(watch())
        for number in range(30):
            await asyncio.to_thread(worker.append, lease, [b"%d" % number])
            if number % 10 == 5:
                await asyncio.to_thread(kill, server)
                await asyncio.to_thread(server.start)
        await asyncio.to_thread(worker.settle, lease, b"done", JobState.COMPLETED)
        await asyncio.wait_for(watching, 30)
        assert seen == list(range(1, 33))


async def test_a_redis_that_forgot_its_scripts_is_sent_them(queue_settings, new_job) -> None:
    async with connected(queue_settings) as (jobs, worker):
        await jobs.submit(new_job(), b"accepted")
        with redis.Redis.from_url(queue_settings.url) as client:
            client.script_flush()
        assert worker.lease(MODEL, block_seconds=0) is not None
        await jobs.submit(new_job(), b"accepted")


async def test_nobody_there_is_said_in_bounded_time(tmp_path, new_job) -> None:
    settings = QueueSettings(url=f"unix://{tmp_path}/nobody.sock", operation_timeout=1.0, retry_after=3.0)
    async with connected(settings) as (jobs, worker):
        for call in (jobs.ping(), jobs.submit(new_job(), b""), jobs.get("x"), jobs.backlog(), stored_events(jobs, "x")):
            with pytest.raises(Unavailable) as caught:
                await asyncio.wait_for(call, 20)
            assert caught.value.retry_after == 3.0
        with pytest.raises(Unavailable):
            worker.lease(MODEL, block_seconds=0)
        with pytest.raises(Unavailable):
            worker.ping()


async def test_a_server_that_never_answers_is_given_up_in_bounded_time(new_job) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        settings = QueueSettings(url=url, operation_timeout=1.0)
        async with connected(settings) as (jobs, worker):
            began = time.monotonic()
            with pytest.raises(Unavailable):
                await jobs.submit(new_job(), b"")
            with pytest.raises(Unavailable):
                await asyncio.to_thread(worker.ping)
            assert time.monotonic() - began < 15  # two operations of one second, on a machine with much to do


async def test_an_operation_that_is_cancelled_leaves_the_connections_usable(queue_settings, new_job) -> None:
    async with connected(queue_settings.model_copy(update={"max_connections": 2})) as (jobs, _):
        job, _ = await jobs.submit(new_job(), b"accepted")
        for turns in range(60):
            task = asyncio.create_task(jobs.get(job.job_id))
            for _ in range(turns % 12):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                assert (await task).job_id == job.job_id
        assert (await jobs.get(job.job_id)).job_id == job.job_id
        assert [event.payload for event in await stored_events(jobs, job.job_id)] == [b"accepted"]


class LossyProxy:
    """Passes everything to a server, but breaks the connection instead of passing an answer when told to."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.lose_next = threading.Event()
        self.lose_all = threading.Event()
        self.lost = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if answers and (self.lose_next.is_set() or self.lose_all.is_set()):
                    self.lose_next.clear()
                    self.lost += 1
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def proxied() -> Iterator[tuple[LossyProxy, int]]:
    port = free_port()
    with EmbeddedValkey(port=port):
        proxy = LossyProxy(port)
        yield proxy, port
        proxy.close()


async def test_every_answer_may_be_lost_and_everything_still_happens_once(proxied, new_job) -> None:
    proxy, _ = proxied
    prefix = secrets.token_hex(4)
    settings = QueueSettings(url=f"redis://127.0.0.1:{proxy.port}", prefix=prefix, sweep_seconds=600)

    def lossy() -> None:
        proxy.lose_next.set()

    async with connected(settings) as (jobs, worker):
        await jobs.ping()
        worker.lease(MODEL, block_seconds=0)
        lossy()
        job, new = await jobs.submit(new_job(request_id="mine"), b"accepted")
        assert new
        lossy()
        lease = worker.lease(MODEL, block_seconds=0)
        assert (lease.job.job_id, lease.job.attempt) == (job.job_id, 1)
        for event in (b"one", b"two"):
            lossy()
            worker.append(lease, [event])
        lossy()
        worker.checkpoint(lease, b"state")
        lossy()
        assert worker.heartbeat([lease]) == ([], [])
        lossy()
        worker.release(lease)
        again = worker.lease(MODEL, block_seconds=0)
        assert (again.job.attempt, again.checkpoint) == (1, b"state")
        lossy()
        worker.settle(again, b"done", JobState.COMPLETED)
        lossy()
        events = await stored_events(jobs, job.job_id)
        assert [event.payload for event in events] == [b"accepted", b"one", b"two", b"done"]
        lossy()
        await jobs.delete(job.job_id)
        assert await depth(jobs) == {}
        assert proxy.lost == 10


async def test_an_append_that_failed_may_be_repeated_and_counts_once(proxied, new_job) -> None:
    proxy, _ = proxied
    settings = QueueSettings(url=f"redis://127.0.0.1:{proxy.port}", prefix=secrets.token_hex(4), operation_timeout=2.0)
    async with connected(settings) as (jobs, worker):
        job, _ = await jobs.submit(new_job(), b"accepted")
        lease = worker.lease(MODEL, block_seconds=0)
        proxy.lose_all.set()
        with pytest.raises(Unavailable):
            worker.append(lease, [b"one"])  # it was written, but nobody heard
        proxy.lose_all.clear()
        worker.append(lease, [b"one"])
        worker.append(lease, [b"one"])  # another event, that happens to be equal
        events = await stored_events(jobs, job.job_id)
        assert [event.payload for event in events] == [b"accepted", b"one", b"one"]


async def test_a_full_redis_refuses_new_jobs_and_lets_running_ones_finish(server, new_job) -> None:
    settings = QueueSettings(url=server.url)
    async with connected(settings) as (jobs, worker):
        job, _ = await jobs.submit(new_job(), b"accepted")
        lease = worker.lease(MODEL, block_seconds=0)
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory", 1)
            with pytest.raises(Overloaded, match="maxmemory") as caught:
                await jobs.submit(new_job(), b"accepted")
            assert caught.value.retry_after
            worker.append(lease, [b"one"])
            assert worker.heartbeat([lease]) == ([], [])
            worker.settle(lease, b"done", JobState.COMPLETED)
            assert len(await stored_events(jobs, job.job_id)) == 3
            client.config_set("maxmemory", 0)
        await jobs.submit(new_job(), b"accepted")


def test_a_server_that_would_lose_jobs_is_named_at_start(server, valkey_url) -> None:
    assert check_server(QueueSettings(url=server.url)) == []
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    [warning] = check_server(QueueSettings(url=server.url))
    assert "noeviction" in warning
    [warning] = check_server(QueueSettings(url=valkey_url))
    assert "appendonly" in warning


async def test_a_stopped_worker_that_wakes_up_writes_nothing(queue_settings, new_job) -> None:
    """The worker is another process, stopped for longer than its lease, then continued."""
    settings = queue_settings.model_copy(update={"sweep_seconds": 0.05})
    brief = settings.model_copy(update={"lease_seconds": 0.3, "heartbeat_seconds": 0.1})
    program = (
        "import sys; from sagittal.queue.leases import RedisWorkerQueue;"
        "from sagittal.queue.settings import QueueSettings;"
        "from sagittal.queue.protocol import LeaseLost;"
        "queue = RedisWorkerQueue(QueueSettings.model_validate_json(sys.argv[1]), worker='stopped');"
        "lease = queue.lease([('model', '1')], block_seconds=20); print('leased', flush=True); input();\n"
        "try: queue.append(lease, [b'stale'])\n"
        "except LeaseLost: print('lost', flush=True)\n"
    )
    async with connected(settings) as (jobs, worker):
        job, _ = await jobs.submit(new_job(), b"accepted")
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, brief.model_dump_json(),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            assert await child.stdout.readline() == b"leased\n"
            child.send_signal(signal.SIGSTOP)
            lease = await asyncio.to_thread(worker.lease, MODEL, block_seconds=20)
            worker.append(lease, [b"fresh"])
            child.send_signal(signal.SIGCONT)
            assert (await child.communicate(b"\n"))[0] == b"lost\n"
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        worker.settle(lease, b"done", JobState.COMPLETED)
        events = await stored_events(jobs, job.job_id)
        assert [event.payload for event in events] == [b"accepted", b"fresh", b"done"]


async def test_a_token_is_never_given_twice_even_if_redis_forgets_the_lease(server, new_job) -> None:
    """A Redis that comes back from before the lease must not make the old worker's token valid again."""
    settings = QueueSettings(url=server.url)
    async with connected(settings) as (jobs, worker):
        job, _ = await jobs.submit(new_job(), b"accepted")
        with redis.Redis.from_url(server.url) as client:
            key = f"{{sagittal}}:run:{job.job_id}"
            before = client.hgetall(key)
            old = worker.lease(MODEL, block_seconds=0)
            client.hset(key, mapping=before)  # as it was before the lease
            client.zadd("{sagittal}:ready:interactive:model@1", {job.job_id: float(before[b"tag"])})
        new = worker.lease(MODEL, block_seconds=0)
        assert new.token != old.token
        with pytest.raises(LeaseLost):
            worker.append(old, [b"stale"])

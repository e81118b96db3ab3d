"""Each error of Redis as the answer to each operation: it waits, refuses or fails as the table says, and then works."""

import asyncio
import contextlib
import inspect
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from embedded_queue import stored_events
from faulty_redis import OPERATIONS, FaultyRedis
from prometheus_client import CollectorRegistry
from redis_replies import SAMPLES
from structlog.testing import capture_logs

from sagittal.core.errors import (
    AlreadyExists,
    ArgumentRefused,
    FailedPrecondition,
    NotFound,
    QueueFailed,
    SagittalError,
    Unavailable,
)
from sagittal.core.jobs import JobState, Lease, NewJob
from sagittal.process.embedded import EmbeddedValkey
from sagittal.queue import connection
from sagittal.queue.batches import BatchState
from sagittal.queue.connection import check_server
from sagittal.queue.failures import REPLIES, UNKNOWN, Meaning, Reply
from sagittal.queue.jobs import RedisJobQueue
from sagittal.queue.leases import RedisWorkerQueue
from sagittal.queue.metrics import QueueMetrics
from sagittal.queue.notifications import wait_for_bells
from sagittal.queue.protocol import LeaseLost
from sagittal.queue.scripts import load_script
from sagittal.queue.settings import QueueSettings
from sagittal.registry.concept_files import ConceptFiles, ConceptStorage
from sagittal.registry.concept_sets import ConceptSets, StoredConceptSet, WorkerConceptSets
from sagittal.registry.protocol import Outcomes
from sagittal.registry.redis import RedisModelRegistry, RedisWorkerRegistry
from sagittal.v1 import concept_pb2, model_pb2

MODEL = model_pb2.Model(name="model", version="1")

#: Answers that show that an operation reached Redis.
ANSWERED = (NotFound, AlreadyExists, FailedPrecondition, LeaseLost)


@dataclass
class Sides:
    """Both sides of a queue and a registry behind a faulty Redis."""

    settings: QueueSettings
    registry: CollectorRegistry
    jobs: RedisJobQueue
    worker: RedisWorkerQueue
    models: RedisModelRegistry
    models_of_worker: RedisWorkerRegistry
    sets: ConceptSets
    sets_of_worker: WorkerConceptSets
    lease: Lease
    new_job: Callable[..., NewJob]

    def replies(self, reply: Reply) -> float:
        labels = {"reply": reply.name, "meaning": reply.meaning.value}
        return self.registry.get_sample_value("sagittal_redis_error_replies_total", labels) or 0.0


async def end_something(sides: Sides) -> None:
    await sides.jobs.submit(sides.new_job(deadline=time.time() - 1), b"accepted")
    await sides.jobs.sweep()


def a_set(name: str) -> StoredConceptSet:
    described = concept_pb2.ConceptSet(name=name, model="model", concepts=[concept_pb2.Concept(index=0)])
    return StoredConceptSet(description=described, weights="0" * 64 + ".safetensors", examples="1" * 64 + ".examples")


def rename(described: concept_pb2.ConceptSet) -> concept_pb2.ConceptSet:
    described.concepts[0].name = secrets.token_hex(4)
    return described


def wait_for_a_job(sides: Sides) -> None:
    """Asks to be woken when a job comes, and waits until Redis answers that none came."""
    with contextlib.closing(sides.worker.bell(["nobody@1"])) as bell:
        bell.ask(0.02)
        wait_for_bells([bell], 60)


Operation = Callable[[Sides], Any]

#: The service's operations, by what they send to Redis.
OF_THE_SERVICE: Mapping[str, Operation] = {
    "submit": lambda sides: sides.jobs.submit(sides.new_job(), b"accepted"),
    "attach": lambda sides: sides.jobs.attach("0" * 32, "0", b"part", tenant="default"),
    "get": lambda sides: sides.jobs.get("0" * 32),
    "read": lambda sides: stored_events(sides.jobs, "0" * 32),
    "request": lambda sides: sides.jobs.request_of("0" * 32),
    "cancel": lambda sides: sides.jobs.cancel("0" * 32, "requested"),
    "delete": lambda sides: sides.jobs.delete("0" * 32),
    "list": lambda sides: sides.jobs.list(limit=1, page_token=""),
    "backlog": lambda sides: sides.jobs.backlog(),
    "stored": lambda sides: sides.jobs.stored_bytes(),
    "sweep": lambda sides: sides.jobs.sweep(),
    "end": end_something,
    "costs": lambda sides: sides.jobs.costs("model", "1", "igos++"),
    "PING": lambda sides: sides.jobs.ping(),
    "SET": lambda sides: sides.models.epoch(),
    "GET": lambda sides: sides.models.epoch(),
    "registry_read": lambda sides: sides.models.models(),
    "registry_declare": lambda sides: sides.models.register(MODEL),
    "registry_remove": lambda sides: sides.models.unregister("nobody", "1"),
    "registry_wish": lambda sides: sides.models.wish("nobody", "1", "load"),
    "registry_canaries": lambda sides: sides.models.canaries(),
    "registry_canary": lambda sides: sides.models.set_canary("model", "1", None),
    "registry_quarantine": lambda sides: sides.models._redis.script(
        load_script("registry_quarantine"), "models", "nobody@1", "damaged"
    ),
    "batch_create": lambda sides: sides.jobs.batches.create("default", secrets.token_hex(4), b"spec", 1),
    "batch_get": lambda sides: sides.jobs.batches.get("default", "none"),
    "batch_list": lambda sides: sides.jobs.batches.list("default", limit=1, page_token=""),
    "batch_change": lambda sides: sides.jobs.batches.change("default", "none", BatchState.PAUSED),
    "batch_live": lambda sides: anext(sides.jobs.batches.live_jobs("default", "none"), None),
    "batch_items": lambda sides: sides.jobs.batches.items("default", "none", [], limit=1, page_token=""),
    "batch_fail": lambda sides: sides.jobs.batches.fail("default", "none", "key", b"event"),
    "batch_retry": lambda sides: sides.jobs.batches.retry("default", "none", []),
    "batch_delete": lambda sides: sides.jobs.batches.delete("default", "none"),
    "concepts_list": lambda sides: sides.sets.list("default", "", limit=1, page_token=""),
    "concepts_read": lambda sides: sides.sets.get("default", "model", "set"),
    "concepts_update": lambda sides: sides.sets.update("default", "model", "set", rename),
    "concepts_delete": lambda sides: sides.sets.delete("default", "model", "none"),
    "concepts_quarantine": lambda sides: sides.sets._set_aside("default", "model", "none", b"1"),
    "concepts_sweep": lambda sides: sides.sets.sweep(ConceptFiles(ConceptStorage())),
}

#: A worker's operations.
OF_A_WORKER: Mapping[str, Operation] = {
    "lease": lambda sides: sides.worker.lease([("nobody", "1")], block_seconds=0),
    "BLPOP": wait_for_a_job,
    "TTL": lambda sides: sides.worker._another_sweeps(),
    "EXISTS": lambda sides: sides.worker.has_work(["nobody@1"]),
    "heartbeat": lambda sides: sides.worker.heartbeat([sides.lease]),
    "append": lambda sides: sides.worker.append(sides.lease, [b"event"]),
    "checkpoint": lambda sides: sides.worker.checkpoint(sides.lease, b"state"),
    "settle": lambda sides: sides.worker.settle(sides.lease, b"done", JobState.COMPLETED),
    "release": lambda sides: sides.worker.release(sides.lease),
    "attachment": lambda sides: sides.worker.attachment("0" * 32, "0"),
    "PING": lambda sides: sides.worker.ping(),
    "INFO": lambda sides: check_server(sides.settings),
    "registry_changes": lambda sides: sides.models_of_worker.changes(),
    "registry_read": lambda sides: sides.models_of_worker.registrations(),
    "registry_declare": lambda sides: sides.models_of_worker.declare(MODEL),
    "registry_publish": lambda sides: sides.models_of_worker.publish(MODEL),
    "registry_outcomes": lambda sides: sides.models_of_worker.report("worker", 1, Outcomes(name="model", version="1")),
    "registry_announce": lambda sides: sides.models_of_worker.announce("worker", [], ttl=1),
    "concepts_read": lambda sides: sides.sets_of_worker.get("default", "model", "set"),
    "concepts_reserve": lambda sides: sides.sets_of_worker.write_files({}),
    "concepts_save": lambda sides: sides.sets_of_worker.save(sides.lease, a_set("other"), 1, replace=False),
    "registry_withdraw": lambda sides: sides.models_of_worker.withdraw("worker"),
}

#: What a worker gets instead: its work is accepted, so it waits for room; a value of its own is a bug.
OF_ACCEPTED_WORK: Mapping[str, type[SagittalError]] = {"OOM": Unavailable, "ARGUMENT": QueueFailed}

#: Subscriptions answer later than they are sent: their tasks and threads are tested as a whole.
ELSEWHERE = {"SUBSCRIBE"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def faulty() -> Iterator[FaultyRedis]:
    port = free_port()
    with EmbeddedValkey(port=port):
        proxy = FaultyRedis(port)
        yield proxy
        proxy.close()


@pytest.fixture
async def sides(faulty: FaultyRedis, new_job, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sides]:
    monkeypatch.setattr(connection, "FIRST_PAUSE", 0.001)
    settings = QueueSettings(url=faulty.url, prefix=secrets.token_hex(4), sweep_seconds=1e9)
    registry = CollectorRegistry()
    observer = QueueMetrics(registry)
    jobs = RedisJobQueue(settings, observer)
    worker = RedisWorkerQueue(settings, worker="worker", observer=observer)
    models, of_worker = RedisModelRegistry(settings, observer), RedisWorkerRegistry(settings, observer)
    sets = ConceptSets(settings, max_tenant_bytes=2**30, observer=observer)
    files = ConceptFiles(ConceptStorage(url=f"memory://{settings.prefix}"))
    sets_of_worker = WorkerConceptSets(settings, files, max_tenant_bytes=2**30, observer=observer)
    stored = a_set("set")
    await asyncio.to_thread(sets_of_worker.write_files, {stored.weights: b"", stored.examples: b""})
    assert await asyncio.to_thread(sets_of_worker.import_set, "default", stored, 0)
    await jobs.submit(new_job(), b"accepted")
    lease = await asyncio.to_thread(worker.lease, [("model", "1")], block_seconds=0)
    assert lease is not None
    stale = replace(lease, job=replace(lease.job, job_id="0" * 32))
    yield Sides(settings, registry, jobs, worker, models, of_worker, sets, sets_of_worker, stale, new_job)
    sets_of_worker.close()
    await sets.close()
    worker.close()
    of_worker.close()
    await models.close()
    await jobs.close()


async def outcome(operation: Operation, sides: Sides, *, on_a_thread: bool) -> SagittalError | None:
    """Returns how Redis failed an operation; None if it answered."""
    try:
        answer = await asyncio.to_thread(operation, sides) if on_a_thread else operation(sides)
        if inspect.isawaitable(answer):
            await answer
    except ANSWERED:
        return None
    except SagittalError as error:
        return error
    return None


@pytest.mark.parametrize("reply", [*REPLIES, UNKNOWN], ids=lambda reply: reply.name)
async def test_each_reply_means_the_same_to_each_operation(reply: Reply, faulty: FaultyRedis, sides: Sides) -> None:
    said = SAMPLES[reply.name][0]
    for table, on_a_thread in ((OF_THE_SERVICE, False), (OF_A_WORKER, True)):
        for name, operation in table.items():
            before = sides.replies(reply)
            faulty.arm(said, [name])
            with capture_logs() as logged:
                failed = await outcome(operation, sides, on_a_thread=on_a_thread)
            where = f"{said!r} as the answer to {name}"
            assert faulty.hits[name] == 1, where
            expected = OF_ACCEPTED_WORK.get(reply.name, reply.error) if on_a_thread else reply.error
            is_bug = expected in (QueueFailed, ArgumentRefused)
            if name == "end" and is_bug:
                assert failed is None, where  # it holds up the end of no other job
            elif reply.meaning is Meaning.WAIT:
                assert failed is None, where
            else:
                assert type(failed) is expected, where
                assert (failed.retry_after is None) == is_bug, where
            counted = sides.replies(reply) - before
            assert counted == (0 if name == "INFO" or (reply.name == "NOSCRIPT" and name.islower()) else 1), where
            if expected is QueueFailed:
                assert any(entry.get("error") and entry["log_level"] == "error" for entry in logged), where
            assert await outcome(operation, sides, on_a_thread=on_a_thread) is None, where


@pytest.mark.parametrize("reply", [*REPLIES, UNKNOWN], ids=lambda reply: reply.name)
async def test_a_server_that_is_no_longer_the_primary_is_left(reply: Reply, faulty: FaultyRedis, sides: Sides) -> None:
    """Its address is resolved again, which names another server after a failover."""
    for table, on_a_thread in ((OF_THE_SERVICE, False), (OF_A_WORKER, True)):
        await outcome(table["PING"], sides, on_a_thread=on_a_thread)
        before = faulty.connections
        faulty.arm(SAMPLES[reply.name][0], ["PING"])
        await outcome(table["PING"], sides, on_a_thread=on_a_thread)
        await outcome(table["PING"], sides, on_a_thread=on_a_thread)
        # redis-py leaves a connection whose credentials or room are refused by itself.
        assert (faulty.connections > before) == (reply.reconnects or reply.name in CONNECTION_ERRORS), reply.name


@pytest.mark.parametrize("reply", [each for each in REPLIES if each.reconnects], ids=lambda reply: reply.name)
async def test_a_demoted_server_is_named_if_replicas_must_follow(
    reply: Reply, faulty: FaultyRedis, sides: Sides
) -> None:
    """The reply of WAIT, which comes next, is not read from the connection that was left."""
    settings = sides.settings.model_copy(update={"synchronous_replicas": 1, "operation_timeout": 60.0})
    jobs, worker = RedisJobQueue(settings), RedisWorkerQueue(settings, worker="worker", attempts=1)
    faulty.arm(SAMPLES[reply.name][0], ["backlog", "attachment"], times=100)
    with pytest.raises(Unavailable, match=reply.name):
        await jobs.backlog()
    with pytest.raises(Unavailable, match=reply.name):
        await asyncio.to_thread(worker.attachment, "0" * 32, "0")
    faulty.disarm()
    worker.close()
    await jobs.close()


#: Replies that redis-py takes for the end of the connection.
CONNECTION_ERRORS = {"LOADING", "MAXCLIENTS", "WRONGPASS", "NOAUTH", "NOPASSWORD"}


def test_every_operation_is_in_a_table() -> None:
    assert OF_THE_SERVICE.keys() | OF_A_WORKER.keys() | ELSEWHERE == OPERATIONS

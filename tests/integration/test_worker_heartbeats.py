"""Leases outlive long and greedy steps of a model, and a cancellation reaches a running worker within its step."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import redis
import torch
from known_models import LEFT, image
from prometheus_client import CollectorRegistry

from sagittal.core.jobs import JobState, NewJob
from sagittal.core.tensors import tensor_of
from sagittal.engine import Engine
from sagittal.queue.jobs import RedisJobQueue
from sagittal.queue.leases import RedisWorkerQueue
from sagittal.queue.settings import QueueSettings
from sagittal.registry.redis import RedisWorkerRegistry
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import method_pb2, tensor_pb2
from sagittal.worker.concepts.store import ConceptSettings, connect_concept_store
from sagittal.worker.hosting.reconciler import Reconciler
from sagittal.worker.metrics import WorkerMetrics
from sagittal.worker.outcomes import OutcomeReports
from sagittal.worker.process import Worker
from sagittal.worker.settings import WorkerSettings

MODEL = """
[[models]]
name = "left"
source = { kind = "python", factory = "known_models:looks_at_left" }
labels = ["nothing", "left"]
preprocessing = { input_size = 56, fit = "squash", mean = [0.0, 0.0, 0.0], std = [1.0, 1.0, 1.0] }
"""

#: Longest wait for anything here, in seconds.
PATIENCE = 60.0


@contextmanager
def working(path: Path, settings: QueueSettings) -> Iterator[tuple[Worker, CollectorRegistry]]:
    """Runs a worker on a Redis queue; gives it and its metrics."""
    registry = CollectorRegistry()
    metrics = WorkerMetrics.create(registry)
    queue = RedisWorkerQueue(settings, worker="w")
    announced = RedisWorkerRegistry(settings)
    hosted = Reconciler(path, announced, metrics, worker="w", device=torch.device("cpu"))
    worker = Worker(
        WorkerSettings(models_file=path, worker_name="w", batch_size=16, drain=0.0, queue=settings),
        queue,
        hosted,
        metrics,
        concepts=connect_concept_store(ConceptSettings(), settings),
        outcomes=OutcomeReports(announced, metrics, "w"),
    )
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield worker, registry
    finally:
        worker.drain()
        thread.join()
        queue.close()
        announced.close()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    path = tmp_path / "models.toml"
    path.write_text(MODEL)
    return path


@pytest.fixture
def job(new_job: Callable[..., NewJob]) -> NewJob:
    """A job of very many steps."""
    values = tensor_of(image(LEFT).numpy(), tensor_pb2.DATA_TYPE_FLOAT32)
    method = method_pb2.Method(igos_plus_plus={"mask_size": 7, "iterations": 1000, "points": 20, "tolerance": 0.0})
    spec = pb.ExplanationSpec(model="left", target=pb.Target(index=1), method=method)
    picture = tensor_pb2.Image(model_input=values).SerializeToString()
    return new_job(model="left", request=spec.SerializeToString(), images={"image": picture})


ACCEPTED = pb.ExplanationEvent(accepted=pb.Accepted()).SerializeToString()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> "Steps":
    steps = Steps()
    monkeypatch.setattr(Engine, "step", steps.instead_of(Engine.step))
    return steps


class Steps:
    """Holds one step of the engine until the cancellation of what it runs has come, and counts the steps after it."""

    def __init__(self) -> None:
        self.armed = threading.Event()
        self.held = threading.Event()
        self.heard = threading.Event()
        self.after = 0

    def instead_of(self, step: Callable[[Engine], bool]) -> Callable[[Engine], bool]:
        def held_step(engine: Engine) -> bool:
            if self.heard.is_set():
                before = engine.counters.rows
                did = step(engine)
                self.after += engine.counters.rows > before
                return did
            did = step(engine)
            if self.armed.is_set() and engine._tasks:
                self.held.set()
                until = time.monotonic() + PATIENCE
                while not engine._tasks[0].cancelled and time.monotonic() < until:
                    time.sleep(0.002)
                self.heard.set()
            return did

        return held_step


async def test_a_cancellation_reaches_the_worker_within_the_step_that_runs(queue_settings, models, job, steps) -> None:
    """Heartbeats are ten minutes apart, so that it is not by them."""
    settings = queue_settings.model_copy(update={"heartbeat_seconds": 600.0, "lease_seconds": 1200.0})
    jobs = RedisJobQueue(settings)
    with working(models, settings) as (_, metrics):
        await jobs.submit(job, ACCEPTED)
        steps.armed.set()
        assert await asyncio.to_thread(steps.held.wait, PATIENCE)
        await jobs.cancel(job.job_id, "caller went away")
        last = [stored async for stored in jobs.events(job.job_id)][-1]
        assert pb.ExplanationEvent.FromString(last.payload).cancelled.reason == "caller went away"
        assert steps.after == 0
        assert metrics.get_sample_value("sagittal_cancel_to_idle_seconds_count") == 1
        assert metrics.get_sample_value("sagittal_cancel_to_idle_seconds_sum") < PATIENCE
    assert (await jobs.get(job.job_id)).state is JobState.CANCELLED
    await jobs.close()


async def test_without_word_the_next_heartbeat_brings_a_cancellation(
    queue_settings, models, job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deaf(queue: RedisWorkerQueue, *, block_seconds: float) -> bool:
        time.sleep(block_seconds)
        return False

    monkeypatch.setattr(RedisWorkerQueue, "listen", deaf)
    settings = queue_settings.model_copy(update={"heartbeat_seconds": 0.2})
    jobs = RedisJobQueue(settings)
    with working(models, settings):
        await jobs.submit(job, ACCEPTED)
        events = jobs.events(job.job_id, 1)
        await anext(events)
        await jobs.cancel(job.job_id, "requested")
        async with asyncio.timeout(PATIENCE):
            last = [stored async for stored in events][-1]
        assert pb.ExplanationEvent.FromString(last.payload).HasField("cancelled")
    await jobs.close()


async def test_a_worker_fails_what_a_clock_jump_made_overdue(queue_settings, models, job) -> None:
    """The queue would, if the worker were lost: both end it alike."""
    settings = queue_settings.model_copy(update={"heartbeat_seconds": 0.1})
    job = replace(job, deadline=time.time() + 1000)
    jobs = RedisJobQueue(settings)
    with working(models, settings):
        await jobs.submit(job, ACCEPTED)
        events = jobs.events(job.job_id, 1)
        await anext(events)
        with redis.Redis.from_url(settings.url) as client:
            client.hset(f"{{{settings.prefix}}}:run:{job.job_id}", "deadline", repr(job.deadline - 3600))
        async with asyncio.timeout(PATIENCE):
            last = [stored async for stored in events][-1]
        assert "deadline passed" in pb.ExplanationEvent.FromString(last.payload).failed.message
    ended = await jobs.get(job.job_id)
    assert (ended.state, ended.reason) == (JobState.FAILED, "DEADLINE_PASSED")
    await jobs.close()


def greedy(seconds: float) -> None:
    """Computes in Python, so that no other thread runs but where the interpreter takes turns."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(number * number for number in range(200))


@pytest.mark.parametrize("take_time", [greedy, time.sleep], ids=["greedy", "long"])
async def test_a_step_longer_than_a_lease_does_not_lose_it(
    queue_settings, models, job, monkeypatch: pytest.MonkeyPatch, take_time: Callable[[float], None]
) -> None:
    settings = queue_settings.model_copy(update={"heartbeat_seconds": 0.2, "lease_seconds": 1.2, "sweep_seconds": 0.1})
    step, longest = Engine.step, 2.4

    def long_step(engine: Engine) -> bool:
        did = step(engine)
        if did:
            take_time(longest)
        return did

    monkeypatch.setattr(Engine, "step", long_step)
    jobs = RedisJobQueue(settings)
    with working(models, settings) as (_, metrics):
        await jobs.submit(job, ACCEPTED)
        stood_still, until = 0.0, time.monotonic() + 1.5 * longest
        while (now := time.monotonic()) < until:
            await asyncio.sleep(0.05)
            stood_still = max(stood_still, time.monotonic() - now)
        if stood_still > settings.lease_seconds / 2:
            pytest.skip("this machine stood still for as long as a lease")
        running = await jobs.get(job.job_id)
        assert (running.state, running.attempt) == (JobState.RUNNING, 1)
        assert metrics.get_sample_value("sagittal_leases_lost_total") == 0
        await jobs.cancel(job.job_id, "requested")
    await jobs.close()


async def test_a_worker_that_cannot_write_ends_and_its_jobs_go_to_another(
    queue_settings, models, job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a worker would keep the leases of jobs that can never end."""
    settings = queue_settings.model_copy(update={"heartbeat_seconds": 0.2, "lease_seconds": 2.0, "sweep_seconds": 0.1})

    def broken(*_: object) -> None:
        raise RuntimeError("a bug by construction")

    jobs = RedisJobQueue(settings)
    await jobs.submit(job, ACCEPTED)
    with monkeypatch.context() as patched:
        patched.setattr(RedisWorkerQueue, "append", broken)
        with working(models, settings) as (worker, _):
            assert await asyncio.to_thread(worker._draining.wait, PATIENCE)
        assert worker.crashed == "event-writer"
        assert (await jobs.get(job.job_id)).attempt == 1
    with working(models, settings.model_copy(update={"lease_seconds": 600.0})):
        async for _ in jobs.events(job.job_id, 1):
            break  # the second attempt has started
        assert (await jobs.get(job.job_id)).attempt == 2
        await jobs.cancel(job.job_id, "requested")
        async with asyncio.timeout(PATIENCE):
            last = [stored async for stored in jobs.events(job.job_id)][-1]
        assert pb.ExplanationEvent.FromString(last.payload).HasField("cancelled")
    await jobs.close()

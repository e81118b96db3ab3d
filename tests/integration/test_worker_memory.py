"""A worker that has room for one model serves two, and remembers what it evaluated for whoever asks next."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from embedded_queue import Queue, own_settings
from known_models import LEFT, image
from prometheus_client import CollectorRegistry

from sagittal.core.jobs import NewJob
from sagittal.core.tensors import tensor_of
from sagittal.registry.redis import RedisWorkerRegistry
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import method_pb2, tensor_pb2
from sagittal.worker.concepts.store import connect_concept_store
from sagittal.worker.hosting.reconciler import Reconciler
from sagittal.worker.metrics import WorkerMetrics
from sagittal.worker.outcomes import OutcomeReports
from sagittal.worker.process import Worker
from sagittal.worker.settings import WorkerSettings

MODEL = """
[[models]]
name = "{name}"
source = {{ kind = "python", factory = "known_models:looks_at_left" }}
labels = ["nothing", "left"]
preprocessing = {{ input_size = 56, fit = "squash", mean = [0.0, 0.0, 0.0], std = [1.0, 1.0, 1.0] }}
"""


@pytest.fixture
async def queue() -> AsyncIterator[Queue]:
    async with Queue(own_settings(heartbeat_seconds=0.05, sweep_seconds=0.05)) as queue:
        yield queue


@contextmanager
def working(
    path: Path, queue: Queue, *, memo_mib: int = 0, counted: CollectorRegistry | None = None
) -> Iterator[Reconciler]:
    """Runs a worker with room for one model."""
    settings = WorkerSettings(models_file=path, worker_name="w", drain=5.0, queue=queue.settings)
    metrics, cpu = WorkerMetrics.create(counted or CollectorRegistry()), torch.device("cpu")
    registry = RedisWorkerRegistry(queue.settings)
    hosted = Reconciler(path, registry, metrics, worker="w", device=cpu, memo_mib=memo_mib)
    hosted._bound = 1  # the models of tests are smaller than the unit of the setting
    worker = Worker(
        settings,
        queue.worker("w"),
        hosted,
        metrics,
        concepts=connect_concept_store(settings.concepts, settings.queue),
        outcomes=OutcomeReports(registry, metrics, "w"),
    )
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield hosted
    finally:
        worker.drain()
        thread.join()
        registry.close()


def job_for(model: str, make_job: Callable[..., NewJob]) -> NewJob:
    values = tensor_of(image(LEFT).numpy(), tensor_pb2.DATA_TYPE_FLOAT32)
    method = method_pb2.Method(occlusion={})
    spec = pb.ExplanationSpec(model=model, target=pb.Target(index=1), method=method)
    picture = tensor_pb2.Image(model_input=values).SerializeToString()
    return make_job(model=model, request=spec.SerializeToString(), images={"image": picture})


@pytest.mark.parametrize("order", ["abab", "aabb"])
async def test_jobs_for_two_models_are_all_done_with_room_for_one(
    tmp_path: Path, queue: Queue, new_job: Callable[..., NewJob], order: str
) -> None:
    torch.set_num_threads(1)
    path = tmp_path / "models.toml"
    path.write_text(MODEL.format(name="a") + MODEL.format(name="b"))
    accepted = pb.ExplanationEvent(accepted=pb.Accepted()).SerializeToString()
    jobs = [job_for(model, new_job) for model in order]
    for job in jobs:
        await queue.jobs.submit(job, accepted)
    with working(path, queue) as models:
        for job in jobs:
            events = [pb.ExplanationEvent.FromString(stored.payload) async for stored in queue.jobs.events(job.job_id)]
            assert events[-1].WhichOneof("event") == "completed"
            assert sum(event.HasField("started") for event in events) == 1, "waiting for room is no attempt"
        assert len(models.ready()) == 1


@pytest.mark.parametrize("memo_mib", [0, 1])
async def test_a_job_on_the_same_picture_is_answered_from_memory_and_says_so(
    tmp_path: Path, queue: Queue, new_job: Callable[..., NewJob], memo_mib: int
) -> None:
    torch.set_num_threads(1)
    path, counted = tmp_path / "models.toml", CollectorRegistry()
    path.write_text(MODEL.format(name="a"))
    accepted, completed, masks = pb.ExplanationEvent(accepted=pb.Accepted()).SerializeToString(), [], []
    with working(path, queue, memo_mib=memo_mib, counted=counted):
        for job in (job_for("a", new_job), job_for("a", new_job)):
            await queue.jobs.submit(job, accepted)
            events = [pb.ExplanationEvent.FromString(stored.payload) async for stored in queue.jobs.events(job.job_id)]
            completed.append(events[-1].completed)
            masks.append([event.mask for event in events if event.HasField("mask") and event.mask.final])
    first, second = completed
    spared = second.evaluations if memo_mib else 0
    assert (first.cache_hits, second.cache_hits) == (0, spared)
    assert second.evaluations == first.evaluations > 0
    assert masks[0] == masks[1]
    labels = {"model": "a", "method": job.method}
    assert counted.get_sample_value("sagittal_remembered_evaluations_total", labels) == spared
    forward = counted.get_sample_value("sagittal_evaluations_total", labels | {"kind": "forward"})
    assert forward == first.evaluations + second.evaluations - spared

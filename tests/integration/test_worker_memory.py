"""A worker that has room for one model serves two."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from known_models import LEFT, image
from prometheus_client import CollectorRegistry

from sagittal.core.jobs import NewJob
from sagittal.core.tensors import tensor_of
from sagittal.runtime.memory_queue import MemoryQueue
from sagittal.runtime.memory_registry import MemoryRegistry
from sagittal.runtime.settings import QueueSettings
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import method_pb2, tensor_pb2
from sagittal.worker.metrics import WorkerMetrics
from sagittal.worker.models import HostedModels
from sagittal.worker.settings import WorkerSettings
from sagittal.worker.worker import Worker

MODEL = """
[[models]]
name = "{name}"
source = {{ kind = "python", factory = "known_models:looks_at_left" }}
labels = ["nothing", "left"]
preprocessing = {{ input_size = 56, fit = "squash", mean = [0.0, 0.0, 0.0], std = [1.0, 1.0, 1.0] }}
"""


@contextmanager
def working(path: Path, queue: MemoryQueue) -> Iterator[HostedModels]:
    """Runs a worker with room for one model."""
    settings = WorkerSettings(models_file=path, worker_name="w", drain=5.0, queue=QueueSettings())
    metrics = WorkerMetrics.create(CollectorRegistry())
    hosted = HostedModels(path, MemoryRegistry().workers, metrics, worker="w", device=torch.device("cpu"))
    hosted._bound = 1  # the models of tests are smaller than the unit of the setting
    worker = Worker(settings, queue.worker("w"), hosted, metrics)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield hosted
    finally:
        worker.drain()
        thread.join()


def job_for(model: str, make_job: Callable[..., NewJob]) -> NewJob:
    values = tensor_of(image(LEFT).numpy(), tensor_pb2.DATA_TYPE_FLOAT32)
    method = method_pb2.Method(occlusion={})
    spec = pb.ExplanationSpec(model=model, target=pb.Target(index=1), method=method)
    picture = tensor_pb2.Image(model_input=values).SerializeToString()
    return make_job(model=model, request=spec.SerializeToString(), images={"image": picture})


@pytest.mark.parametrize("order", ["abab", "aabb"])
async def test_jobs_for_two_models_are_all_done_with_room_for_one(
    tmp_path: Path, new_job: Callable[..., NewJob], order: str
) -> None:
    torch.set_num_threads(1)
    path = tmp_path / "models.toml"
    path.write_text(MODEL.format(name="a") + MODEL.format(name="b"))
    queue = MemoryQueue(QueueSettings(heartbeat_seconds=0.05, sweep_seconds=0.05))
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

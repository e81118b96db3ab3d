"""A job of a model that no worker can load fails at once, and the worker goes on with the others."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from embedded_queue import Queue, own_settings
from google.rpc import status_pb2
from known_models import LEFT, image
from prometheus_client import CollectorRegistry

from sagittal.core.errors import from_status
from sagittal.core.jobs import NewJob
from sagittal.core.tensors import tensor_of
from sagittal.registry.protocol import WorkerRegistry
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import method_pb2, tensor_pb2
from sagittal.worker.concepts.store import connect_concept_store
from sagittal.worker.hosting.reconciler import Reconciler
from sagittal.worker.metrics import WorkerMetrics
from sagittal.worker.outcomes import OutcomeReports
from sagittal.worker.process import Worker
from sagittal.worker.settings import WorkerSettings

MODELS = """
[[models]]
name = "broken"
source = { kind = "torchvision", model = "no-such-model" }

[[models]]
name = "left"
source = { kind = "python", factory = "known_models:looks_at_left" }
preprocessing = { input_size = 56, fit = "squash", mean = [0.0, 0.0, 0.0], std = [1.0, 1.0, 1.0] }
"""


def job_for(model: str, make_job: Callable[..., NewJob]) -> NewJob:
    values = tensor_of(image(LEFT).numpy(), tensor_pb2.DATA_TYPE_FLOAT32)
    method = method_pb2.Method(occlusion={})
    spec = pb.ExplanationSpec(model=model, target=pb.Target(index=1), method=method)
    picture = tensor_pb2.Image(model_input=values).SerializeToString()
    return make_job(model=model, request=spec.SerializeToString(), images={"image": picture})


async def test_a_queued_job_of_a_model_that_cannot_be_loaded_fails_fast_and_others_run(
    tmp_path: Path, worker_registry: WorkerRegistry, new_job: Callable[..., NewJob]
) -> None:
    pytest.importorskip("torchvision")
    torch.set_num_threads(1)
    path = tmp_path / "models.toml"
    path.write_text(MODELS)
    queue = Queue(own_settings(heartbeat_seconds=0.05, sweep_seconds=0.05))
    settings = WorkerSettings(models_file=path, worker_name="w", drain=5.0, announce_seconds=0.2)
    metrics = WorkerMetrics.create(CollectorRegistry())
    hosted = Reconciler(path, worker_registry, metrics, worker="w", device=torch.device("cpu"))
    worker = Worker(
        settings,
        queue.worker("w"),
        hosted,
        metrics,
        concepts=connect_concept_store(settings.concepts, settings.queue),
        outcomes=OutcomeReports(worker_registry, metrics, "w"),
    )
    jobs = [job_for(model, new_job) for model in ("broken", "left")]
    for job in jobs:
        await queue.jobs.submit(job, pb.ExplanationEvent(accepted=pb.Accepted()).SerializeToString())
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        ends = []
        for job in jobs:
            events = [pb.ExplanationEvent.FromString(stored.payload) async for stored in queue.jobs.events(job.job_id)]
            ends.append(events[-1])
    finally:
        worker.drain()
        thread.join()
        await queue.close()
    failed, completed = ends
    assert completed.WhichOneof("event") == "completed"
    error = from_status(status_pb2.Status.FromString(failed.failed.SerializeToString()))
    assert error.reason == "MODEL_FAILED"
    assert "no-such-model" in error.message

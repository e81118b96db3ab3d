"""Jobs that a worker releases half-way continue at another, budgets and sums included."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from embedded_queue import Queue, own_settings
from known_models import LEFT, image
from prometheus_client import CollectorRegistry

from sagittal.core.jobs import NewJob
from sagittal.core.tensors import tensor_of
from sagittal.explain import events
from sagittal.registry.protocol import WorkerRegistry
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import method_pb2, tensor_pb2
from sagittal.worker.concepts.store import connect_concept_store
from sagittal.worker.execution.run import JobRun
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

SPECS: dict[str, dict[str, Any]] = {
    "igos++": {"method": {"igos_plus_plus": {"mask_size": 7, "iterations": 24, "points": 1, "levels": 0}}},
    "igos++ within a budget": {
        "method": {"igos_plus_plus": {"mask_size": 7, "iterations": 24, "points": 1, "levels": 0}},
        "max_evaluations": 60,
    },
    "mse": {"method": {"minimal_sufficient_explanations": {"grid": 7}}},
    "sag within a budget": {"method": {"structured_attention_graph": {"grid": 7}}, "max_evaluations": 250},
}


@dataclass
class Site:
    """A queue with workers that come and go."""

    models: Path
    make_job: Callable[..., NewJob]
    queue: Queue
    registry: WorkerRegistry

    @contextmanager
    def worker(self, name: str) -> Iterator[Worker]:
        """Runs a worker until the context ends; it releases the jobs that it has not finished."""
        settings = WorkerSettings(
            models_file=self.models, worker_name=name, batch_size=16, drain=0.0, checkpoint_seconds=0.0
        )
        metrics = WorkerMetrics.create(CollectorRegistry())
        hosted = Reconciler(self.models, self.registry, metrics, worker=name, device=torch.device("cpu"))
        worker = Worker(
            settings,
            self.queue.worker(name),
            hosted,
            metrics,
            concepts=connect_concept_store(settings.concepts, settings.queue),
            outcomes=OutcomeReports(self.registry, metrics, name),
        )
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            yield worker
        finally:
            worker.drain()
            thread.join()

    async def submit(self, fields: dict[str, Any]) -> str:
        """Queues an explanation and returns its identifier."""
        values = tensor_of(image(LEFT).numpy(), tensor_pb2.DATA_TYPE_FLOAT32)
        picture = tensor_pb2.Image(model_input=values)
        parameters = method_pb2.Method(**fields["method"])
        spec = pb.ExplanationSpec(**{**fields, "method": parameters}, model="left", target=pb.Target(index=1), seed=3)
        spec.progress_interval.seconds = 0
        job = self.make_job(
            model="left", request=spec.SerializeToString(), images={"image": picture.SerializeToString()}
        )
        await self.queue.jobs.submit(job, pb.ExplanationEvent(accepted=pb.Accepted()).SerializeToString())
        return job.job_id

    async def events(self, job_id: str) -> list[pb.ExplanationEvent]:
        """Returns the events of a job when it has ended."""
        return [pb.ExplanationEvent.FromString(stored.payload) async for stored in self.queue.jobs.events(job_id)]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
async def site(tmp_path: Path, new_job: Callable[..., NewJob], worker_registry: WorkerRegistry) -> AsyncIterator[Site]:
    models = tmp_path / "models.toml"
    models.write_text(MODEL)
    async with Queue(own_settings(heartbeat_seconds=0.05, sweep_seconds=0.05)) as queue:
        yield Site(models, new_job, queue, worker_registry)


def told(events: list[pb.ExplanationEvent]) -> list[bytes]:
    """Returns what the last attempt found, without what differs from run to run."""
    begun = max(place for place, event in enumerate(events) if event.HasField("started"))
    found = []
    for event in events[begun + 1 :]:
        kind = event.WhichOneof("event")
        if kind == "progress" or (kind == "mask" and not event.mask.final):
            continue
        plain = pb.ExplanationEvent()
        plain.CopyFrom(event)
        for name in ("job_id", "time"):
            plain.ClearField(name)
        if kind == "completed":
            plain.completed.ClearField("run_time")
            plain.completed.ClearField("wait_time")
        found.append(plain.SerializeToString(deterministic=True))
    return found


@dataclass
class Breaks:
    """Stops a worker at a checkpoint of a job, on the engine's thread, so that no job outruns the test."""

    checkpoints: Counter[str] = field(default_factory=Counter)
    """Checkpoints of each job so far."""
    at: tuple[str, int] = ("", 0)
    """The job, and after how many of its checkpoints."""
    worker: Worker | None = None

    def noting(self, note: Callable[[JobRun, events.Event], None]) -> Callable[[JobRun, events.Event], None]:
        def note_and_break(run: JobRun, event: events.Event) -> None:
            note(run, event)
            if not isinstance(event, events.Checkpoint) or run.task is None or self.worker is None:
                return
            job_id = run.lease.job.job_id
            self.checkpoints[job_id] += 1
            if self.at == (job_id, self.checkpoints[job_id]):
                self.worker.drain()
                while not run.task.cancelled:
                    time.sleep(0.005)

        return note_and_break


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> Breaks:
    breaks = Breaks()
    monkeypatch.setattr(JobRun, "_on_event", breaks.noting(JobRun._on_event))
    return breaks


@pytest.mark.parametrize("name", SPECS)
async def test_a_job_that_is_handed_back_ends_as_if_nothing_had_happened(site: Site, breaks: Breaks, name: str) -> None:
    with site.worker("first") as breaks.worker:
        undisturbed = await site.submit(SPECS[name])
        whole = await site.events(undisturbed)
        broken = await site.submit(SPECS[name])
        breaks.at = broken, breaks.checkpoints[undisturbed] // 2
        await asyncio.to_thread(breaks.worker._draining.wait)
    with site.worker("second"):
        events = await site.events(broken)
    starts = [event.started for event in events if event.HasField("started")]
    assert [(each.worker, each.attempt) for each in starts] == [("first", 1), ("second", 1)]
    assert breaks.checkpoints[broken] == breaks.checkpoints[undisturbed]
    assert told(events) == told(whole)

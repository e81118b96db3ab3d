"""A real gRPC server and a worker that follows a script."""

from __future__ import annotations

import asyncio
import inspect
import io
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from embedded_queue import Queue, Registry
from PIL import Image as Pillow
from prometheus_client import CollectorRegistry

from sagittal.core.errors import FailedPrecondition
from sagittal.core.jobs import JobKind, JobState, Lease
from sagittal.queue.protocol import WorkerQueue
from sagittal.registry.concept_sets import ConceptSets
from sagittal.server.service import Service
from sagittal.server.settings import ServiceSettings
from sagittal.v1 import explanation_pb2, explanation_service_pb2_grpc, model_pb2, model_service_pb2_grpc, tensor_pb2

Event = explanation_pb2.ExplanationEvent
Script = Callable[["Run"], None]


def picture(width: int = 8, height: int = 8) -> tensor_pb2.Image:
    """Returns a small PNG."""
    buffer = io.BytesIO()
    Pillow.new("RGB", (width, height), "red").save(buffer, "PNG")
    return tensor_pb2.Image(encoded=buffer.getvalue())


def spec(**changes: object) -> explanation_pb2.ExplanationSpec:
    """Returns a valid specification with changes."""
    return explanation_pb2.ExplanationSpec(**{"model": "lamp", "image": picture()} | changes)


def lamp() -> model_pb2.Model:
    """Returns a model of two classes that is explained by iGOS++, occlusion or a method without a message."""
    size = model_pb2.ParameterDescription(
        name="mask_size", type="int", minimum=7, maximum=224, summary="Side of the mask in cells."
    )
    size.default.number_value = 28
    methods = [
        model_pb2.MethodDescription(name="igos++", field="igos_plus_plus", parameters=[size]),
        model_pb2.MethodDescription(name="glow", field="custom", parameters=[size]),
        model_pb2.MethodDescription(name="grad-cam", field="grad_cam", unavailable="it has no layers; try igos++"),
    ]
    return model_pb2.Model(
        name="lamp",
        version="1",
        digest="d" * 64,
        labels=["off", "on"],
        classes=2,
        methods=methods,
        preprocessing=model_pb2.Preprocessing(input_size=224),
    )


@dataclass
class Run:
    """A job in the hands of the scripted worker."""

    queue: WorkerQueue
    lease: Lease
    sent: int = 0

    def send(self, **event: object) -> None:
        """Appends an event."""
        self.queue.append(self.lease, [self._event(event)])

    def settle(self, state: JobState = JobState.COMPLETED, **event: object) -> None:
        """Ends the job."""
        self.queue.settle(self.lease, self._event(event), state)

    def cancelled(self) -> str | None:
        """Returns why the job was cancelled, or None."""
        _, asked = self.queue.heartbeat([self.lease])
        return asked[0].reason if asked else None

    def _event(self, event: dict[str, object]) -> bytes:
        self.sent += 1
        message = Event(job_id=self.lease.job.job_id, **event)
        message.time.GetCurrentTime()
        return message.SerializeToString()


def explain_at_once(run: Run) -> None:
    """A script: everything in five events."""
    top = [explanation_pb2.ClassScore(index=1, label="on", score=0.9)]
    run.send(started=explanation_pb2.Started(worker="scripted", attempt=run.lease.job.attempt))
    run.send(prediction=explanation_pb2.Prediction(target=top[0], top=top))
    if run.lease.job.kind == JobKind.EXPLANATION:
        run.send(progress=explanation_pb2.Progress(fraction=0.5))
        run.send(mask=explanation_pb2.Mask(final=False))
        run.send(mask=explanation_pb2.Mask(final=True))
    run.settle(completed=explanation_pb2.Completed(evaluations=7, model_digest="d" * 64, model_version="1"))


def explain_readably(run: Run) -> None:
    """A script: an explanation that a client can parse, with a mask of 2 x 2 and a curve."""
    mask = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT16, shape=[2, 2], data=bytes(8))
    top = [explanation_pb2.ClassScore(index=1, label="on", score=0.9)]
    run.send(prediction=explanation_pb2.Prediction(target=top[0], top=top))
    run.send(mask=explanation_pb2.Mask(saliency=mask, final=True))
    run.send(curve=explanation_pb2.Curve(kind=explanation_pb2.CURVE_KIND_INSERTION, fractions=[0, 1], scores=[0, 1]))
    done = explanation_pb2.Completed(insertion=0.5, deletion=0.25, evaluations=7, model_version="1", method="igos++")
    run.settle(completed=done)


def wait_for_cancel(run: Run) -> None:
    """A script: starts, then waits to be cancelled."""
    run.send(started=explanation_pb2.Started(worker="scripted", attempt=1))
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if reason := run.cancelled():
            run.settle(JobState.CANCELLED, cancelled=explanation_pb2.Cancelled(reason=reason))
            return
        time.sleep(0.01)


@dataclass
class ScriptedWorker:
    """Leases jobs in a thread and runs a script on each; scripts may be changed between jobs."""

    queue: WorkerQueue
    script: Script = explain_at_once
    leases: list[Lease] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def work(self) -> None:
        """Runs until stopped."""
        while not self._stop.is_set():
            lease = self.queue.lease([("lamp", "1")], block_seconds=0.02)
            if lease is not None:
                self.leases.append(lease)
                self.script(Run(self.queue, lease))

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[ScriptedWorker]:
        """Works in its thread for as long as the context lasts."""
        thread = threading.Thread(target=self.work)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            await asyncio.to_thread(thread.join)


@dataclass
class Stack:
    """A running service, with what stands behind it."""

    queue: Queue
    registry: Registry
    service: Service
    metrics: CollectorRegistry
    port: int
    channel: grpc.aio.Channel

    @property
    def explanations(self) -> explanation_service_pb2_grpc.ExplanationServiceAsyncStub:
        return explanation_service_pb2_grpc.ExplanationServiceStub(self.channel)

    @property
    def models(self) -> model_service_pb2_grpc.ModelServiceAsyncStub:
        return model_service_pb2_grpc.ModelServiceStub(self.channel)

    def worker(self, script: Script = explain_at_once) -> ScriptedWorker:
        return ScriptedWorker(self.queue.worker("scripted"), script)

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def running(
    settings: ServiceSettings | None = None,
    queue: Queue | None = None,
    registry: Registry | None = None,
) -> AsyncIterator[Stack]:
    """A service on a free port with the model `lamp`, ready on a worker."""
    queue = queue or Queue()
    registry = registry or Registry()
    registry.workers.publish(lamp())
    registry.workers.announce(
        "scripted", [("lamp", "1", model_pb2.WorkerModel(state=model_pb2.MODEL_STATE_READY))], ttl=600
    )
    settings = settings or quick_settings()
    metrics = CollectorRegistry()
    concepts = ConceptSets(queue.settings, max_tenant_bytes=settings.concepts.max_tenant_bytes)
    service = Service(settings, queue.jobs, registry.models, metrics, concepts=concepts)
    port = (await service.start())[0]
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            yield Stack(queue, registry, service, metrics, port, channel)
    finally:
        await service.stop()
        await queue.close()
        await registry.close()


def quick_settings(**changes: object) -> ServiceSettings:
    """Returns settings for tests: a free port, short waits."""
    return ServiceSettings(**{"listen": ("127.0.0.1:0",), "health_interval": 0.05, "drain": 0.0} | changes)


async def images_are_gone(stack: Stack, job_id: str) -> None:
    """Returns when retention has taken the request and the images of a job."""

    async def gone() -> bool:
        try:
            await stack.queue.jobs.request_of(job_id)
        except FailedPrecondition:
            return True
        return False

    await eventually(gone)


async def eventually(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    """Returns when the condition, which may be a coroutine function, holds; fails after many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        holds = condition()
        if await holds if inspect.isawaitable(holds) else holds:
            return
        assert time.monotonic() < deadline, "it never came to pass"
        await asyncio.sleep(0.01)

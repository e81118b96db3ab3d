"""A service and a worker in this process before one Redis, and what must hold of them after every fault."""

import asyncio
import secrets
import socketserver
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import known_models
import numpy as np
import torch
from embedded_queue import stored_events
from known_models import LEFT
from prometheus_client import CollectorRegistry

from sagittal.client import (
    ArgumentRefused,
    Client,
    IGOSPlusPlus,
    Overloaded,
    QueueFailed,
    Retry,
    SagittalError,
    Unavailable,
)
from sagittal.client import Options as ClientOptions
from sagittal.core.jobs import Job, JobKind, JobState, Lane, NewJob
from sagittal.process.probes import LIVE, READY, MetricsServer, start_metrics_server
from sagittal.process.supervision import Supervised, SupervisionMetrics, Supervisor
from sagittal.queue.jobs import RedisJobQueue
from sagittal.queue.leases import RedisWorkerQueue
from sagittal.queue.metrics import QueueMetrics
from sagittal.queue.settings import QueueSettings
from sagittal.registry.concept_sets import ConceptSets
from sagittal.registry.redis import RedisModelRegistry, RedisWorkerRegistry
from sagittal.server.service import Service
from sagittal.server.settings import ServiceSettings
from sagittal.v1 import explanation_pb2 as pb
from sagittal.worker import process
from sagittal.worker.concepts.store import connect_concept_store
from sagittal.worker.execution import writer
from sagittal.worker.hosting import reconciler
from sagittal.worker.hosting.reconciler import Reconciler
from sagittal.worker.metrics import WorkerMetrics
from sagittal.worker.outcomes import OutcomeReports
from sagittal.worker.process import Worker
from sagittal.worker.settings import WorkerSettings

Answer = TypeVar("Answer")

#: Longest wait for anything here, in seconds.
PATIENCE = 60.0

MODELS = """
[[models]]
name = "left"
source = { kind = "python", factory = "known_models:looks_at_left" }
labels = ["nothing", "left"]
preprocessing = { input_size = 56, fit = "squash", mean = [0.0, 0.0, 0.0], std = [1.0, 1.0, 1.0] }
"""

#: A model that nobody can load.
HOPELESS = {
    "name": "hopeless",
    "version": "1",
    "source": {"kind": "torchvision", "model": "resnet18", "weights": "/nowhere/weights.pth", "classes": 2},
}

PICTURE = (np.clip(known_models.image(LEFT).permute(1, 2, 0).numpy(), 0, 1) * 255).astype(np.uint8)

SHORT = {"method": IGOSPlusPlus(mask_size=7, iterations=3, points=1)}
LONG = {"method": IGOSPlusPlus(mask_size=7, iterations=1000, points=20, tolerance=0.0)}

#: What a call may fail with while Redis is at fault; whoever calls tries again.
PASSING = (Unavailable, Overloaded, QueueFailed, ArgumentRefused)


def _runs(supervisor: Supervisor) -> bool:
    return supervisor.ailing() == ""


def eventually(condition: Callable[[], object], what: str) -> None:
    """Returns when a condition holds."""
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, f"it never came to pass: {what}"
        time.sleep(0.01)


class Killed(BaseException):
    """Ends a thread at the line that it is at."""


class ThreadKiller:
    """Raises in a thread, by name, at the next line of the program's own code that it runs."""

    #: Files in whose lines a thread may be ended: the bodies of the threads' loops.
    FILES = frozenset(module.__file__ for module in (process, writer, reconciler, socketserver))

    def __init__(self) -> None:
        self._target = ""

    def kill(self, name: str) -> None:
        """Ends the thread of this name."""
        self._target = name

    def trace(self, frame: FrameType, _event: str, _argument: object) -> Any:
        """Is the trace function of the threads that start while it is set."""
        return self._trace_line if frame.f_code.co_filename in self.FILES else None

    def _trace_line(self, _frame: FrameType, event: str, _argument: object) -> Any:
        if event == "line" and self._target and threading.current_thread().name == self._target:
            self._target = ""
            raise Killed
        return self._trace_line


class ServiceLoop:
    """The service on an event loop of its own, in a thread."""

    def __init__(self, settings: QueueSettings, registry: CollectorRegistry) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="service", daemon=True)
        self._thread.start()
        self.supervisor = Supervisor(SupervisionMetrics(registry))
        self.loop.set_exception_handler(self.supervisor.note_loop_failure)
        self._settings = settings
        self._registry = registry
        self.port = self.do(self._start())

    def do(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Runs a coroutine on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE)

    def kill(self, name: str) -> None:
        """Cancels a background task, as no one should."""
        one = self.supervisor.work[name]
        assert one.task is not None
        self.loop.call_soon_threadsafe(one.task.cancel)

    def close(self) -> None:
        """Ends the service and its loop."""
        self.do(self._stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()

    async def _start(self) -> int:
        observer = QueueMetrics(self._registry)
        self._models = RedisModelRegistry(self._settings, observer)
        queue = RedisJobQueue(self._settings, observer, self.supervisor)
        settings = ServiceSettings(
            listen=("127.0.0.1:0",), health_interval=0.1, model_refresh=0.05, drain=0.0, queue=self._settings
        )
        concepts = ConceptSets(self._settings, max_tenant_bytes=settings.concepts.max_tenant_bytes, observer=observer)
        self.service = Service(
            settings, queue, self._models, self._registry, concepts=concepts, supervisor=self.supervisor
        )
        return (await self.service.start())[0]

    async def _stop(self) -> None:
        await self.service.stop()
        await self._models.close()


class WorkerThread:
    """A worker whose threads can be killed one by one."""

    def __init__(self, directory: Path, settings: QueueSettings) -> None:
        path = directory / "models.toml"
        path.write_text(MODELS)
        self._killer = ThreadKiller()
        self._sides = [RedisWorkerQueue(settings, worker="w"), RedisWorkerRegistry(settings)]
        self.registry = CollectorRegistry()
        metrics = WorkerMetrics.create(self.registry)
        hosted = Reconciler(path, self._sides[1], metrics, worker="w", device=torch.device("cpu"))
        told = WorkerSettings(
            models_file=path, worker_name="w", batch_size=16, drain=0.0, queue=settings,
            checkpoint_seconds=0.01, announce_seconds=0.2,
        )  # fmt: skip
        self.worker = Worker(
            told, self._sides[0], hosted, metrics, observer=SupervisionMetrics(self.registry),
            concepts=connect_concept_store(told.concepts, settings),
            outcomes=OutcomeReports(self._sides[1], metrics, "w"),
        )  # fmt: skip
        threading.settrace(self._killer.trace)
        try:
            checks = {LIVE: self.worker.live, READY: self.worker.ready}
            self.metrics: MetricsServer = start_metrics_server(
                "127.0.0.1", 0, self.registry, checks, self.worker.supervisor
            )
            self._thread = threading.Thread(target=self.worker.run, name="worker")
            self._thread.start()
            eventually(lambda: self.worker.ready() == "", "the worker is ready")
        finally:
            threading.settrace(None)  # type: ignore[arg-type]

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return not self._thread.is_alive()

    def kill(self, name: str) -> None:
        """Ends one of its threads."""
        self._killer.kill(name)

    def close(self) -> None:
        """Ends it."""
        loading = self.worker.supervisor.work.get("models")
        self.worker.drain()
        self._thread.join(PATIENCE)
        if loading is not None and loading.thread is not None:
            loading.thread.join(PATIENCE)
        self.metrics.close()
        for side in self._sides:
            side.close()


class Stack:
    """Everything before one Redis, with a caller and an onlooker that talks to Redis directly."""

    def __init__(self, directory: Path, *, of_service: str, of_worker: str, direct: str) -> None:
        """Starts everything.

        Args:
            directory: For the model file.
            of_service: Where the service finds Redis.
            of_worker: Where the worker finds it.
            direct: Where the onlooker finds it.
        """
        self.settings = QueueSettings(
            url=of_service, prefix=f"stack-{secrets.token_hex(4)}", sweep_seconds=0.1, heartbeat_seconds=0.1,
            lease_seconds=3.0, retry_after=0.05, overload_retry_after=0.05, operation_timeout=2.0, max_attempts=10,
        )  # fmt: skip
        self.directory = directory
        self.registry = CollectorRegistry()
        self.service = ServiceLoop(self.settings, self.registry)
        self._settings_of_worker = self.settings.model_copy(update={"url": of_worker})
        self.worker = WorkerThread(directory, self._settings_of_worker)
        onlooking = {"url": direct, "sweep_seconds": 1e9, "operation_timeout": PATIENCE}
        quiet = self.settings.model_copy(update=onlooking)
        self._onlooker = RedisJobQueue(quiet)
        retry = Retry(call_seconds=PATIENCE, stream_seconds=PATIENCE, longest_wait=0.1)
        self.client = Client(f"127.0.0.1:{self.service.port}", options=ClientOptions(retry=retry))
        eventually(lambda: self.service.service.ready() == "", "the service is ready")

    def close(self) -> None:
        """Ends everything."""
        self.client.close()
        self.worker.close()
        self.service.do(self._onlooker.close())
        self.service.close()

    def insist(self, call: Callable[[], Answer], *, meanwhile: type[SagittalError] | None = None) -> Answer:
        """Calls until the service answers; an error of `meanwhile` counts as an answer to an earlier try."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return call()
            except PASSING:
                assert time.monotonic() < until, "the service never answered"
                time.sleep(0.02)
            except SagittalError as error:
                if meanwhile is None or not isinstance(error, meanwhile):
                    raise
                return None  # type: ignore[return-value]

    def submit(self, **options: Any) -> str:
        """Submits a job that shares nothing; returns its identifier."""
        request_id = secrets.token_hex(8)
        whole = {"model": "left", "target": 1, "cache": "bypass", "request_id": request_id} | options
        return self.insist(lambda: self.client.submit(PICTURE, **whole)).job_id

    def submit_late(self) -> str:
        """Submits, to Redis itself, a job that no worker takes, with a deadline that passes soon."""
        job = NewJob(
            job_id=secrets.token_hex(16), kind=JobKind.EXPLANATION, model="nobody", version="1", method="igos++",
            lane=Lane.INTERACTIVE, request=b"", images={}, deadline=time.time() + 0.2,
        )  # fmt: skip
        accepted = pb.ExplanationEvent(accepted=pb.Accepted()).SerializeToString()
        return self.service.do(self._onlooker.submit(job, accepted))[0].job_id

    def state(self, job_id: str) -> Job:
        """Returns a job as Redis has it."""
        return self.service.do(self._onlooker.get(job_id))

    def await_end(self, job_id: str) -> list[pb.ExplanationEvent]:
        """Returns the whole log of a job that ends, once it has."""
        eventually(lambda: self.state(job_id).state.ended, f"job {job_id} ends")
        stored = self.service.do(stored_events(self._onlooker, job_id))
        assert [event.sequence for event in stored] == list(range(1, len(stored) + 1))
        assert [event.terminal for event in stored] == [False] * (len(stored) - 1) + [True]
        return [pb.ExplanationEvent.FromString(event.payload) for event in stored]

    def watch_to_the_end(self, job_id: str) -> None:
        """Watches a job as callers do, from the start until its log has ended."""
        seen: list[Any] = []

        def watch() -> bool:
            with suppress(SagittalError), self.client.watch(job_id) as stream:
                seen[:] = stream
            return bool(seen) and self.state(job_id).state.ended

        eventually(watch, f"job {job_id} is watched to its end")

    def use(self) -> None:
        """Does everything that callers and administrators do, and checks every promise."""
        late = self.submit_late()
        kept, cancelled = self.submit(**SHORT), self.submit(**LONG)
        self.insist(lambda: self.client.register_model(HOPELESS))  # type: ignore[arg-type]
        self.insist(lambda: self.client.load_model("hopeless"))
        self._await_start(cancelled)
        began = time.monotonic()
        self.insist(lambda: self.client.cancel(cancelled))
        assert self.await_end(cancelled)[-1].HasField("cancelled"), "a cancelled job was not cancelled"
        log = self.await_end(kept)
        assert log[-1].HasField("completed"), f"a job was not completed: {log[-1]}"
        assert sum(event.HasField("completed") for event in log) == 1
        assert self.await_end(late)[-1].failed.message, "a deadline did not fire"
        assert self.state(late).state is JobState.FAILED
        assert time.monotonic() - began < PATIENCE
        self.insist(lambda: list(self.client.list()))
        self.insist(lambda: self.client.get(kept))
        self.watch_to_the_end(kept)
        self.insist(lambda: self.client.delete(kept), meanwhile=SagittalError)
        self.insist(lambda: self.client.unregister_model("hopeless", "1"), meanwhile=SagittalError)

    def check_health(self) -> None:
        """Checks that everything runs, is ready, and does a job."""
        for supervisor in (self.service.supervisor, self.worker.worker.supervisor):
            eventually(partial(_runs, supervisor), "all background work runs")
            assert supervisor.failed() == ""
        assert self.worker.worker.crashed == ""
        eventually(lambda: self.worker.worker.ready() == "", f"the worker is ready: {self.worker.worker.ready()}")
        eventually(lambda: self.service.service.ready() == "", f"the service is ready: {self.service.service.ready()}")
        assert self.service.service.live() == self.worker.worker.live() == ""

    def background_work(self) -> Iterator[tuple[Supervisor, Supervised]]:
        """Yields everything that runs in the background, with its supervisor."""
        for supervisor in (self.service.supervisor, self.worker.worker.supervisor):
            for one in supervisor.work.values():
                yield supervisor, one

    def restart_worker(self) -> None:
        """Starts another worker in place of one that has ended."""
        self.worker.close()
        self.worker = WorkerThread(self.directory, self._settings_of_worker)

    def _await_start(self, job_id: str) -> None:
        def started() -> bool:
            events = self.service.do(stored_events(self._onlooker, job_id))
            return any(pb.ExplanationEvent.FromString(event.payload).HasField("started") for event in events)

        eventually(started, f"job {job_id} starts")

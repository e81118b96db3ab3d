"""From request to queued job: validates, checks images, resolves the model, estimates the cost, and submits."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import structlog

from sagittal.core.errors import InvalidRequest, SagittalError, Unavailable
from sagittal.core.images import check_image_set
from sagittal.core.jobs import MAX_EVALUATIONS, CachePolicy, Cost, Job, JobKind, Lane, NewJob, estimate, new_job_id
from sagittal.core.requests import CheckedSpec, check_spec
from sagittal.process.tracing import JOB_ID, SpanKind, current_span, within
from sagittal.queue.protocol import JobQueue
from sagittal.queue.turns import TenantTurns
from sagittal.server.catalogue import Catalogue, check_loadable, ready_workers
from sagittal.server.images import Examined, Pictures
from sagittal.server.messages import CACHE_POLICIES, LANES, timestamp
from sagittal.server.metrics import ServiceMetrics
from sagittal.server.rpc.access import Caller
from sagittal.server.rpc.requests import release_request
from sagittal.server.settings import JobSettings
from sagittal.v1 import explanation_pb2, model_pb2, model_service_pb2

#: Longest age of learned costs before they are read from the queue again, in seconds.
REFRESH = 5.0

#: Largest number of cached (model, version, method) entries; beyond it, the cache is emptied.
MOST_KNOWN = 4096

_UNKNOWN = Cost(0.0, 0.0)


class Estimates:
    """Estimates costs from those that the queue has learned, reading each at most once in `REFRESH` seconds."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._known: dict[tuple[str, str, str], tuple[float, Mapping[str, Cost]]] = {}

    async def of(self, model: model_pb2.Model, method: str, setting: str, most: int) -> Cost:
        """Returns the expected cost of a setting of a method on a model; zeros if nothing is known.

        Args:
            model: The model.
            method: Name of the method.
            setting: The part of the request that determines the cost.
            most: Largest number of evaluations that the job may use; 0 for no limit. If nothing is known, it is the
                estimate.
        """
        found = estimate(setting, await self._observed((model.name, model.version, method)))
        if found is None:
            return Cost(float(most), 0.0) if most else _UNKNOWN
        share = min(1.0, (most or MAX_EVALUATIONS) / found.evaluations)
        return Cost(found.evaluations * share, found.seconds * share, found.device * share)

    async def known(self, model: model_pb2.Model, method: str, setting: str) -> bool:
        """Returns whether jobs of exactly this setting have ended."""
        return setting in await self._observed((model.name, model.version, method))

    async def _observed(self, key: tuple[str, str, str]) -> Mapping[str, Cost]:
        until, observed = self._known.get(key, (0.0, {}))
        if until < time.monotonic():
            observed = await self._queue.costs(*key)
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[key] = (time.monotonic() + REFRESH, observed)
        return observed


@dataclass(frozen=True, slots=True)
class ItemOfBatch:
    """The item of a batch to which an explanation belongs."""

    batch: str
    key: str
    renew: bool
    """Whether it runs again if it is completed and its result is deleted."""


class Acceptance:
    """A job that is being accepted in a task of its own, so that it can outlive its call."""

    def __init__(self, accepting: Coroutine[Any, Any, tuple[Job, bool]]) -> None:
        """Starts the task."""
        self.submitting = False
        """Whether the job is being submitted; before that, cancelling the task leaves nothing behind."""
        token = _ACCEPTANCE.set(self)
        self.task = asyncio.create_task(accepting)
        _ACCEPTANCE.reset(token)


_ACCEPTANCE: ContextVar[Acceptance | None] = ContextVar("acceptance", default=None)

#: Largest number of classes that Predict returns.
MAX_TOP = 1_000

#: Requests that a replica accepts at the same time, and the longest time that one waits for its turn, in seconds.
ACCEPTED_AT_ONCE, PATIENCE = 64, 30.0

_log = structlog.get_logger(__name__)


class Intake:
    """Turns requests into queued jobs."""

    def __init__(
        self, queue: JobQueue, catalogue: Catalogue, pictures: Pictures, settings: JobSettings, metrics: ServiceMetrics
    ) -> None:
        self._queue = queue
        self._estimates = Estimates(queue)
        self._catalogue = catalogue
        self._pictures = pictures
        self._settings = settings
        self._metrics = metrics
        self._turns = TenantTurns(ACCEPTED_AT_ONCE, settings.max_accepting_per_tenant)

    async def explain(
        self, spec: explanation_pb2.ExplanationSpec, caller: Caller, item: ItemOfBatch | None = None
    ) -> tuple[Job, bool]:
        """Queues an explanation; returns the job and whether it is new. Removes the images from `spec`.

        Args:
            spec: The specification.
            caller: Who wants it.
            item: The item of a batch that it belongs to. Without a deadline it may then wait for any time.

        Raises:
            SagittalError: the request is invalid or cannot be admitted.
            ItemKnown, BatchPaused: as `JobQueue.submit`.
        """
        with self.counting_refusals():
            try:
                async with self._turn():
                    return await self._explain(spec, caller, item)
            finally:
                release_request()

    async def check(self, spec: explanation_pb2.ExplanationSpec) -> CheckedSpec:
        """Checks what several explanations have in common, which lacks the image. Raises SagittalError."""
        model = await self._catalogue.model(spec.model, spec.model_version, field="spec.model")
        check_loadable(model, "spec.model")
        whole = explanation_pb2.ExplanationSpec()
        whole.CopyFrom(spec)
        whole.image.encoded = b"of each"
        return check_spec(whole, model, self._settings.limits())

    async def estimate(self, checked: CheckedSpec) -> tuple[Cost, bool]:
        """Returns the expected cost of an explanation, and whether it is that of jobs with the same setting."""
        model, method, setting = checked.model, checked.method_name, checked.setting
        cost = await self._estimates.of(model, method, setting, checked.most_evaluations)
        return cost, await self._estimates.known(model, method, setting)

    async def predict(
        self, request: model_service_pb2.PredictRequest, caller: Caller, deadline: float
    ) -> tuple[Job, model_pb2.Model]:
        """Queues a prediction that must end within `deadline` seconds. Removes the image from `request`."""
        with self.counting_refusals():
            try:
                async with self._turn():
                    return await self._predict(request, caller, deadline)
            finally:
                release_request()

    async def inquire(
        self,
        kind: JobKind,
        model: model_pb2.Model,
        request: bytes,
        images: dict[str, bytes],
        caller: Caller,
        deadline: float,
        *,
        evaluations: int = 0,
    ) -> Job:
        """Queues a validated job for which a call waits `deadline` seconds; its answer is never shared."""
        job = NewJob(
            job_id=new_job_id(),
            kind=kind,
            model=model.name,
            version=model.version,
            method="",
            lane=Lane.INTERACTIVE,
            request=request,
            images=images,
            deadline=time.time() + deadline,
            tenant=caller.tenant,
            cache=CachePolicy.BYPASS,
            estimated_evaluations=evaluations,
            trace_context=caller.trace_context,
        )
        return (await self.submit(job, model))[0]

    async def submit(self, new: NewJob, model: model_pb2.Model, seconds: float = 0.0) -> tuple[Job, bool]:
        """Queues a validated job, which may run for `seconds` (0: unknown); returns it and whether it is new."""
        workers = ready_workers(model)
        new = self._queue.place(new)
        attributes = {JOB_ID: new.job_id, "sagittal.model": new.model, "sagittal.method": new.method}
        with within(current_span().child("submit", kind=SpanKind.PRODUCER, attributes=attributes)) as span:
            new = replace(new, trace_context=span.context or new.trace_context)
            if (acceptance := _ACCEPTANCE.get()) is not None:
                acceptance.submitting = True
            job, is_new = await self._queue.submit(new, _accepted(new, workers, seconds))
            span.set({JOB_ID: job.job_id, "sagittal.job.new": is_new})
        if is_new:
            self._metrics.accepted(new)
        say = _log.info if workers else _log.warning
        say(
            "job-accepted" if is_new else "job-known",
            job_id=job.job_id,
            kind=new.kind.value,
            model=new.model,
            version=new.version,
            method=new.method,
            lane=new.lane.value,
            estimated_evaluations=new.estimated_evaluations,
            ready_workers=workers,
        )
        return job, is_new

    def note_refusal(self, error: SagittalError, caller: Caller) -> None:
        """Counts an error of a single request, which does not end its call."""
        self._metrics.refused(error, caller.tenant)

    @contextmanager
    def counting_refusals(self) -> Iterator[None]:
        """Counts and logs an expected error in its body as a refused request."""
        try:
            yield
        except SagittalError as error:
            self._metrics.jobs_rejected.labels(error.reason).inc()
            _log.info("job-refused", reason=error.reason, field=error.field, error=error.message)
            raise

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Waits for the tenant's turn to have a request accepted, which takes time of processes and the event loop."""
        async with AsyncExitStack() as turn:
            try:
                await turn.enter_async_context(self._turns.turn(PATIENCE))
            except TimeoutError as error:
                text = f"other requests of your tenant took {PATIENCE:g} s: send fewer at a time"
                raise Unavailable(text, retry_after=1.0) from error
            yield

    async def _explain(
        self, spec: explanation_pb2.ExplanationSpec, caller: Caller, item: ItemOfBatch | None
    ) -> tuple[Job, bool]:
        unlimited = item is not None and not spec.HasField("deadline")
        model = await self._catalogue.model(spec.model, spec.model_version, field="spec.model")
        check_loadable(model, "spec.model")
        tried = None if spec.model_version else await self._catalogue.on_trial(model)
        whole = _copied(spec) if tried is not None else spec
        checked, examined = await self._examined(spec, model, caller)
        if tried is not None and is_among(examined.content_key, tried.canary.share):
            model = tried
            checked, examined = await self._examined(whole, model, caller)
        request = checked.request
        cost = await self._estimates.of(model, checked.method_name, checked.setting, checked.most_evaluations)
        job = NewJob(
            job_id=new_job_id(),
            kind=JobKind.EXPLANATION,
            model=model.name,
            version=model.version,
            method=checked.method_name,
            lane=LANES[request.lane],
            request=request.SerializeToString(),
            images=examined.images,
            deadline=None if unlimited else time.time() + checked.deadline,
            request_id=request.request_id,
            tenant=caller.tenant,
            content_key=examined.content_key,
            cache=CACHE_POLICIES[request.cache_policy],
            estimated_evaluations=math.ceil(cost.evaluations),
            setting=checked.setting,
            labels=dict(request.labels),
            trace_context=caller.trace_context,
        )
        if item is not None:
            job = replace(job, batch=item.batch, item=item.key, renew=item.renew)
        return await self.submit(job, model, cost.seconds)

    async def _examined(
        self, spec: explanation_pb2.ExplanationSpec, model: model_pb2.Model, caller: Caller
    ) -> tuple[CheckedSpec, Examined]:
        """Returns the checked specification and images. Removes the images from `spec`."""
        checked = check_spec(spec, model, self._settings.limits())
        size = model.preprocessing.input_size
        return checked, await self._pictures.examine(checked.images, size, checked.question, caller.tenant)

    async def _predict(
        self, request: model_service_pb2.PredictRequest, caller: Caller, deadline: float
    ) -> tuple[Job, model_pb2.Model]:
        model = await self._catalogue.model(request.model, request.model_version, field="model")
        check_loadable(model, "model")
        check_image_set(request.image, "image")
        if request.top > MAX_TOP:
            raise InvalidRequest(f"top is {request.top}; give 1 to {MAX_TOP:,}, or 0 for 5", field="top")
        pictures = {"image": ("image", request.image)}
        examined = await self._pictures.examine(pictures, model.preprocessing.input_size, None, caller.tenant)
        request.ClearField("image")
        request.model_version = model.version
        payload = request.SerializeToString()
        return await self.inquire(JobKind.PREDICTION, model, payload, examined.images, caller, deadline), model


def is_among(content_key: str, share: float) -> bool:
    """Returns whether an explanation is in this share of all, as all equal ones are; one without a key never is."""
    return bool(content_key) and int(content_key[:16], 16) < share * 2**64


def _copied(spec: explanation_pb2.ExplanationSpec) -> explanation_pb2.ExplanationSpec:
    copy = explanation_pb2.ExplanationSpec()
    copy.CopyFrom(spec)
    return copy


def _accepted(job: NewJob, workers: int, seconds: float) -> bytes:
    """Returns a job's first event; the queue adds the position, which only it knows."""
    accepted = explanation_pb2.Accepted(estimated_evaluations=job.estimated_evaluations, ready_workers=workers)
    if seconds:
        accepted.estimated_run_time.FromNanoseconds(int(seconds * 1e9))
    event = explanation_pb2.ExplanationEvent(
        job_id=job.job_id, time=timestamp(time.time()), request_id=job.request_id, accepted=accepted
    )
    return event.SerializeToString()

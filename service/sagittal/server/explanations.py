"""ExplanationService: accepts, streams, lists, cancels, retries and deletes jobs, and scores their regions."""
# ruff: noqa: N802 - names and signatures are those of the API

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import structlog

from sagittal.core.errors import FailedPrecondition, InvalidRequest, JobBuried, from_status
from sagittal.core.jobs import Job, JobKind, JobState
from sagittal.core.measurements import MAX_BACKGROUNDS, background_name
from sagittal.core.text import shown
from sagittal.queue.protocol import JobQueue
from sagittal.queue.settings import MIB
from sagittal.server.estimates import estimate
from sagittal.server.explain_many import Many
from sagittal.server.intake import Intake
from sagittal.server.job_images import JobImages
from sagittal.server.job_lists import JobLists
from sagittal.server.messages import event, explanation
from sagittal.server.regions import Regions
from sagittal.server.relay import Relay, time_left
from sagittal.server.rpc.access import Caller, current_caller
from sagittal.server.rpc.layers import Context
from sagittal.v1 import explanation_pb2, explanation_service_pb2, explanation_service_pb2_grpc

_log = structlog.get_logger(__name__)


class Retries:
    """Retries dead-lettered jobs, each as a new job, because a job has only one terminal event."""

    def __init__(self, queue: JobQueue, intake: Intake, relay: Relay) -> None:
        self._queue = queue
        self._intake = intake
        self._relay = relay

    async def again(self, dead: Job, caller: Caller) -> Job:
        """Returns a new job with the request and images of a dead-lettered one.

        Raises:
            FailedPrecondition: the job is not dead-lettered, or its images are deleted.
            SagittalError: the request is refused now, for example because its model is unregistered.
        """
        with self._intake.counting_refusals():
            await self._check_dead_lettered(dead)
            stored = await self._queue.request_of(dead.job_id)
        spec = explanation_pb2.ExplanationSpec.FromString(stored.request)
        spec.image.ParseFromString(stored.images["image"])
        if "baseline" in stored.images:
            spec.baseline.image.ParseFromString(stored.images["baseline"])
        backgrounds = (background_name(index) for index in range(MAX_BACKGROUNDS))
        for name in filter(stored.images.__contains__, backgrounds):
            spec.metrics.robustness.images.add().ParseFromString(stored.images[name])
        spec.ClearField("request_id")  # it still belongs to the dead-lettered job
        job, _ = await self._intake.explain(spec, caller)
        _log.info("job-retried", job_id=dead.job_id, new_job_id=job.job_id)
        return job

    async def _check_dead_lettered(self, job: Job) -> None:
        if job.kind is not JobKind.EXPLANATION or not await self._is_dead_lettered(job):
            text = (
                f"job {job.job_id} is a {job.state.value} {job.kind.value}; only dead-lettered explanations are retried"
            )
            raise FailedPrecondition(text, field="job_id")

    async def _is_dead_lettered(self, job: Job) -> bool:
        if job.state is not JobState.FAILED:
            return False
        async with aclosing(self._relay.events(job, job.last_sequence - 1)) as events:
            return any([isinstance(from_status(event.failed), JobBuried) async for event in events])


#: Jobs on a page if the request does not set a size.
DEFAULT_PAGE = 50

#: Largest number of jobs or events on a page.
MAX_PAGE = 1_000

#: Bytes of the events on a page with several events: a page is read and sent in one step of the event loop.
PAGE_BYTES = MIB // 2

_TOKEN = re.compile(r"^[0-9]{1,15}$")


class ExplanationServicer(explanation_service_pb2_grpc.ExplanationServiceServicer):
    """Serves ExplanationService from the queue."""

    def __init__(
        self,
        queue: JobQueue,
        intake: Intake,
        relay: Relay,
        many: Many,
        retries: Retries,
        regions: Regions,
        images: JobImages,
        lists: JobLists,
        *,
        regions_deadline: float,
    ) -> None:
        self._queue = queue
        self._intake = intake
        self._relay = relay
        self._many = many
        self._retries = retries
        self._regions = regions
        self._images = images
        self._lists = lists
        self._regions_deadline = regions_deadline

    async def Explain(
        self, request: explanation_service_pb2.ExplainRequest, context: Context
    ) -> AsyncGenerator[explanation_service_pb2.ExplainResponse, None]:
        """Accepts a job and streams its events; a dropped call cancels the job it created, unless detached."""
        accepting = self._intake.explain(request.spec, current_caller())
        job, is_new = await (accepting if request.detach else self._relay.accepted(accepting, rpc="Explain"))
        structlog.contextvars.bind_contextvars(job_id=job.job_id)
        owned = is_new and not request.detach
        del request  # its images are stored
        events = self._relay.owned_events(job, rpc="Explain") if owned else self._relay.events(job)
        async with aclosing(events):
            async for message in events:
                yield explanation_service_pb2.ExplainResponse(event=message)

    async def ExplainMany(
        self, request_iterator: AsyncIterator[explanation_service_pb2.ExplainManyRequest], context: Context
    ) -> AsyncGenerator[explanation_service_pb2.ExplainManyResponse, None]:
        """Accepts jobs as requests arrive and streams the events of all of them."""
        events = self._many.events(request_iterator, current_caller())
        async with aclosing(events):
            async for message in events:
                yield explanation_service_pb2.ExplainManyResponse(event=message)

    async def SubmitExplanation(
        self, request: explanation_service_pb2.SubmitExplanationRequest, context: Context
    ) -> explanation_service_pb2.SubmitExplanationResponse:
        """Accepts a job."""
        job, _ = await self._intake.explain(request.spec, current_caller())
        return explanation_service_pb2.SubmitExplanationResponse(explanation=explanation(job))

    async def WatchExplanation(
        self, request: explanation_service_pb2.WatchExplanationRequest, context: Context
    ) -> AsyncGenerator[explanation_service_pb2.WatchExplanationResponse, None]:
        """Streams a job's events after a sequence number; a dropped call does not affect the job."""
        job = await self._job(request.job_id)
        events = self._relay.events(job, request.after_sequence)
        async with aclosing(events):
            async for message in events:
                yield explanation_service_pb2.WatchExplanationResponse(event=message)

    async def GetExplanation(
        self, request: explanation_service_pb2.GetExplanationRequest, context: Context
    ) -> explanation_service_pb2.GetExplanationResponse:
        """Returns a job with a page of its events; without progress and partial masks if it has ended."""
        limit = _page_size(request.page_size) or MAX_PAGE
        job = await self._job(request.job_id)
        page = await self._queue.page(
            job.job_id, _sequence(request.page_token), limit=limit, max_bytes=PAGE_BYTES, lasting=True
        )
        if page.ended and not job.state.ended:
            job = await self._job(request.job_id)
        token = "" if page.next_sequence is None else str(page.next_sequence)
        events = [event(one, job) for one in page.events]
        return explanation_service_pb2.GetExplanationResponse(
            explanation=explanation(job, events), next_page_token=token
        )

    async def ListExplanations(
        self, request: explanation_service_pb2.ListExplanationsRequest, context: Context
    ) -> explanation_service_pb2.ListExplanationsResponse:
        """Returns a page of the tenant's jobs, newest first."""
        return await self._lists.list(request, current_caller(), _page_size(request.page_size) or DEFAULT_PAGE)

    async def CountExplanations(
        self, request: explanation_service_pb2.CountExplanationsRequest, context: Context
    ) -> explanation_service_pb2.CountExplanationsResponse:
        """Returns how many of the tenant's jobs are in each state."""
        return await self._lists.count(request, current_caller())

    async def WatchJobs(
        self, request: explanation_service_pb2.WatchJobsRequest, context: Context
    ) -> AsyncGenerator[explanation_service_pb2.WatchJobsResponse, None]:
        """Streams the changes of the tenant's jobs."""
        async with aclosing(self._lists.watch(request, current_caller())) as changes:
            async for change in changes:
                yield change

    async def CancelExplanation(
        self, request: explanation_service_pb2.CancelExplanationRequest, context: Context
    ) -> explanation_service_pb2.CancelExplanationResponse:
        """Cancels a job; an ended one stays as it is."""
        job = await self._job(request.job_id)
        if not job.state.ended:
            job = await self._queue.cancel(job.job_id, "requested")
            _log.info("job-cancel-requested", job_id=job.job_id, state=job.state.value)
        return explanation_service_pb2.CancelExplanationResponse(explanation=explanation(job))

    async def DeleteExplanation(
        self, request: explanation_service_pb2.DeleteExplanationRequest, context: Context
    ) -> explanation_service_pb2.DeleteExplanationResponse:
        """Deletes an ended job."""
        job = await self._job(request.job_id)
        await self._queue.delete(job.job_id)
        _log.info("job-deleted", job_id=job.job_id)
        return explanation_service_pb2.DeleteExplanationResponse()

    async def RetryExplanation(
        self, request: explanation_service_pb2.RetryExplanationRequest, context: Context
    ) -> explanation_service_pb2.RetryExplanationResponse:
        """Retries a dead-lettered job of the tenant as a new job."""
        job = await self._retries.again(await self._job(request.job_id), current_caller())
        return explanation_service_pb2.RetryExplanationResponse(explanation=explanation(job))

    async def GetExplanationSpec(
        self, request: explanation_service_pb2.GetExplanationSpecRequest, context: Context
    ) -> explanation_service_pb2.GetExplanationSpecResponse:
        """Returns what a job was asked, without its images."""
        spec = await self._images.spec(await self._job(request.job_id))
        return explanation_service_pb2.GetExplanationSpecResponse(spec=spec)

    async def GetExplanationImage(
        self, request: explanation_service_pb2.GetExplanationImageRequest, context: Context
    ) -> explanation_service_pb2.GetExplanationImageResponse:
        """Returns an image of a job."""
        return await self._images.image(await self._job(request.job_id), request)

    async def EstimateExplanations(
        self, request: explanation_service_pb2.EstimateExplanationsRequest, context: Context
    ) -> explanation_service_pb2.EstimateExplanationsResponse:
        """Returns what explanations will cost; nothing is queued."""
        return await estimate(request, self._intake, self._queue)

    async def ScoreRegions(
        self, request: explanation_service_pb2.ScoreRegionsRequest, context: Context
    ) -> explanation_service_pb2.ScoreRegionsResponse:
        """Scores sets of patches of a job's image or of an image in the request."""
        return await self._regions.score(request, current_caller(), time_left(context, self._regions_deadline))

    async def _job(self, job_id: str) -> Job:
        job = await self._relay.job(job_id, current_caller())
        structlog.contextvars.bind_contextvars(job_id=job.job_id)
        return job


def _page_size(number: int) -> int:
    if number > MAX_PAGE:
        text = f"page_size is {number}; give 1 to {MAX_PAGE:,}, or 0 for the default"
        raise InvalidRequest(text, field="page_size")
    return number


def _sequence(page_token: str) -> int:
    """Returns the sequence number after which a page starts."""
    if not page_token:
        return 0
    if not _TOKEN.match(page_token):
        text = f"page_token is {shown(page_token)}; give next_page_token of the previous page, or leave it empty"
        raise InvalidRequest(text, field="page_token")
    return int(page_token)

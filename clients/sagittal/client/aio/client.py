"""The client: a connection with all calls of the API. This module has those about explanations and jobs."""

import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Unpack

import grpc

from sagittal.client.aio.batch_calls import AsyncBatchCalls
from sagittal.client.aio.concept_calls import AsyncConceptCalls
from sagittal.client.aio.concurrency import (
    ChannelClosed,
    RequestQueue,
    off_the_loop,
    sleep,
)
from sagittal.client.aio.model_calls import AsyncModelCalls
from sagittal.client.aio.streams import AsyncEventStream, Reading, wait_after
from sagittal.client.base import (
    JobConditions,
    image_request,
    job_filter,
    list_request,
    spec_for,
    wanted_name,
)
from sagittal.client.batch import Images, ManyImages, Outcome
from sagittal.client.errors import (
    ConnectionFailed,
    FailedPrecondition,
    InvalidRequest,
)
from sagittal.client.estimates import Estimate, parse_estimate
from sagittal.client.events import Event, PatchSet
from sagittal.client.explained_image import JobImage
from sagittal.client.explanation import Explanation
from sagittal.client.gathering import attach_image, parse_explanation
from sagittal.client.images import ImageLike
from sagittal.client.jobs import Job, JobChange, parse_change, parse_job
from sagittal.client.models import Model
from sagittal.client.parsing import enum_name
from sagittal.client.region_scores import RegionScores, parse_regions
from sagittal.client.report import IMAGES, report_of_job
from sagittal.client.requests import (
    BatchOptions,
    ExplainOptions,
    RegionOptions,
    build,
    build_regions,
    check_kind,
    check_listener,
    checked_options,
    checked_timeout,
    with_image,
)
from sagittal.client.resume import Cursor
from sagittal.client.tracing import CallSpan
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import explanation_service_pb2 as service_pb


class AsyncClient(AsyncModelCalls):
    """A connection to Sagittal; close it, or use it in an `async with` statement.

    An asyncio client belongs to one event loop. A synchronous client is thread-safe.

    Every method raises `errors.SagittalError`, as the class that the service reported.
    """

    async def explain(
        self,
        image: ImageLike,
        *,
        on_event: Callable[[Event], None] | None = None,
        timeout: float | None = None,
        **options: Unpack[ExplainOptions],
    ) -> Explanation:
        """Explains an image and returns the complete explanation.

        Args:
            image: The image to explain.
            on_event: Called with each event when it arrives.
            timeout: Time to wait for the result, in seconds; then the job is cancelled and `Expired` raised. The option
                `deadline` limits the job itself, which then returns its best result so far.
            options: See `ExplainOptions`.
        """
        check_listener(on_event, "on_event")
        async with await self.stream(image, timeout=timeout, **options) as events:
            async for event in events:
                if on_event is not None:
                    on_event(event)
            return await events.explanation()

    async def stream(
        self,
        image: ImageLike,
        *,
        detach: bool = False,
        timeout: float | None = None,
        **options: Unpack[ExplainOptions],
    ) -> AsyncEventStream:
        """Explains an image and yields events as they arrive; closing the stream cancels the job unless `detach`."""
        began, timeout = time.monotonic(), checked_timeout(timeout)
        spec = await self._spec(image, options)
        request = build(service_pb.ExplainRequest, spec=spec, detach=detach)
        cursor = self._cursor(request, timeout=timeout)
        cursor.began = began

        def open_call(cursor: Cursor) -> Any:
            if cursor.job_id:
                return self._watch(cursor)
            metadata = self._metadata + cursor.span.metadata
            return self._jobs.Explain(request, metadata=metadata, timeout=cursor.remaining)

        reading = Reading(cursor, open_call, self.get, spec)
        return AsyncEventStream(reading, None if detach else partial(self._abandon, cursor.span))

    async def explain_many(
        self, images: Images, *, in_flight: int = 32, **options: Unpack[BatchOptions]
    ) -> AsyncIterator[Outcome]:
        """Explains many images over one call and yields the outcome of each when it ends, in any order.

        An image that fails has an error in its outcome and does not stop the others. An error that concerns every
        image, such as an unknown model, is raised. Images are read in several threads, at most `in_flight` ahead of
        those in flight. Jobs use the batch lane by default. While the service has no room, the images wait.
        """
        if "request_id" in options:
            raise InvalidRequest("a batch has one job per image; omit request_id", field="request_id")
        checked = checked_options({"lane": "batch", "request_id": "", **options})
        model = await self.model(checked["model"], version=checked.get("model_version", ""))
        batch = ManyImages(images, spec_for(checked, model), in_flight=in_flight, retry=self.options.retry)
        cursor = self._cursor(service_pb.ExplainManyRequest())
        cursor.retries_overload = True
        cursor.patience.renew(self.options.retry.stream_seconds)  # the service answered just now
        with batch, cursor.span:
            while not batch.done:
                try:
                    async with contextlib.aclosing(self._run_batch(batch, cursor)) as outcomes:
                        async for outcome in outcomes:
                            yield outcome
                    wait = 0.0 if batch.done else await wait_after(cursor, None)
                except grpc.RpcError as error:
                    wait = await wait_after(cursor, error)
                await sleep(wait)

    async def submit(self, image: ImageLike, **options: Unpack[ExplainOptions]) -> Job:
        """Submits a job and returns immediately; `watch` or `get` it by its `job_id`."""
        request = build(service_pb.SubmitExplanationRequest, spec=await self._spec(image, options))
        response = await self._call(self._jobs.SubmitExplanation, request)
        return parse_job(response.explanation)

    def watch(self, job_id: str, *, after_sequence: int = 0) -> AsyncEventStream:
        """Yields the events of a job after a sequence number, to its end. Closing the stream leaves the job running."""
        check_kind(after_sequence, int, "after_sequence", "a sequence number, 0 for all events")
        request = build(service_pb.WatchExplanationRequest, job_id=job_id, after_sequence=after_sequence)
        cursor = self._cursor(request, job_id=job_id, after_sequence=after_sequence)
        return AsyncEventStream(Reading(cursor, self._watch, self.get))

    async def get(self, job_id: str, *, with_image: bool = False) -> Explanation:
        """Returns the explanation of a job so far, whether it has ended or not.

        Args:
            job_id: The job.
            with_image: Whether to fetch its image, while images are kept, so that the explanation can be drawn.
        """
        request = build(service_pb.GetExplanationRequest, job_id=job_id)
        page = await self._call(self._jobs.GetExplanation, request)
        found = page.explanation
        while page.next_page_token:
            request.page_token = page.next_page_token
            page = await self._call(self._jobs.GetExplanation, request)
            found.MergeFrom(page.explanation)  # appends the events; the rest is newer
        explanation = parse_explanation(found)
        return attach_image(explanation, (await self.image(job_id)).source) if with_image else explanation

    async def job(self, job_id: str) -> Job:
        """Returns the state of a job."""
        request = build(service_pb.GetExplanationRequest, job_id=job_id, page_size=1)
        response = await self._call(self._jobs.GetExplanation, request)
        return parse_job(response.explanation)

    async def spec(self, job_id: str) -> pb.ExplanationSpec:
        """Returns the request of a job, as the API's message without its images, while images are kept."""
        request = build(service_pb.GetExplanationSpecRequest, job_id=job_id)
        return (await self._call(self._jobs.GetExplanationSpec, request)).spec

    async def image(self, job_id: str, kind: str = "original", *, longest: int = 0, mask: int = 0) -> JobImage:
        """Returns an image of a job, while images are kept.

        Args:
            job_id: The job.
            kind: "original" (as it was sent), "model-input", "baseline", "thumbnail" or "overlay".
            longest: Maximum longer side of a thumbnail or overlay, in pixels; 0 for the service's default.
            mask: Index of the final mask that an overlay shows.
        """
        request = image_request(job_id, kind, longest, mask)
        return JobImage.of(await self._call(self._jobs.GetExplanationImage, request))

    async def report(self, job_id: str) -> str:
        """Returns a report of a job: one HTML document with everything, which needs no network and prints well.

        It shows the image while images are kept.
        """
        images: dict[str, JobImage] = {}
        found = await self.get(job_id)
        for kind in IMAGES:
            with contextlib.suppress(FailedPrecondition):  # not kept, or the job has none
                images[kind] = await self.image(job_id, kind)
        return await off_the_loop(report_of_job, found, images)

    async def list(self, **conditions: Unpack[JobConditions]) -> AsyncIterator[Job]:
        """Yields jobs, newest first, those for which all `JobConditions` hold.

        An example: `list(states="failed", reason="JOB_BURIED", labels={"run": "night"})`.
        """
        wanted = job_filter(conditions)
        token = ""
        while True:
            page = await self._call(self._jobs.ListExplanations, list_request(wanted, token))
            for explanation in page.explanations:
                yield parse_job(explanation)
            token = page.next_page_token
            if not token:
                return

    async def count(self, **conditions: Unpack[JobConditions]) -> Mapping[str, int]:
        """Returns how many jobs are in each state, of those for which all `JobConditions` hold."""
        request = build(service_pb.CountExplanationsRequest, filter=job_filter(conditions))
        counts: Counter[str] = Counter()
        while True:
            page = await self._call(self._jobs.CountExplanations, request)
            for each in page.counts:
                counts[enum_name(pb.JobState.DESCRIPTOR, each.state)] += each.count
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return counts

    async def watch_jobs(self, **conditions: Unpack[JobConditions]) -> AsyncGenerator[JobChange, None]:
        """Yields changes of jobs for which all `JobConditions` hold, until it is closed.

        The first is "listening": list the jobs then. After a lost connection it comes again. A job that changes often
        is yielded as it is now, not once for each change.
        """
        request = build(service_pb.WatchJobsRequest, filter=job_filter(conditions))
        cursor = self._cursor(request)
        with cursor.span:
            while True:
                try:
                    call = self._jobs.WatchJobs(request, metadata=self._metadata + cursor.span.metadata)
                except ChannelClosed as error:
                    raise ConnectionFailed("this client is closed; make another") from error
                try:
                    async for message in call:
                        cursor.patience.renew(self.options.retry.stream_seconds)
                        yield parse_change(message)
                    wait = await wait_after(cursor, None)
                except grpc.RpcError as error:
                    wait = await wait_after(cursor, error)
                finally:
                    call.cancel()
                await sleep(wait)

    async def cancel(self, job_id: str) -> Job:
        """Cancels a job. A job that has ended is unchanged; a running job ends at its worker's next step."""
        request = build(service_pb.CancelExplanationRequest, job_id=job_id)
        response = await self._call(self._jobs.CancelExplanation, request)
        return parse_job(response.explanation)

    async def delete(self, job_id: str) -> None:
        """Deletes a job that has ended, with its image and events."""
        await self._call(self._jobs.DeleteExplanation, build(service_pb.DeleteExplanationRequest, job_id=job_id))

    async def retry(self, job_id: str) -> Job:
        """Runs a dead-lettered job again, and returns the new job; the old one is unchanged. Needs the role `admin`."""
        request = build(service_pb.RetryExplanationRequest, job_id=job_id)
        response = await self._call(self._jobs.RetryExplanation, request)
        return parse_job(response.explanation)

    async def score_regions(self, sets: Sequence[PatchSet], **options: Unpack[RegionOptions]) -> RegionScores:
        """Returns the scores if only these patches are shown (or, with `hide`, hidden)."""
        return parse_regions(await self._call(self._jobs.ScoreRegions, build_regions(sets, **options)))

    @property
    def concepts(self) -> AsyncConceptCalls:
        """Calls about concept sets: fit, list, get, update, delete."""
        return AsyncConceptCalls(self._channel, self._metadata, self._call, self._cursor)

    async def estimate(self, *, images: int = 1, **options: Unpack[BatchOptions]) -> Estimate:
        """Estimates what explanations of so many images will cost, from the costs of ended jobs. Nothing is queued."""
        checked = checked_options({"lane": "batch", "request_id": "", **options})
        model = await self.model(checked["model"], version=checked.get("model_version", ""))
        spec = spec_for(checked, model)
        spec.ClearField("request_id")
        request = build(service_pb.EstimateExplanationsRequest, spec=spec, images=images)
        return parse_estimate(await self._call(self._jobs.EstimateExplanations, request))

    @property
    def batches(self) -> AsyncBatchCalls:
        """Calls about batches: create, run, get, list, pause, resume, cancel, retry, delete."""

        async def describe(model: str, version: str) -> Model:
            return await self.model(model, version=version)

        return AsyncBatchCalls(self._channel, self._metadata, self.options, self._call, self._cursor, describe)

    def _watch(self, cursor: Cursor) -> Any:
        request = service_pb.WatchExplanationRequest(job_id=cursor.job_id, after_sequence=cursor.sequence)
        metadata = self._metadata + cursor.span.metadata
        return self._jobs.WatchExplanation(request, metadata=metadata, timeout=cursor.remaining)

    async def _abandon(self, span: CallSpan, job_id: str) -> None:
        """Cancels a job whose caller left, in bounded time. The service also notices the dropped call."""
        with contextlib.suppress(grpc.RpcError, ChannelClosed):
            request = service_pb.CancelExplanationRequest(job_id=job_id)
            await self._jobs.CancelExplanation(request, timeout=2.0, metadata=self._metadata + span.metadata)

    async def _spec(self, image: ImageLike, options: ExplainOptions) -> pb.ExplanationSpec:
        checked, catalogue = checked_options(options), None
        if wanted_name(checked.get("method")) is not None:
            catalogue = await self.model(checked["model"], version=checked.get("model_version", ""))
        return await off_the_loop(with_image, spec_for(checked, catalogue), image)

    async def _run_batch(self, batch: ManyImages, cursor: Cursor) -> AsyncGenerator[Outcome, None]:
        """Yields outcomes over one call, until it ends."""
        requests = RequestQueue()
        requests.put(batch.reopen())
        for refused in await self._send(batch, requests):
            yield refused
        if batch.done:
            return
        try:
            call = self._jobs.ExplainMany(requests, metadata=self._metadata + cursor.span.metadata)
        except ChannelClosed as error:
            raise ConnectionFailed("this client is closed; make another") from error
        try:
            async for response in call:
                cursor.patience.renew(self.options.retry.stream_seconds)
                outcome = batch.admit(response.event)
                if outcome is not None:
                    yield outcome
                if outcome is not None or batch.has_postponed:
                    for refused in await self._send(batch, requests):
                        yield refused
                if batch.done:
                    return
        finally:
            requests.end()
            call.cancel()

    async def _send(self, batch: ManyImages, requests: RequestQueue) -> Sequence[Outcome]:
        """Sends the requests that fit the window; returns outcomes of images that cannot be sent."""
        await sleep(batch.pause)
        ready, refused = await off_the_loop(batch.fill)
        requests.put(ready)
        return refused

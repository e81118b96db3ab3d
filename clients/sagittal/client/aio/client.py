"""One connection to Sagittal and every call over it."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
from google.protobuf.message import Message

from sagittal.client.aio.concept_calls import AsyncConceptCalls
from sagittal.client.aio.concurrency import (
    ChannelClosed,
    RequestQueue,
    UnaryCall,
    off_the_loop,
    open_channel,
    sleep,
)
from sagittal.client.aio.streams import AsyncEventStream, Reading
from sagittal.client.base import BaseClient, list_request, spec_for, wanted_name
from sagittal.client.batch import Batch, Images, Outcome
from sagittal.client.errors import Unavailable, from_rpc_error
from sagittal.client.events import ClassScore, Event, PatchSet
from sagittal.client.explanation import Explanation, Job, parse_explanation, parse_job
from sagittal.client.images import ImageLike, encode_image
from sagittal.client.models import Model, parse_model
from sagittal.client.options import TLS, Options
from sagittal.client.parsing import parse
from sagittal.client.regions import RegionOptions, RegionScores, parse_regions
from sagittal.client.registration import ModelTable, model_message, update_request
from sagittal.client.requests import ExplainOptions, build_regions, build_states
from sagittal.client.resume import Cursor
from sagittal.client.tracing import CallSpan, Metadata
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import explanation_service_pb2 as service_pb
from sagittal.v1 import explanation_service_pb2_grpc as service_grpc
from sagittal.v1 import model_service_pb2 as models_pb
from sagittal.v1 import model_service_pb2_grpc as models_grpc

Answer = TypeVar("Answer")


class AsyncClient(BaseClient):
    """A connection to Sagittal; close it, or use it in an `async with` statement.

    An asyncio client belongs to one event loop. A client for threads is safe to use from several.

    Every method raises `errors.SagittalError`, by the class that the service meant.
    """

    def __init__(
        self,
        address: str = "localhost:50051",
        *,
        token: str = "",
        tls: TLS | None = None,
        options: Options | None = None,
    ) -> None:
        """Prepares a connection, which is made when it is first needed.

        Args:
            address: Host and port, or a `unix:` path.
            token: Bearer token; empty sends none.
            tls: Encrypts the connection; None does not.
            options: Limits and retries.
        """
        super().__init__(address, token=token, tls=tls, options=options)
        self._channel = open_channel(address, tls, self.options.channel_arguments(tls))
        self._jobs = service_grpc.ExplanationServiceStub(self._channel)
        self._models = models_grpc.ModelServiceStub(self._channel)

    async def explain(
        self,
        image: ImageLike,
        *,
        on_event: Callable[[Event], None] | None = None,
        **options: Unpack[ExplainOptions],
    ) -> Explanation:
        """Explains an image and returns the whole explanation; `on_event` is called with each event as it comes."""
        async with await self.stream(image, **options) as events:
            async for event in events:
                if on_event is not None:
                    on_event(event)
            return await events.explanation()

    async def stream(
        self, image: ImageLike, *, detach: bool = False, **options: Unpack[ExplainOptions]
    ) -> AsyncEventStream:
        """Explains an image and yields events as they come; closing the stream cancels the job unless `detach`."""
        request = service_pb.ExplainRequest(spec=await self._spec(image, options), detach=detach)

        def open_call(cursor: Cursor) -> Any:
            return (
                self._watch(cursor)
                if cursor.job_id
                else self._jobs.Explain(request, metadata=self._metadata + cursor.span.metadata)
            )

        cursor = self._cursor(request)
        reading = Reading(cursor, open_call, options["model"])
        return AsyncEventStream(reading, None if detach else partial(self._abandon, cursor.span))

    async def explain_many(
        self, images: Images, *, in_flight: int = 32, **options: Unpack[ExplainOptions]
    ) -> AsyncIterator[Outcome]:
        """Explains many images over one call and yields the outcome of each as it ends, in whatever order.

        One that fails has its error in its outcome and does not stop the others. Images are read as they are needed,
        at most `in_flight` ahead. Jobs go to the batch lane unless told otherwise.
        """
        options.setdefault("lane", "batch")
        catalogue = await self._catalogue(options)
        batch = Batch(
            images,
            lambda image: spec_for(image, catalogue, {**options, "request_id": ""}, options.get("method")),
            model=options["model"],
            in_flight=in_flight,
        )
        cursor = self._cursor(service_pb.ExplainManyRequest())
        with cursor.span:
            while not batch.done:
                try:
                    async with contextlib.aclosing(self._run_batch(batch, cursor)) as outcomes:
                        async for outcome in outcomes:
                            yield outcome
                    wait = 0.0 if batch.done else cursor.wait_after(None)
                except grpc.RpcError as error:
                    wait = cursor.wait_after(error)
                await sleep(wait)

    async def submit(self, image: ImageLike, **options: Unpack[ExplainOptions]) -> Job:
        """Submits a job and returns at once; `watch` or `get` it by its `job_id`."""
        request = service_pb.SubmitExplanationRequest(spec=await self._spec(image, options))
        response = await self._call(self._jobs.SubmitExplanation, request)
        return parse_job(response.explanation)

    def watch(self, job_id: str, *, after_sequence: int = 0) -> AsyncEventStream:
        """Yields the events of a job after a sequence number, to its end. Closing the stream leaves the job alone."""
        request = service_pb.WatchExplanationRequest(job_id=job_id)
        cursor = self._cursor(request, job_id=job_id, after_sequence=after_sequence)
        return AsyncEventStream(Reading(cursor, self._watch, ""))

    async def get(self, job_id: str) -> Explanation:
        """Returns what is known of a job, whether it has ended or not."""
        request = service_pb.GetExplanationRequest(job_id=job_id)
        response = await self._call(self._jobs.GetExplanation, request)
        return parse_explanation(response.explanation)

    async def job(self, job_id: str) -> Job:
        """Returns where a job stands."""
        request = service_pb.GetExplanationRequest(job_id=job_id)
        response = await self._call(self._jobs.GetExplanation, request)
        return parse_job(response.explanation)

    async def list(self, *, model: str = "", states: Sequence[str] = (), reason: str = "") -> AsyncIterator[Job]:
        """Yields jobs, newest first, where given of one model, in some states, or that failed for a reason.

        Args:
            model: Name of the model; empty for any.
            states: "queued", "running", "completed", "failed", "cancelled"; none for any.
            reason: Why they failed, such as "JOB_BURIED"; empty for any.
        """
        numbers, token = build_states(states), ""
        while True:
            page = await self._call(self._jobs.ListExplanations, list_request(model, numbers, reason, token))
            for explanation in page.explanations:
                yield parse_job(explanation)
            token = page.next_page_token
            if not token:
                return

    async def cancel(self, job_id: str) -> Job:
        """Cancels a job. One that has ended stays as it is; one that runs ends at its worker's next step."""
        request = service_pb.CancelExplanationRequest(job_id=job_id)
        response = await self._call(self._jobs.CancelExplanation, request)
        return parse_job(response.explanation)

    async def delete(self, job_id: str) -> None:
        """Deletes a job that has ended, with its image and events."""
        await self._call(self._jobs.DeleteExplanation, service_pb.DeleteExplanationRequest(job_id=job_id))

    async def retry(self, job_id: str) -> Job:
        """Runs a buried job again and returns the new job; the buried one stays as it is. For administrators."""
        request = service_pb.RetryExplanationRequest(job_id=job_id)
        response = await self._call(self._jobs.RetryExplanation, request)
        return parse_job(response.explanation)

    async def score_regions(self, sets: Sequence[PatchSet], **options: Unpack[RegionOptions]) -> RegionScores:
        """Answers "what if": the score when only these patches are shown (or, with `hide`, hidden)."""
        return parse_regions(await self._call(self._jobs.ScoreRegions, build_regions(sets, **options)))

    async def models(self) -> AsyncIterator[Model]:
        """Yields the registered models by name and version, without labels and methods."""
        token = ""
        while True:
            page = await self._call(self._models.ListModels, models_pb.ListModelsRequest(page_token=token))
            for model in page.models:
                yield parse_model(model)
            token = page.next_page_token
            if not token:
                return

    async def model(self, name: str, *, version: str = "") -> Model:
        """Returns a model, whole; an empty version means the latest."""
        request = models_pb.GetModelRequest(name=name, version=version)
        response = await self._call(self._models.GetModel, request)
        return parse_model(response.model)

    async def register_model(self, model: ModelTable) -> Model:
        """Registers a version of a model, given as a `[[models]]` table of a model file; needs the role `admin`.

        Workers load and check it: `model(...)` shows how that went.
        """
        request = models_pb.RegisterModelRequest(model=model_message(model))
        response = await self._call(self._models.RegisterModel, request)
        return parse_model(response.model)

    async def update_model(self, model: ModelTable, *, fields: Sequence[str] = ()) -> Model:
        """Changes a registered version: the named fields, or all of it where none is named.

        `fields=["latest"]` with `latest=True` makes a version the one that requests without a version get.
        """
        response = await self._call(self._models.UpdateModel, update_request(model, fields))
        return parse_model(response.model)

    async def unregister_model(self, name: str, version: str) -> None:
        """Removes a version; running jobs finish on it, queued ones are cancelled."""
        await self._call(self._models.UnregisterModel, models_pb.UnregisterModelRequest(name=name, version=version))

    async def load_model(self, name: str, *, version: str = "") -> None:
        """Asks workers to load a model, those too that could not load it before."""
        await self._call(self._models.LoadModel, models_pb.LoadModelRequest(name=name, version=version))

    async def unload_model(self, name: str, *, version: str = "") -> None:
        """Asks workers to unload a model when no job runs on it; a later job loads it again."""
        await self._call(self._models.UnloadModel, models_pb.UnloadModelRequest(name=name, version=version))

    async def predict(
        self, image: ImageLike, *, model: str, model_version: str = "", top: int = 5
    ) -> Sequence[ClassScore]:
        """Returns the model's most probable classes, best first."""
        request = models_pb.PredictRequest(
            model=model, model_version=model_version, image=encode_image(image, field="image"), top=top
        )
        response = await self._call(self._models.Predict, request)
        return tuple(parse(ClassScore, each) for each in response.top)

    @property
    def concepts(self) -> AsyncConceptCalls:
        """Concept sets: fitted, listed, named."""
        return AsyncConceptCalls(self._channel, self._metadata, self._call, self._cursor)

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, method: UnaryCall[Answer], request: Message) -> Answer:
        """Makes a call that may be repeated, and repeats it while the service is away."""
        with self._span(request) as span:
            return await self._repeat(method, request, self._metadata + span.metadata)

    async def _repeat(self, method: UnaryCall[Answer], request: Message, metadata: Metadata) -> Answer:
        patience = self._call_patience()
        while True:
            try:
                return await method(request, timeout=self.options.timeout, metadata=metadata)
            except grpc.RpcError as error:
                failure = from_rpc_error(error, address=self.address)
                if not isinstance(failure, Unavailable):
                    raise failure from error
                wait = patience.wait_after(failure)
            await sleep(wait)

    def _watch(self, cursor: Cursor) -> Any:
        request = service_pb.WatchExplanationRequest(job_id=cursor.job_id, after_sequence=cursor.sequence)
        return self._jobs.WatchExplanation(request, metadata=self._metadata + cursor.span.metadata)

    async def _abandon(self, span: CallSpan, job_id: str) -> None:
        """Cancels a job whose caller went away, in bounded time. The service sees the dropped call anyway."""
        with contextlib.suppress(grpc.RpcError, ChannelClosed):
            request = service_pb.CancelExplanationRequest(job_id=job_id)
            await self._jobs.CancelExplanation(request, timeout=2.0, metadata=self._metadata + span.metadata)

    async def _catalogue(self, options: ExplainOptions) -> Model | None:
        if wanted_name(options.get("method")) is None:
            return None
        return await self.model(options["model"], version=options.get("model_version", ""))

    async def _spec(self, image: ImageLike, options: ExplainOptions) -> pb.ExplanationSpec:
        catalogue = await self._catalogue(options)
        return await off_the_loop(spec_for, image, catalogue, options, options.get("method"))

    async def _run_batch(self, batch: Batch, cursor: Cursor) -> AsyncGenerator[Outcome, None]:
        """Yields outcomes over one call, until it ends."""
        requests = RequestQueue()
        requests.put(batch.reopen())
        for refused in await self._send(batch, requests):
            yield refused
        call = self._jobs.ExplainMany(requests, metadata=self._metadata + cursor.span.metadata)
        try:
            if batch.done:
                return
            async for response in call:
                cursor.patience.renew(self.options.retry.stream_seconds)
                outcome = batch.admit(response.event)
                if outcome is not None:
                    yield outcome
                    for refused in await self._send(batch, requests):
                        yield refused
                if batch.done:
                    return
        finally:
            requests.end()
            call.cancel()

    async def _send(self, batch: Batch, requests: RequestQueue) -> Sequence[Outcome]:
        """Sends what may go out now; returns outcomes of images that cannot be sent."""
        ready, refused = await off_the_loop(batch.fill)
        requests.put(ready)
        return refused

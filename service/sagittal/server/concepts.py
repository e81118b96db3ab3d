"""ConceptService: workers fit concept sets; the service itself lists, returns, updates and deletes them."""
# ruff: noqa: N802 - names and signatures are those of the API

import asyncio
import contextlib
import hashlib
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import structlog

from sagittal.core.annotated_parts import attachment_of, check_parts
from sagittal.core.bounds import MAX_CHANGES, check_bounds
from sagittal.core.errors import Expired, InvalidRequest, NotFound, SagittalError
from sagittal.core.jobs import CachePolicy, Job, JobKind, Lane, NewJob, new_job_id
from sagittal.core.requests import check_request_id
from sagittal.core.targets import resolve_target
from sagittal.core.text import shown
from sagittal.queue.protocol import JobQueue
from sagittal.registry.concept_changes import apply_changes
from sagittal.registry.concept_files import ConceptFiles
from sagittal.registry.concept_sets import ConceptSets, join_examples
from sagittal.server.catalogue import Catalogue
from sagittal.server.intake import Intake
from sagittal.server.relay import Relay
from sagittal.server.rpc.access import Caller, current_caller
from sagittal.server.rpc.layers import Context
from sagittal.server.settings import ConceptLimits
from sagittal.v1 import concept_pb2, concept_service_pb2, concept_service_pb2_grpc, explanation_pb2, model_pb2

#: Valid names of sets.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")

#: Longest time to read the rest of a refused upload, and the silence that ends it earlier, in seconds.
_REST_SECONDS = 30.0
_SILENCE_SECONDS = 1.0

Requests = AsyncIterator[concept_service_pb2.FitConceptsRequest]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A fit that a call requests.

    The images of the call are stored one by one; the job that uses them is queued after the last.
    """

    job: NewJob
    settings: concept_service_pb2.FitConceptsSettings
    model: model_pb2.Model


class ConceptFits:
    """Turns FitConcepts calls into jobs."""

    def __init__(
        self, queue: JobQueue, catalogue: Catalogue, intake: Intake, files: ConceptFiles, limits: ConceptLimits
    ) -> None:
        self._queue = queue
        self._files = files
        self._catalogue = catalogue
        self._intake = intake
        self._limits = limits

    async def read(self, requests: Requests, caller: Caller) -> Asked:
        """Reads a call to its end, stores its images, and validates it.

        The rest of a refused call is read and discarded, within limits.

        Raises:
            InvalidRequest: the settings are wrong, or there are too many images or none.
            FailedPrecondition: no storage for concept sets is configured.
            Overloaded: there is no room for the images.
        """
        try:
            return await self._read(requests, caller)
        except SagittalError:
            await _discard(requests, self._limits)
            raise

    async def _read(self, requests: Requests, caller: Caller) -> Asked:
        with self._intake.counting_refusals():
            settings = await _first(requests)
            model = await self._check(settings)
            self._files.check("service")
            job_id = new_job_id()
            await self._attach(requests, settings, job_id, caller)
            settings.model_version = model.version
            seconds = _seconds(settings) or self._limits.fit_deadline
            if seconds > self._limits.fit_deadline:
                text = f"settings.deadline is {seconds:g} s; give at most {self._limits.fit_deadline:g} s"
                raise InvalidRequest(text, field="settings.deadline")
            job = NewJob(
                job_id=job_id,
                kind=JobKind.FIT,
                model=model.name,
                version=model.version,
                method="",
                lane=Lane.BATCH,
                request=settings.SerializeToString(),
                deadline=time.time() + seconds,
                tenant=caller.tenant,
                cache=CachePolicy.BYPASS,
                estimated_evaluations=settings.image_count * (1 + settings.fit.views),
                trace_context=caller.trace_context,
                request_id=settings.request_id,
            )
            return Asked(job=job, settings=settings, model=model)

    async def queue(self, asked: Asked) -> tuple[Job, bool]:
        """Queues a fit; returns the job and whether it is new. Raises Overloaded."""
        with self._intake.counting_refusals():
            return await self._intake.submit(asked.job, asked.model)

    async def _check(self, settings: concept_service_pb2.FitConceptsSettings) -> model_pb2.Model:
        model = await self._catalogue.model(settings.model, settings.model_version, field="settings.model")
        check_request_id(settings.request_id, "settings.request_id")
        check_name(settings.name, "settings.name")
        if not settings.targets:
            text = "settings.targets is empty; give the classes whose outputs the concepts predict"
            raise InvalidRequest(text, field="settings.targets")
        found = [
            resolve_target(target, model, f"settings.targets[{number}]")
            for number, target in enumerate(settings.targets)
        ]
        if len(set(found)) < len(found):
            raise InvalidRequest("settings.targets names a class twice; give each once", field="settings.targets")
        for target, index in zip(settings.targets, found, strict=True):
            target.index = index
        return model

    async def _attach(
        self, requests: Requests, settings: concept_service_pb2.FitConceptsSettings, job_id: str, caller: Caller
    ) -> None:
        """Stores the images as they arrive, and sets their number and digests in the settings."""
        digest, annotations, count, size = hashlib.sha256(), hashlib.sha256(), 0, 0
        annotated = False
        async for request in requests:
            check_bounds(request)
            if request.WhichOneof("part") != "image":
                raise InvalidRequest(
                    "settings is set in a later message; send it only in the first message, and images after it",
                    field="settings",
                )
            part = request.image.SerializeToString(deterministic=True)
            parts = _annotations(request, count)
            count, size = count + 1, size + len(part) + len(parts)
            self._check_size(settings, count, size)
            digest.update(hashlib.sha256(part).digest())
            await self._queue.attach(job_id, str(count - 1), part, tenant=caller.tenant)
            annotations.update(hashlib.sha256(parts).digest())
            if parts:
                annotated = True
                await self._queue.attach(job_id, attachment_of(count - 1), parts, tenant=caller.tenant)
        if not settings.dataset and not count:
            raise InvalidRequest(
                "there are no images; send images after the settings, or set settings.dataset", field="image"
            )
        settings.image_count, settings.images_digest = count, digest.hexdigest()
        settings.annotations_digest = annotations.hexdigest() if annotated else ""

    def _check_size(self, settings: concept_service_pb2.FitConceptsSettings, count: int, size: int) -> None:
        if settings.dataset:
            text = f"settings.dataset is {shown(settings.dataset)}, and images were sent; give one or the other"
            raise InvalidRequest(text, field="settings.dataset")
        if count > self._limits.max_images:
            text = (
                f"there are more than {self._limits.max_images:,} images; send fewer, or use a dataset of the workers"
            )
            raise InvalidRequest(text, field="image")
        if size > self._limits.max_bytes:
            text = f"the images have more than {self._limits.max_bytes:,} bytes together; send fewer or smaller ones"
            raise InvalidRequest(text, field="image")


async def _discard(requests: Requests, limits: ConceptLimits) -> None:
    """Reads the rest of a refused call until it ends or pauses, within the limits of a fit.

    If a call ends while gRPC's asyncio client sends a message, the client replaces the call's status with its own
    error.
    """
    size, until = 0, time.monotonic() + _REST_SECONDS
    with contextlib.suppress(TimeoutError, StopAsyncIteration, SagittalError):
        for _ in range(limits.max_images):
            request = await asyncio.wait_for(anext(requests), min(_SILENCE_SECONDS, until - time.monotonic()))
            size += request.ByteSize()
            if size > limits.max_bytes:
                return


def check_name(name: str, field: str) -> None:
    """Raises InvalidRequest if the name of a set is invalid."""
    if not _NAME.match(name):
        text = f"{field} is {shown(name)}; give 1 to 64 letters, digits, dots, dashes or underscores"
        raise InvalidRequest(text, field=field)


def _annotations(request: concept_service_pb2.FitConceptsRequest, number: int) -> bytes:
    """Returns the annotated parts of an image in their stored form; empty if there are none."""
    check_parts(request.annotated_parts, f"image {number}")
    only = concept_service_pb2.FitConceptsRequest(annotated_parts=request.annotated_parts)
    return only.SerializeToString(deterministic=True)


async def _first(requests: Requests) -> concept_service_pb2.FitConceptsSettings:
    async for request in requests:
        check_bounds(request)
        if request.annotated_parts:
            raise InvalidRequest(
                "annotated_parts is set beside the settings; send it with an image", field="annotated_parts"
            )
        if request.WhichOneof("part") == "settings":
            return request.settings
        break
    raise InvalidRequest(
        "the first message has no settings; send the settings first, and images after them", field="settings"
    )


def _seconds(settings: concept_service_pb2.FitConceptsSettings) -> float:
    if not settings.HasField("deadline"):
        return 0.0
    seconds = settings.deadline.seconds + settings.deadline.nanos / 1e9
    if seconds <= 0:
        raise InvalidRequest(f"settings.deadline is {seconds:g} s; give more than 0 s", field="settings.deadline")
    return float(seconds)


#: Default and largest number of sets on a page.
DEFAULT_PAGE, MAX_PAGE = 50, 1_000


class ConceptServicer(concept_service_pb2_grpc.ConceptServiceServicer):
    """Serves ConceptService."""

    def __init__(
        self,
        catalogue: Catalogue,
        relay: Relay,
        fits: ConceptFits,
        sets: ConceptSets,
        files: ConceptFiles,
        limits: ConceptLimits,
    ) -> None:
        self._catalogue = catalogue
        self._relay = relay
        self._fits = fits
        self._sets = sets
        self._files = files
        self._limits = limits

    async def FitConcepts(
        self, request_iterator: AsyncIterator[concept_service_pb2.FitConceptsRequest], context: Context
    ) -> AsyncGenerator[concept_service_pb2.FitConceptsResponse, None]:
        """Fits a set; a dropped call cancels the job it created, unless detached."""
        asked = await self._fits.read(request_iterator, current_caller())
        settings, accepting = asked.settings, self._fits.queue(asked)
        job, is_new = await (accepting if settings.detach else self._relay.accepted(accepting, rpc="FitConcepts"))
        structlog.contextvars.bind_contextvars(job_id=job.job_id)
        owned = is_new and not settings.detach
        events = self._relay.owned_events(job, rpc="FitConcepts") if owned else self._relay.events(job)
        last = ""
        async with aclosing(events):
            async for event in events:
                last = event.WhichOneof("event") or ""
                yield concept_service_pb2.FitConceptsResponse(job=event)
                if event.HasField("progress") and event.progress.terms:
                    yield concept_service_pb2.FitConceptsResponse(loss=_loss(event.progress))
        if last == "completed":
            whole = await self._whole(settings.model, settings.name)
            yield concept_service_pb2.FitConceptsResponse(concept_set=whole)

    async def ListConceptSets(
        self, request: concept_service_pb2.ListConceptSetsRequest, context: Context
    ) -> concept_service_pb2.ListConceptSetsResponse:
        """Returns a page of the tenant's sets, without examples."""
        if request.page_size > MAX_PAGE:
            text = f"page_size is {request.page_size}; give 1 to {MAX_PAGE:,}, or 0 for {DEFAULT_PAGE}"
            raise InvalidRequest(text, field="page_size")
        limit, tenant = request.page_size or DEFAULT_PAGE, current_caller().tenant
        found, token = await self._sets.list(tenant, request.model, limit=limit, page_token=request.page_token)
        if request.model and not found:
            await self._catalogue.model(request.model, "", field="model")
        return concept_service_pb2.ListConceptSetsResponse(concept_sets=found, next_page_token=token)

    async def GetConceptSet(
        self, request: concept_service_pb2.GetConceptSetRequest, context: Context
    ) -> concept_service_pb2.GetConceptSetResponse:
        """Returns a set with all fields."""
        async with self._found(request.model):
            whole = await self._whole(request.model, request.name)
        return concept_service_pb2.GetConceptSetResponse(concept_set=whole)

    async def UpdateConceptSet(
        self, request: concept_service_pb2.UpdateConceptSetRequest, context: Context
    ) -> concept_service_pb2.UpdateConceptSetResponse:
        """Names, merges or marks x-features; applies all changes or none."""
        if not request.changes:
            raise InvalidRequest(f"changes is empty; give 1 to {MAX_CHANGES:,}", field="changes")
        model, name = request.model, request.name
        change = partial(apply_changes, changes=request.changes)
        async with self._found(model):
            await self._whole(model, name)  # if it cannot be returned, it must not be updated either
            await self._sets.update(current_caller().tenant, model, name, change)
            whole = await self._whole(model, name)
        return concept_service_pb2.UpdateConceptSetResponse(concept_set=whole)

    async def DeleteConceptSet(
        self, request: concept_service_pb2.DeleteConceptSetRequest, context: Context
    ) -> concept_service_pb2.DeleteConceptSetResponse:
        """Deletes a set."""
        async with self._found(request.model):
            check_name(request.name, "name")
            await self._sets.delete(current_caller().tenant, request.model, request.name)
        return concept_service_pb2.DeleteConceptSetResponse()

    @asynccontextmanager
    async def _found(self, model: str) -> AsyncIterator[None]:
        """Raises UnknownModel instead of NotFound if the model does not exist either."""
        try:
            yield
        except NotFound:
            await self._catalogue.model(model, "", field="model")
            raise

    async def _whole(self, model: str, name: str) -> concept_pb2.ConceptSet:
        """Returns a set with its examples."""
        check_name(name, "name")
        self._files.check("service")
        try:
            async with asyncio.timeout(self._limits.answer_deadline):
                return await self._read(current_caller().tenant, model, name)
        except TimeoutError:
            seconds = self._limits.answer_deadline
            raise Expired(f"the files of the concept set were not read within {seconds:g} s: try again") from None

    async def _read(self, tenant: str, model: str, name: str) -> concept_pb2.ConceptSet:
        for last in (False, True):
            stored = await self._sets.get(tenant, model, name)
            try:
                examples = await asyncio.to_thread(self._files.read, stored.examples)
            except NotFound:
                if last:
                    raise
                continue  # the set was fitted again or deleted meanwhile
            return join_examples(stored.description, examples)
        raise AssertionError("the last iteration returns or raises")


def _loss(progress: explanation_pb2.Progress) -> concept_service_pb2.FitLoss:
    terms = progress.terms
    return concept_service_pb2.FitLoss(
        epoch=int(terms["epoch"]),
        faithfulness=terms["faithfulness"],
        reconstruction=terms["reconstruction"],
        pull_away=terms["pull_away"],
    )

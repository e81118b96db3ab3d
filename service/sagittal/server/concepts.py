"""ConceptService: concept sets are fitted, listed, returned, named and deleted, all by the workers that store them."""
# ruff: noqa: N802 - names and signatures are those of the API

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import structlog
from google.protobuf.message import Message

from sagittal.core.bounds import MAX_CHANGES
from sagittal.core.errors import InvalidRequest, UnknownModel
from sagittal.core.jobs import JobKind
from sagittal.server.access import current_caller
from sagittal.server.catalogue import Catalogue, ready_workers
from sagittal.server.concept_fits import ConceptFits
from sagittal.server.inquiries import outcome, time_left
from sagittal.server.intake import Intake
from sagittal.server.layers import Context
from sagittal.server.relay import Relay
from sagittal.server.settings import ConceptLimits
from sagittal.v1 import concept_pb2, concept_service_pb2, concept_service_pb2_grpc, explanation_pb2, model_pb2

#: Most sets on a page.
MAX_PAGE = 1_000


class ConceptServicer(concept_service_pb2_grpc.ConceptServiceServicer):
    """Serves concept sets."""

    def __init__(
        self, catalogue: Catalogue, intake: Intake, relay: Relay, fits: ConceptFits, limits: ConceptLimits
    ) -> None:
        self._catalogue = catalogue
        self._intake = intake
        self._relay = relay
        self._fits = fits
        self._limits = limits

    async def FitConcepts(
        self, request_iterator: AsyncIterator[concept_service_pb2.FitConceptsRequest], context: Context
    ) -> AsyncGenerator[concept_service_pb2.FitConceptsResponse, None]:
        """Fits a set; a dropped call cancels the job that it made, unless detached."""
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
            request = concept_service_pb2.GetConceptSetRequest(model=settings.model, name=settings.name)
            described = concept_pb2.ConceptSet()
            seconds = self._limits.answer_deadline
            await self._ask(JobKind.CONCEPT_SET, asked.model, request, described, "FitConcepts", seconds)
            yield concept_service_pb2.FitConceptsResponse(concept_set=described)

    async def ListConceptSets(
        self, request: concept_service_pb2.ListConceptSetsRequest, context: Context
    ) -> concept_service_pb2.ListConceptSetsResponse:
        """Returns a page of the tenant's sets, without examples."""
        if request.page_size > MAX_PAGE:
            text = f"page_size is {request.page_size}; give 1 to {MAX_PAGE:,}, or 0 for 50"
            raise InvalidRequest(text, field="page_size")
        answer = concept_service_pb2.ListConceptSetsResponse()
        model = await self._model(request.model) if request.model else await self._any_model()
        seconds = time_left(context, self._limits.answer_deadline)
        await self._ask(JobKind.CONCEPT_SETS, model, request, answer, "ListConceptSets", seconds)
        return answer

    async def GetConceptSet(
        self, request: concept_service_pb2.GetConceptSetRequest, context: Context
    ) -> concept_service_pb2.GetConceptSetResponse:
        """Returns a set, whole."""
        described, model = concept_pb2.ConceptSet(), await self._model(request.model)
        seconds = time_left(context, self._limits.answer_deadline)
        await self._ask(JobKind.CONCEPT_SET, model, request, described, "GetConceptSet", seconds)
        return concept_service_pb2.GetConceptSetResponse(concept_set=described)

    async def UpdateConceptSet(
        self, request: concept_service_pb2.UpdateConceptSetRequest, context: Context
    ) -> concept_service_pb2.UpdateConceptSetResponse:
        """Names, merges or marks x-features, all changes or none."""
        if not request.changes:
            raise InvalidRequest(f"changes is empty; give 1 to {MAX_CHANGES:,}", field="changes")
        described, model = concept_pb2.ConceptSet(), await self._model(request.model)
        seconds = time_left(context, self._limits.answer_deadline)
        await self._ask(JobKind.CONCEPT_UPDATE, model, request, described, "UpdateConceptSet", seconds)
        return concept_service_pb2.UpdateConceptSetResponse(concept_set=described)

    async def DeleteConceptSet(
        self, request: concept_service_pb2.DeleteConceptSetRequest, context: Context
    ) -> concept_service_pb2.DeleteConceptSetResponse:
        """Deletes a set."""
        answer, model = concept_service_pb2.DeleteConceptSetResponse(), await self._model(request.model)
        seconds = time_left(context, self._limits.answer_deadline)
        await self._ask(JobKind.CONCEPT_DELETION, model, request, answer, "DeleteConceptSet", seconds)
        return answer

    async def _model(self, name: str) -> model_pb2.Model:
        return await self._catalogue.model(name, "", field="model")

    async def _any_model(self) -> model_pb2.Model:
        """Returns a model whose workers can answer for all, since they share the store."""
        models = await self._catalogue.models()
        if not models:
            raise UnknownModel("there is no model, and so no concept set: start a worker", field="model")
        return max(models, key=ready_workers)

    async def _ask(
        self, kind: JobKind, model: model_pb2.Model, request: Message, answer: Message, rpc: str, seconds: float
    ) -> None:
        """Asks a worker, and writes what it says to `answer`."""
        with self._intake.counting_refusals():
            job = await self._intake.inquire(kind, model, request.SerializeToString(), {}, current_caller(), seconds)
        events = await outcome(self._relay, job, model, rpc=rpc, seconds=seconds)
        events["answer"].answer.Unpack(answer)


def _loss(progress: explanation_pb2.Progress) -> concept_service_pb2.FitLoss:
    terms = progress.terms
    return concept_service_pb2.FitLoss(
        epoch=int(terms["epoch"]),
        faithfulness=terms["faithfulness"],
        reconstruction=terms["reconstruction"],
        pull_away=terms["pull_away"],
    )

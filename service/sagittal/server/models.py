"""ModelService: what can be explained, and what a model says of a picture."""
# ruff: noqa: N802, ARG002 - names and signatures are those of the API

import asyncio
from contextlib import aclosing

import structlog

from sagittal.core.errors import Expired, InvalidRequest, JobFailed
from sagittal.core.jobs import Job
from sagittal.core.status import from_status
from sagittal.server.access import current_caller
from sagittal.server.catalogue import Catalogue, ready_workers
from sagittal.server.intake import Intake
from sagittal.server.layers import Context
from sagittal.server.relay import Relay
from sagittal.server.unserved import refuses_the_rest
from sagittal.v1 import model_pb2, model_service_pb2, model_service_pb2_grpc

#: Models on a page where the request does not say.
DEFAULT_PAGE = 100

#: Most models on a page.
MAX_PAGE = 1_000

#: Time that a worker has beyond a prediction's deadline to say that it passed, in seconds.
_GRACE = 1.0


@refuses_the_rest(model_service_pb2.DESCRIPTOR.services_by_name["ModelService"])
class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    """Serves models from the registry, and predictions from the queue."""

    def __init__(self, catalogue: Catalogue, intake: Intake, relay: Relay, predict_deadline: float) -> None:
        self._catalogue = catalogue
        self._intake = intake
        self._relay = relay
        self._predict_deadline = predict_deadline

    async def ListModels(
        self, request: model_service_pb2.ListModelsRequest, context: Context
    ) -> model_service_pb2.ListModelsResponse:
        """Returns a page of models by name and version, without labels and methods."""
        if request.page_size > MAX_PAGE:
            text = f"page_size is {request.page_size}; give 1 to {MAX_PAGE:,}, or 0 for {DEFAULT_PAGE}"
            raise InvalidRequest(text, field="page_size")
        models = sorted(await self._catalogue.models(), key=_token)
        rest = [model for model in models if _token(model) > request.page_token]
        page = rest[: request.page_size or DEFAULT_PAGE]
        more = len(rest) > len(page)
        return model_service_pb2.ListModelsResponse(
            models=[_summary(model) for model in page], next_page_token=_token(page[-1]) if more else ""
        )

    async def GetModel(
        self, request: model_service_pb2.GetModelRequest, context: Context
    ) -> model_service_pb2.GetModelResponse:
        """Returns one model, whole."""
        model = await self._catalogue.model(request.name, request.version, field="name")
        return model_service_pb2.GetModelResponse(model=model)

    async def Predict(
        self, request: model_service_pb2.PredictRequest, context: Context
    ) -> model_service_pb2.PredictResponse:
        """Runs a prediction as a job that people wait for, and returns its answer."""
        remaining = context.time_remaining()
        deadline = min(self._predict_deadline, remaining if remaining is not None else self._predict_deadline)
        job, model = await self._intake.predict(request, current_caller(), deadline)
        structlog.contextvars.bind_contextvars(job_id=job.job_id)
        try:
            async with asyncio.timeout(deadline + _GRACE):
                return await self._answer(job)
        except TimeoutError:
            raise Expired(_too_late(model, deadline)) from None

    async def _answer(self, job: Job) -> model_service_pb2.PredictResponse:
        response = model_service_pb2.PredictResponse(model_version=job.version)
        async with aclosing(self._relay.owned_events(job, rpc="Predict")) as events:
            async for event in events:
                kind = event.WhichOneof("event")
                if kind == "prediction":
                    response.top.extend(event.prediction.top)
                elif kind == "completed":
                    response.model_digest = event.completed.model_digest
                    return response
                elif kind == "failed":
                    raise from_status(event.failed)
                elif kind == "cancelled":
                    raise JobFailed(f"the prediction was cancelled: {event.cancelled.reason}")
        raise JobFailed("the prediction's log ended without an answer")


def _token(model: model_pb2.Model) -> str:
    return f"{model.name}/{model.version}"


def _summary(model: model_pb2.Model) -> model_pb2.Model:
    summary = model_pb2.Model()
    summary.CopyFrom(model)
    summary.ClearField("labels")
    summary.ClearField("methods")
    return summary


def _too_late(model: model_pb2.Model, deadline: float) -> str:
    workers = ready_workers(model)
    why = f"{workers} workers have {model.name} ready" if workers else f"no worker has {model.name} ready"
    return f"no answer within {deadline:g} s: {why}"

"""ModelService: what can be explained, and what a model says of a picture."""
# ruff: noqa: N802 - names and signatures are those of the API

from sagittal.core.errors import InvalidRequest
from sagittal.server.access import current_caller
from sagittal.server.catalogue import Catalogue
from sagittal.server.inquiries import outcome, time_left
from sagittal.server.intake import Intake
from sagittal.server.layers import Context
from sagittal.server.registration import Registration
from sagittal.server.relay import Relay
from sagittal.v1 import model_pb2, model_service_pb2, model_service_pb2_grpc

#: Models on a page where the request does not say.
DEFAULT_PAGE = 100

#: Most models on a page.
MAX_PAGE = 1_000


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    """Serves models from the registry, and predictions from the queue."""

    def __init__(
        self,
        catalogue: Catalogue,
        registration: Registration,
        intake: Intake,
        relay: Relay,
        predict_deadline: float,
    ) -> None:
        self._catalogue = catalogue
        self._registration = registration
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

    async def RegisterModel(
        self, request: model_service_pb2.RegisterModelRequest, context: Context
    ) -> model_service_pb2.RegisterModelResponse:
        """Registers a version of a model."""
        return model_service_pb2.RegisterModelResponse(model=await self._registration.register(request.model))

    async def UpdateModel(
        self, request: model_service_pb2.UpdateModelRequest, context: Context
    ) -> model_service_pb2.UpdateModelResponse:
        """Changes a registered version."""
        return model_service_pb2.UpdateModelResponse(model=await self._registration.update(request))

    async def UnregisterModel(
        self, request: model_service_pb2.UnregisterModelRequest, context: Context
    ) -> model_service_pb2.UnregisterModelResponse:
        """Removes a version."""
        await self._registration.unregister(request.name, request.version)
        return model_service_pb2.UnregisterModelResponse()

    async def LoadModel(
        self, request: model_service_pb2.LoadModelRequest, context: Context
    ) -> model_service_pb2.LoadModelResponse:
        """Asks workers to load a model."""
        await self._registration.wish(request.name, request.version, "load")
        return model_service_pb2.LoadModelResponse()

    async def UnloadModel(
        self, request: model_service_pb2.UnloadModelRequest, context: Context
    ) -> model_service_pb2.UnloadModelResponse:
        """Asks workers to unload a model."""
        await self._registration.wish(request.name, request.version, "unload")
        return model_service_pb2.UnloadModelResponse()

    async def Predict(
        self, request: model_service_pb2.PredictRequest, context: Context
    ) -> model_service_pb2.PredictResponse:
        """Runs a prediction as a job that people wait for, and returns its answer."""
        seconds = time_left(context, self._predict_deadline)
        job, model = await self._intake.predict(request, current_caller(), seconds)
        events = await outcome(self._relay, job, model, rpc="Predict", seconds=seconds)
        return model_service_pb2.PredictResponse(
            top=events["prediction"].prediction.top if "prediction" in events else (),
            model_digest=events["completed"].completed.model_digest,
            model_version=job.version,
        )


def _token(model: model_pb2.Model) -> str:
    return f"{model.name}/{model.version}"


def _summary(model: model_pb2.Model) -> model_pb2.Model:
    summary = model_pb2.Model()
    summary.CopyFrom(model)
    summary.ClearField("labels")
    summary.ClearField("methods")
    return summary

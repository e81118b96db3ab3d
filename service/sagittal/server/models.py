"""ModelService: lists and registers models, and predicts their classes for an image."""
# ruff: noqa: N802 - names and signatures are those of the API

from collections.abc import Iterable

import structlog

from sagittal.core.errors import InvalidRequest
from sagittal.core.jobs import JobFilter, JobState
from sagittal.core.models import DECLARED, declaration_of, entry_of
from sagittal.core.text import shown
from sagittal.queue.protocol import JobQueue
from sagittal.registry.protocol import ModelRegistry, Wish
from sagittal.server.catalogue import Catalogue
from sagittal.server.intake import Intake
from sagittal.server.relay import Relay, outcome, time_left
from sagittal.server.rpc.access import current_caller
from sagittal.server.rpc.layers import Context
from sagittal.v1 import model_pb2, model_service_pb2, model_service_pb2_grpc

#: Jobs per page when the queued jobs of a removed model are cancelled.
_PAGE = 100

#: Fields that an update mask may name.
_MASKABLE = DECLARED - {"name", "version"} | {"latest"}

_log = structlog.get_logger(__name__)


class Registration:
    """Changes the registry for administrators. Declarations are checked here; other fields come from workers."""

    def __init__(self, registry: ModelRegistry, catalogue: Catalogue, queue: JobQueue) -> None:
        self._registry = registry
        self._catalogue = catalogue
        self._queue = queue

    async def register(self, model: model_pb2.Model) -> model_pb2.Model:
        """Registers a model version and returns it. Raises InvalidRequest, ModelExists."""
        entry = entry_of(model)
        await self._registry.register(declaration_of(entry), latest=entry.latest)
        _log.info("model-registered", model=entry.name, version=entry.version, source=entry.source["kind"])
        return await self._current(*entry.key)

    async def update(self, request: model_service_pb2.UpdateModelRequest) -> model_pb2.Model:
        """Updates a registered version and returns it. Raises InvalidRequest, UnknownModel, FailedPrecondition."""
        asked = request.model
        before = await self._find(asked.name, asked.version)
        wanted = _masked(before, asked, request.update_mask.paths) if request.HasField("update_mask") else asked
        entry = entry_of(wanted)
        await self._registry.update(declaration_of(entry), revision=before.revision, latest=entry.latest)
        _log.info("model-updated", model=entry.name, version=entry.version, fields=list(request.update_mask.paths))
        return await self._current(*entry.key)

    async def unregister(self, name: str, version: str) -> None:
        """Removes a version and cancels its queued jobs. Raises InvalidRequest, UnknownModel, FailedPrecondition."""
        await self._find(name, version, prefix="")
        await self._registry.unregister(name, version)
        self._catalogue.forget(name)
        cancelled = await self._cancel_queued(name, version)
        _log.info("model-unregistered", model=name, version=version, jobs_cancelled=cancelled)

    async def wish(self, name: str, version: str, wish: Wish) -> None:
        """Requests that workers load or unload a model. Raises InvalidRequest, UnknownModel."""
        model = await self._catalogue.model(name, version, field="name")
        await self._registry.wish(model.name, model.version, wish)
        _log.info("model-action-requested", model=model.name, version=model.version, action=wish)

    async def set_canary(self, name: str, version: str, canary: model_pb2.Canary | None) -> model_pb2.Model:
        """Starts or ends a canary; returns the version. Raises InvalidRequest, UnknownModel, FailedPrecondition."""
        whole = None if canary is None else checked_canary(canary)
        await self._find(name, version, prefix="")
        await self._registry.set_canary(name, version, whole)
        self._catalogue.forget(name)
        said = {"share": whole.share} if whole else {}
        _log.info("canary-started" if whole else "canary-ended", model=name, version=version, **said)
        return await self._catalogue.with_canary(await self._registry.model(name, version))

    async def _find(self, name: str, version: str, *, prefix: str = "model.") -> model_pb2.Model:
        """Returns a registered version; both name and version must be given. Raises InvalidRequest, UnknownModel."""
        if not version and name:
            text = f"{prefix}version is not set; name the version, so that no other one is changed by mistake"
            raise InvalidRequest(text, field=f"{prefix}version")
        self._catalogue.forget(name)
        return await self._catalogue.model(name, version, field=f"{prefix}name")

    async def _current(self, name: str, version: str) -> model_pb2.Model:
        self._catalogue.forget(name)
        return await self._registry.model(name, version)

    async def _cancel_queued(self, name: str, version: str) -> int:
        """Cancels the queued jobs of a removed version; returns their number."""
        token, cancelled = "", 0
        while True:
            jobs, token = await self._queue.list(
                JobFilter(model=name, states=(JobState.QUEUED,)), limit=_PAGE, page_token=token
            )
            for job in jobs:
                if job.version == version:
                    await self._queue.cancel(job.job_id, "model unregistered")
                    cancelled += 1
            if not token:
                return cancelled


#: Limits of a canary if the request sets none; see `Canary` in model.proto.
MAX_FAILED, MIN_FAITHFULNESS, MIN_JOBS = 0.1, 0.9, 20


def checked_canary(canary: model_pb2.Canary) -> model_pb2.Canary:
    """Returns the settings of a canary, with defaults. Raises InvalidRequest."""
    if not 0 < canary.share <= 1:
        text = f"canary.share is {canary.share:g}; give a number above 0, at most 1, such as 0.05"
        raise InvalidRequest(text, field="canary.share")
    for field in ("max_failed", "min_faithfulness"):
        value = getattr(canary, field)
        if not 0 <= value <= 1:
            raise InvalidRequest(f"canary.{field} is {value:g}; give a number from 0 to 1", field=f"canary.{field}")
    return model_pb2.Canary(
        share=canary.share,
        max_failed=canary.max_failed or MAX_FAILED,
        min_faithfulness=canary.min_faithfulness or MIN_FAITHFULNESS,
        min_jobs=canary.min_jobs or MIN_JOBS,
    )


def _masked(before: model_pb2.Model, asked: model_pb2.Model, paths: Iterable[str]) -> model_pb2.Model:
    """Returns a copy of a model with the named fields replaced. Raises InvalidRequest for other fields."""
    wanted = model_pb2.Model()
    wanted.CopyFrom(before)
    wanted.latest = False
    if before.labels_from:
        wanted.ClearField("labels")
    for path in paths:
        if path not in _MASKABLE:
            text = f"update_mask has {shown(path)}; give only fields of {', '.join(sorted(_MASKABLE))}"
            raise InvalidRequest(text, field="update_mask")
        if path in ("labels", "labels_from"):  # each replaces the other
            wanted.ClearField("labels")
            wanted.ClearField("labels_from")
        _take(wanted, asked, path)
    return wanted


def _take(wanted: model_pb2.Model, asked: model_pb2.Model, field: str) -> None:
    """Copies one field from one message to another, or clears it there."""
    only = model_pb2.Model()
    only.CopyFrom(asked)
    for descriptor, _ in asked.ListFields():
        if descriptor.name != field:
            only.ClearField(descriptor.name)  # type: ignore[arg-type]  # the name of a field of this message
    wanted.ClearField(field)  # type: ignore[arg-type]  # checked to be a field's name
    wanted.MergeFrom(only)


#: Models on a page if the request does not set a size.
DEFAULT_PAGE = 100

#: Largest number of models on a page.
MAX_PAGE = 1_000


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    """Serves ModelService from the registry, and Predict from the queue."""

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
        """Returns one model with all fields."""
        model = await self._catalogue.model(request.name, request.version, field="name")
        return model_service_pb2.GetModelResponse(model=await self._catalogue.with_canary(model))

    async def RegisterModel(
        self, request: model_service_pb2.RegisterModelRequest, context: Context
    ) -> model_service_pb2.RegisterModelResponse:
        """Registers a model version."""
        return model_service_pb2.RegisterModelResponse(model=await self._registration.register(request.model))

    async def UpdateModel(
        self, request: model_service_pb2.UpdateModelRequest, context: Context
    ) -> model_service_pb2.UpdateModelResponse:
        """Updates a registered version."""
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
        """Requests that workers load a model."""
        await self._registration.wish(request.name, request.version, "load")
        return model_service_pb2.LoadModelResponse()

    async def UnloadModel(
        self, request: model_service_pb2.UnloadModelRequest, context: Context
    ) -> model_service_pb2.UnloadModelResponse:
        """Requests that workers unload a model."""
        await self._registration.wish(request.name, request.version, "unload")
        return model_service_pb2.UnloadModelResponse()

    async def SetCanary(
        self, request: model_service_pb2.SetCanaryRequest, context: Context
    ) -> model_service_pb2.SetCanaryResponse:
        """Starts or ends the canary of a model."""
        model = await self._registration.set_canary(
            request.name, request.version, request.canary if request.HasField("canary") else None
        )
        return model_service_pb2.SetCanaryResponse(model=model)

    async def Predict(
        self, request: model_service_pb2.PredictRequest, context: Context
    ) -> model_service_pb2.PredictResponse:
        """Executes a prediction as an interactive job and returns its answer."""
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

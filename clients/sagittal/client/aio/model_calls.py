"""Calls about models: what is registered, changes of it, and predictions."""

import math
import time
from collections.abc import AsyncIterator, Sequence

from sagittal.client.aio.concurrency import off_the_loop, sleep
from sagittal.client.aio.connection import AsyncConnection
from sagittal.client.errors import ModelFailed, NotFound, SagittalError, Unavailable
from sagittal.client.events import ClassScore
from sagittal.client.images import ImageLike, encode_image
from sagittal.client.models import Model, parse_model
from sagittal.client.parsing import parse
from sagittal.client.registration import ModelTable, model_message, update_request
from sagittal.client.requests import build, checked_timeout, named, split_model
from sagittal.client.resume import Patience
from sagittal.v1 import model_pb2
from sagittal.v1 import model_service_pb2 as models_pb

#: Interval of checks whether a model is ready, in seconds.
POLL_SECONDS = 0.25


class AsyncModelCalls(AsyncConnection):
    """The calls about models."""

    async def wait_until_ready(self, model: str = "", *, timeout: float | None = 60.0) -> None:
        """Waits until the service answers, and until a worker has a model ready if one is named.

        Args:
            model: Name of a registered model, or "name@version".
            timeout: Time to wait, in seconds; None for no limit.

        Raises:
            ModelFailed: every worker that tried could not load the model.
            SagittalError: the reason why the service or model was not ready when the time, in seconds, was over.
        """
        seconds = checked_timeout(timeout)
        ends = math.inf if seconds is None else time.monotonic() + seconds
        while True:
            try:
                missing = await self._missing(model)
            except (Unavailable, NotFound) as error:
                missing = error
            if missing is None:
                return
            if time.monotonic() + POLL_SECONDS > ends:
                raise missing
            await sleep(POLL_SECONDS)

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
        """Returns the complete description of a model; an empty version means the latest."""
        request = build(models_pb.GetModelRequest, **named(name, version))
        response = await self._call(self._models.GetModel, request)
        return parse_model(response.model)

    async def register_model(self, model: ModelTable) -> Model:
        """Registers a version of a model, given as a `[[models]]` table of a model file; needs the role `admin`.

        Workers load and check it: `model(...)` shows the results.
        """
        request = models_pb.RegisterModelRequest(model=model_message(model))
        response = await self._call(self._models.RegisterModel, request)
        return parse_model(response.model)

    async def update_model(self, model: ModelTable, *, fields: Sequence[str] = ()) -> Model:
        """Changes a registered version: the named fields, or all fields if none are named.

        `fields=["latest"]` with `latest=True` makes it the version of requests that name none.
        """
        response = await self._call(self._models.UpdateModel, update_request(model, fields))
        return parse_model(response.model)

    async def unregister_model(self, name: str, version: str) -> None:
        """Removes a version; running jobs complete on it, queued ones are cancelled."""
        await self._call(self._models.UnregisterModel, build(models_pb.UnregisterModelRequest, **named(name, version)))

    async def load_model(self, name: str, *, version: str = "") -> None:
        """Asks workers to load a model, including workers that failed to load it before."""
        await self._call(self._models.LoadModel, build(models_pb.LoadModelRequest, **named(name, version)))

    async def unload_model(self, name: str, *, version: str = "") -> None:
        """Asks workers to unload a model when no job runs on it; a later job loads it again."""
        await self._call(self._models.UnloadModel, build(models_pb.UnloadModelRequest, **named(name, version)))

    async def set_canary(
        self,
        name: str,
        version: str,
        *,
        share: float = 0.05,
        max_failed: float = 0.1,
        min_faithfulness: float = 0.9,
        min_jobs: int = 20,
    ) -> Model:
        """Tries a version with a share of the explanations that name no version; needs the role `admin`.

        It is rolled back by itself if more than `max_failed` of its jobs fail, or if its mean insertion AUC is less
        than `min_faithfulness` times that of the latest version, once `min_jobs` have ended. `update_model` with
        `fields=["latest"]` promotes it.
        """
        canary = build(
            model_pb2.Canary,
            share=share,
            max_failed=max_failed,
            min_faithfulness=min_faithfulness,
            min_jobs=min_jobs,
        )
        request = build(models_pb.SetCanaryRequest, **named(name, version), canary=canary)
        return parse_model((await self._call(self._models.SetCanary, request)).model)

    async def end_canary(self, name: str, version: str) -> Model:
        """Ends the canary of a model: the latest version gets all explanations that name none."""
        request = build(models_pb.SetCanaryRequest, **named(name, version))
        return parse_model((await self._call(self._models.SetCanary, request)).model)

    async def predict(
        self, image: ImageLike, *, model: str, model_version: str = "", top: int = 5
    ) -> Sequence[ClassScore]:
        """Returns the model's most probable classes, best first."""
        name, version = split_model(model, model_version)
        encoded = await off_the_loop(encode_image, image, field="image")
        request = build(models_pb.PredictRequest, model=name, model_version=version, image=encoded, top=top)
        response = await self._call(self._models.Predict, request)
        return tuple(parse(ClassScore, each) for each in response.top)

    async def _missing(self, model: str) -> SagittalError | None:
        """Returns the reason why a job of a model cannot run; None if it can."""
        once = Patience(self.options.retry, 0.0)
        if not model:
            await self._call(self._models.ListModels, models_pb.ListModelsRequest(page_size=1), patience=once)
            return None
        request = build(models_pb.GetModelRequest, **named(model, ""))
        response = await self._call(self._models.GetModel, request, patience=once)
        found = parse_model(response.model)
        if found.failures and all(worker.state == "failed" for worker in found.workers):
            raise ModelFailed(f"no worker can load {model}: {found.failures[0]}")
        if found.ready_workers:
            return None
        return Unavailable(f"no worker has the model {model} ready", reason="NO_WORKER", retry_after=POLL_SECONDS)

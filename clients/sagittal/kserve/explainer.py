"""Explanations of a model as jobs, which continue if the request that started them ends."""

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from sagittal.client import (
    AsyncClient,
    Explanation,
    InvalidRequest,
    ModelFailed,
    SagittalError,
    Unavailable,
    UnknownJob,
)
from sagittal.client.requests import split_model
from sagittal.kserve.loading import Loading
from sagittal.kserve.requests import ExplainRequest, Image, StoredJob

#: Terminal states of a job.
ENDED = frozenset({"completed", "failed", "cancelled"})

#: Decimals of a heatmap in JSON.
DECIMALS = 4


@dataclass(frozen=True, slots=True)
class Outcome:
    """The state of one image's explanation."""

    explanation: Explanation
    overlay: bytes = b""
    """PNG of the heatmap on the image, if it was asked for and the job has a heatmap."""

    @property
    def ended(self) -> bool:
        """Whether the job has ended."""
        return self.explanation.state in ENDED

    @property
    def heatmap(self) -> NDArray[Any] | None:
        """The saliency (height, width), 0 to 1; None if the job has not completed, or its method has no heatmap."""
        return self.explanation.mask if self.explanation.state == "completed" else None


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcomes of a request, in the order of its instances."""

    outcomes: Sequence[Outcome]

    @property
    def complete(self) -> bool:
        """Whether every job has ended."""
        return all(outcome.ended for outcome in self.outcomes)

    @property
    def error(self) -> SagittalError | None:
        """The first error, if every job ended with one."""
        errors = [outcome.explanation.error for outcome in self.outcomes]
        return errors[0] if all(error is not None for error in errors) else None


class Explainer:
    """Runs jobs on one model."""

    def __init__(self, client: AsyncClient, loading: Loading, *, method: str, wait: float, max_instances: int) -> None:
        """Stores the arguments.

        Args:
            client: Connection to Sagittal.
            loading: The model, and whether it is ready.
            method: Method of requests that name none.
            wait: Maximum time until an answer, in seconds.
            max_instances: Maximum number of images in a request.
        """
        self._client = client
        self._loading = loading
        self._method = method
        self._wait = wait
        self._max_instances = max_instances
        self._stopping = asyncio.Event()

    def stop_waiting(self) -> None:
        """Makes requests that wait for a job return its state so far, because this process ends."""
        self._stopping.set()

    async def explain(self, request: ExplainRequest, *, at_most: float | None = None) -> Answer:
        """Submits the images, and returns the outcomes of all instances when they have ended or the time is over.

        Args:
            request: Images and earlier jobs.
            at_most: Time that the caller waits, in seconds; None if it is unknown.

        Raises:
            SagittalError: the request is refused, or Sagittal is unavailable.
        """
        self._check_number(request)
        asked = self._wait if request.wait is None else min(request.wait, self._wait)
        ends = asyncio.get_running_loop().time() + (asked if at_most is None else min(asked, at_most))
        if any(not isinstance(each, StoredJob) for each in request.instances):
            await self._await_model(ends)
        job_ids = await self._submit_all(request)
        await asyncio.gather(*(self._await_end(job_id, ends) for job_id in job_ids))
        return Answer(await asyncio.gather(*(self._outcome(job_id, request.overlay) for job_id in job_ids)))

    def _check_number(self, request: ExplainRequest) -> None:
        if len(request.instances) > self._max_instances:
            text = f"got {len(request.instances)}; send at most {self._max_instances} at once"
            raise InvalidRequest(text, field="instances")

    async def _await_model(self, ends: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(ends):
                await self._loading.wait_until_ready()
        if not self._loading.ready:
            raise Unavailable(self._loading.reason, reason="MODEL_NOT_READY", retry_after=1.0)

    async def _submit_all(self, request: ExplainRequest) -> Sequence[str]:
        """Returns the jobs of all instances. If one is refused, the new jobs of the others are cancelled."""
        options = {"method": self._method, **request.options, "model": self._loading.model}
        job_ids, new = [], []
        try:
            for number, each in enumerate(request.instances):
                if isinstance(each, StoredJob):
                    job_ids.append(await self._known(each, f"instances[{number}].job_id"))
                else:
                    job_ids.append(await self._submit(each, options, f"instances[{number}]"))
                    new.append(job_ids[-1])
        except SagittalError:
            for job_id in new:
                with contextlib.suppress(SagittalError):
                    await self._client.cancel(job_id)
            raise
        return job_ids

    async def _submit(self, image: Image, options: Mapping[str, Any], field: str) -> str:
        try:
            return (await self._client.submit(image, **options)).job_id
        except SagittalError as error:
            if error.field.startswith("spec.image"):
                error.field = field
            raise

    async def _known(self, stored: StoredJob, field: str) -> str:
        """Returns the identifier of a job of this model. Raises UnknownJob for others."""
        job = await self._client.job(stored.job_id)
        if job.model != split_model(self._loading.model, "")[0]:
            raise UnknownJob(f"there is no job {stored.job_id} of this model, or it was deleted", field=field)
        return job.job_id

    async def _await_end(self, job_id: str, ends: float) -> None:
        """Returns when a job has ended, the time is over, or this process ends."""
        watching = asyncio.ensure_future(self._watch(job_id))
        stopping = asyncio.ensure_future(self._stopping.wait())
        left = max(0.0, ends - asyncio.get_running_loop().time())
        _, pending = await asyncio.wait({watching, stopping}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    async def _watch(self, job_id: str) -> None:
        """Reads the events of a job to its end. The stored explanation has the error of a job that failed."""
        with contextlib.suppress(SagittalError):
            async with self._client.watch(job_id) as events:
                async for _ in events:
                    pass

    async def _outcome(self, job_id: str, overlay: int) -> Outcome:
        outcome = Outcome(await self._client.get(job_id))
        if isinstance(outcome.explanation.error, ModelFailed):
            with contextlib.suppress(SagittalError):  # a token may lack the role
                await self._loading.reload()
        if not overlay or outcome.heatmap is None:
            return outcome
        return replace(outcome, overlay=(await self._client.image(job_id, "overlay", longest=overlay)).encoded)


def outcome_document(outcome: Outcome) -> dict[str, Any]:
    """Returns an outcome as plain values for JSON: the explanation with its heatmap as rows, or its progress."""
    explanation = outcome.explanation
    if not outcome.ended:
        fraction = explanation.progress.fraction if explanation.progress else 0.0
        return {"job_id": explanation.job_id, "state": explanation.state, "progress": round(fraction, DECIMALS)}
    document = explanation.to_dict()
    if outcome.heatmap is not None:
        document["heatmap"] = outcome.heatmap.astype(float).round(DECIMALS).tolist()
    return document


def outcome_text(outcome: Outcome) -> str:
    """Returns an outcome as JSON."""
    return json.dumps(outcome_document(outcome), allow_nan=False)
